#include "common/plan/loss_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace distill {
namespace {

using ::testing::HasSubstr;

std::string Refusal(std::string_view loss, const Knobs& knobs) {
  const StatusOr<Knobs> completed = CompleteKnobs(*FindLossSchema(loss), knobs);
  EXPECT_EQ(completed.status().code(), StatusCode::kInvalidArgument);
  return std::string(completed.status().message());
}

TEST(LossSchemaTest, TypesAreSortedAndFoundByName) {
  std::string_view previous;
  for (const LossSchema& schema : LossSchemas()) {
    EXPECT_LT(previous, schema.type);
    EXPECT_EQ(FindLossSchema(schema.type), &schema);
    EXPECT_FALSE(schema.help.empty());
    for (const KnobSchema& knob : schema.knobs) EXPECT_FALSE(knob.help.empty()) << schema.type << "." << knob.name;
    previous = schema.type;
  }
  EXPECT_EQ(FindLossSchema("no such loss"), nullptr);
}

TEST(LossSchemaTest, EveryDefaultIsWithinItsOwnRange) {
  for (const LossSchema& schema : LossSchemas()) {
    const StatusOr<Knobs> completed = CompleteKnobs(schema, {});
    ASSERT_TRUE(completed.ok()) << completed.status();
    EXPECT_EQ(completed->size(), schema.knobs.size()) << schema.type;
  }
}

TEST(LossSchemaTest, CompleteKnobsFillsInDefaultsAndKeepsWhatIsGiven) {
  const StatusOr<Knobs> cwd = CompleteKnobs(*FindLossSchema("cwd"), {{"temperature", 2.5}, {"scale_t2", false}});
  ASSERT_TRUE(cwd.ok()) << cwd.status();
  EXPECT_EQ(NumberKnob(*cwd, "temperature"), 2.5);
  EXPECT_FALSE(FlagKnob(*cwd, "scale_t2"));
  EXPECT_EQ(TextKnob(*cwd, "divergence"), "kl_t_s");
  EXPECT_EQ(TextKnob(*cwd, "reduction"), "mean");

  EXPECT_TRUE(FlagKnob(*CompleteKnobs(*FindLossSchema("cwd"), {}), "scale_t2"));
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("kd"), {}), "temperature"), 4);
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("cross_entropy"), {}), "label_smoothing"), 0);
  EXPECT_EQ(TextKnob(*CompleteKnobs(*FindLossSchema("l2"), {}), "reduction"), "mean");
}

TEST(LossSchemaTest, RefusalsNameTheKnobTheValueAndTheRemedy) {
  EXPECT_THAT(Refusal("kd", {{"temperture", 4.0}}), HasSubstr("no knob 'temperture'; did you mean 'temperature'?"));
  EXPECT_THAT(Refusal("kd", {{"temperature", 0.0}}), HasSubstr("temperature is 0, must be a number above 0"));
  EXPECT_THAT(Refusal("kd", {{"temperature", true}}),
              HasSubstr("temperature is true or false (true), must be a number"));
  EXPECT_THAT(Refusal("cross_entropy", {{"label_smoothing", 1.0}}), HasSubstr("label_smoothing is 1, must be"));
  EXPECT_THAT(Refusal("cross_entropy", {{"label_smoothing", -0.1}}), HasSubstr("of at least 0 and below 1"));
  EXPECT_THAT(Refusal("cwd", {{"divergence", std::string("kl_t_z")}}), HasSubstr("did you mean 'kl_t_s'?"));
  EXPECT_THAT(Refusal("cwd", {{"scale_t2", 1.0}}), HasSubstr("must be true or false"));
}

TEST(LossSchemaTest, NanAndInfinityAreOutOfRange) {
  for (double bad : {std::nan(""), std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(Refusal("kd", {{"temperature", bad}}), HasSubstr("temperature"));
  }
}

TEST(LossSchemaTest, WholeNumbersTakeNoFractions) {
  EXPECT_THAT(Refusal("tat", {{"groups", 2.5}}), HasSubstr("groups is 2.5, must be a whole number of at least 1"));
  EXPECT_THAT(Refusal("tat", {{"groups", 0.0}}), HasSubstr("must be a whole number"));
  EXPECT_THAT(Refusal("channel_transform", {{"depth", 9.0}}), HasSubstr("at least 0 and at most 8"));
  EXPECT_THAT(Refusal("channel_transform", {{"kernel", 1.0000001}}), HasSubstr("kernel"));
  EXPECT_THAT(Refusal("tat", {{"grid_rows", std::nan("")}}), HasSubstr("grid_rows"));
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("tat"), {{"groups", 7.0}}), "groups"), 7);
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("channel_transform"), {{"depth", 0.0}}), "depth"), 0);
}

TEST(LossSchemaTest, BoundsAreInclusiveOrNotAsTheTableSays) {
  EXPECT_THAT(Refusal("mgd", {{"mask_ratio", 1.0}}), HasSubstr("below 1"));
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("mgd"), {{"mask_ratio", 0.0}}), "mask_ratio"), 0);
  EXPECT_THAT(Refusal("at", {{"power", 0.5}}), HasSubstr("at least 1"));  // an infinite slope at 0
  EXPECT_EQ(NumberKnob(*CompleteKnobs(*FindLossSchema("at"), {{"power", 1.0}}), "power"), 1);
  EXPECT_THAT(Refusal("smooth_l1", {{"beta", 0.0}}), HasSubstr("above 0"));
}

TEST(LossSchemaTest, DefaultsOfChoicesAreAmongTheChoices) {
  for (const LossSchema& schema : LossSchemas()) {
    for (const KnobSchema& knob : schema.knobs) {
      if (knob.type != KnobSchema::Type::kText) continue;
      EXPECT_NE(std::find(knob.choices.begin(), knob.choices.end(), knob.default_value), knob.choices.end())
          << schema.type << "." << knob.name;
    }
  }
}

}  // namespace
}  // namespace distill
