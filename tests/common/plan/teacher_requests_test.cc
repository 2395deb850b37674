#include "common/plan/teacher_requests.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "common/plan/loss_needs.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::Optional;

LossPlan Loss(const std::string& type, const std::string& tap, double weight = 1) {
  LossPlan loss;
  loss.name = loss.type = type;
  loss.teacher_tap = tap;
  loss.needs_teacher = type != "cross_entropy";
  loss.weight = weight;
  return loss;
}

TeacherRequests Requests(const std::vector<LossPlan>& losses, WireDtype maps, const std::string& input = "") {
  StagePlan stage;
  stage.losses = losses;
  stage.teacher_input = input;
  return TeacherRequestsOf(stage, maps);
}

constexpr WireDtype kF32 = WireDtype::kF32, kBf16 = WireDtype::kBf16;

TEST(TeacherRequestsTest, EachLossGetsTheEncodingItBears) {
  const TeacherRequests requests =
      Requests({Loss("cross_entropy", ""), Loss("kd", ""), Loss("cwd", "a"), Loss("l2", "b")}, kBf16);
  EXPECT_THAT(requests.taps, ElementsAre(TapRequest{"", {kF32, false}}, TapRequest{"a", {kBf16, true}},
                                         TapRequest{"b", {kBf16, false}}));
  EXPECT_THAT(requests.of_loss,
              ElementsAre(std::nullopt, Optional(size_t{0}), Optional(size_t{1}), Optional(size_t{2})));
  EXPECT_EQ(requests.input, std::nullopt);
}

TEST(TeacherRequestsTest, TwoLossesMayWantOneTapInTwoEncodings) {
  const TeacherRequests requests = Requests({Loss("cwd", "a"), Loss("l2", "a"), Loss("l1", "a")}, kBf16);
  EXPECT_THAT(requests.taps, ElementsAre(TapRequest{"a", {kBf16, true}}, TapRequest{"a", {kBf16, false}}));
  EXPECT_THAT(requests.of_loss, ElementsAre(Optional(size_t{0}), Optional(size_t{1}), Optional(size_t{1})));
  // Not where nothing is rounded.
  EXPECT_THAT(Requests({Loss("cwd", "a"), Loss("l2", "a")}, kF32).taps, ElementsAre(TapRequest{"a", {kF32, false}}));
}

TEST(TeacherRequestsTest, ATapThatTravelsAsFloat32ServesAllItsReaders) {
  for (const auto& losses :
       {std::vector{Loss("cwd", ""), Loss("kd", "")}, std::vector{Loss("kd", ""), Loss("cwd", "")}}) {
    const TeacherRequests requests = Requests(losses, kBf16);
    EXPECT_THAT(requests.taps, ElementsAre(TapRequest{"", {kF32, false}}));
    EXPECT_THAT(requests.of_loss, ElementsAre(Optional(size_t{0}), Optional(size_t{0})));
  }
}

TEST(TeacherRequestsTest, ALossOfWeight0AsksForNothing) {
  const TeacherRequests requests = Requests({Loss("kd", "", 0), Loss("cwd", "")}, kBf16);
  EXPECT_THAT(requests.taps, ElementsAre(TapRequest{"", {kBf16, true}}));
  EXPECT_THAT(requests.of_loss, ElementsAre(std::nullopt, Optional(size_t{0})));
}

TEST(TeacherRequestsTest, WhatALossIsInvariantToDependsOnItsKnobs) {
  LossPlan cwd = Loss("cwd", "a");
  EXPECT_FALSE(NeedsOf(cwd).row_offsets);
  cwd.knobs["norm_axis"] = std::string("channel");
  EXPECT_THAT(Requests({cwd}, kBf16).taps, ElementsAre(TapRequest{"a", {kBf16, false}}));
  cwd.knobs["no such knob"] = 1.0;
  EXPECT_TRUE(NeedsOf(cwd).row_offsets);
  EXPECT_TRUE(NeedsOf(Loss("no such loss", "a")).row_offsets);
}

TEST(TeacherRequestsTest, TheStagesInputIsOneOfTheRequests) {
  TeacherRequests requests = Requests({Loss("cwd", "a")}, kBf16, "a");
  EXPECT_THAT(requests.taps, ElementsAre(TapRequest{"a", {kBf16, true}}, TapRequest{"a", {kBf16, false}}));
  EXPECT_THAT(requests.input, Optional(size_t{1}));
  requests = Requests({Loss("l2", "a"), Loss("l2", "b")}, kBf16, "a");
  EXPECT_EQ(requests.taps.size(), 2);
  EXPECT_THAT(requests.input, Optional(size_t{0}));
}

}  // namespace
}  // namespace distill
