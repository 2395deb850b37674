#include "common/plan/loss_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace distill
