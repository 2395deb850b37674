#include "common/plan/transform_schema.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Refusal(const TransformPlan& plan) { return std::string(CompleteTransform(plan).status().message()); }

TransformPlan Complete(const TransformPlan& plan) {
  const auto completed = CompleteTransform(plan);
  EXPECT_TRUE(completed.ok()) << completed.status();
  return completed.ok() ? *completed : plan;
}

TEST(TransformSchemaTest, TheTableIsSortedAndItsDefaultsAreAllowed) {
  const auto schemas = TransformSchemas();
  EXPECT_TRUE(
      std::is_sorted(schemas.begin(), schemas.end(), [](const auto& a, const auto& b) { return a.type < b.type; }));
  for (const TransformSchema& schema : schemas) {
    TransformPlan plan{.type = std::string(schema.type)};
    for (const TransformKnob& knob : schema.knobs) {
      if (knob.default_value.empty()) plan.values[std::string(knob.name)] = {8};
    }
    const TransformPlan completed = Complete(plan);
    EXPECT_EQ(completed.values.size(), schema.knobs.size());
    EXPECT_EQ(Complete(completed), completed) << "what was completed stays";
  }
  EXPECT_THAT(Complete({"random_resized_crop", {{"size", {224}}}}).values.at("ratio"), ElementsAre(0.75, 4.0 / 3));
  EXPECT_THAT(Complete({"horizontal_flip", {}}).values.at("p"), ElementsAre(0.5));
}

TEST(TransformSchemaTest, WhatIsWrongIsNamed) {
  EXPECT_THAT(Refusal({"horizontal_flop", {}}), HasSubstr("did you mean 'horizontal_flip'"));
  EXPECT_THAT(Refusal({"center_crop", {}}),
              HasSubstr("center_crop needs 'size': one number or two, whole, in [1, 16384]"));
  EXPECT_THAT(Refusal({"pad_crop", {{"pading", {4}}, {"padding", {4}}}}), HasSubstr("has no 'pading'"));
  EXPECT_THAT(Refusal({"pad_crop", {{"padding", {4.5}}}}), HasSubstr("pad_crop.padding is 4.5"));
  EXPECT_THAT(Refusal({"horizontal_flip", {{"p", {1.5}}}}), HasSubstr("in [0, 1]"));
  EXPECT_THAT(Refusal({"random_scale", {{"scale", {2, 0.5}}}}), HasSubstr("[from, to]"));
  EXPECT_THAT(Refusal({"random_scale", {{"scale", {2}}}}), HasSubstr("[from, to]"));
  EXPECT_THAT(Refusal({"gaussian_blur", {{"kernel", {4}}}}), HasSubstr("odd"));
  EXPECT_THAT(Refusal({"resize", {{"size", {4}}, {"fit", {1}}}}), HasSubstr("resize.fit needs both sides"));
}

TEST(TransformSchemaTest, TheSizeAfterAListIsThatOfTheLastThatSetsOne) {
  const auto size = [](std::vector<TransformPlan> plans) {
    for (TransformPlan& plan : plans) plan = Complete(plan);
    return SizeAfter(plans);
  };
  EXPECT_FALSE(size({})->any);
  EXPECT_FALSE(size({{"pad_crop", {{"padding", {4}}}}, {"horizontal_flip", {}}})->any);
  const auto crop = size({{"resize", {{"size", {256}}}}, {"center_crop", {{"size", {224, 192}}}}, {"gray", {}}});
  EXPECT_TRUE(crop->any);
  EXPECT_EQ(crop->height, 224);
  EXPECT_EQ(crop->width, 192);
  EXPECT_EQ(size({{"random_resized_crop", {{"size", {96}}}}})->width, 96);
  EXPECT_THAT(std::string(size({{"resize", {{"size", {256}}}}}).status().message()),
              HasSubstr("let center_crop follow"));
  EXPECT_THAT(std::string(size({{"center_crop", {{"size", {8}}}}, {"random_scale", {}}}).status().message()),
              HasSubstr("let random_crop follow"));
}

}  // namespace
}  // namespace distill
