#include "common/plan/path_pattern.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using ::testing::HasSubstr;

TEST(PathPatternTest, PartsMatchNamesInOneWay) {
  const auto pattern = PathPattern::Parse("gtFine/train/*/*_gtFine_labelIds.png");
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  ASSERT_EQ(pattern->parts().size(), 4);
  EXPECT_EQ(pattern->stars(), 2);
  EXPECT_EQ(pattern->parts()[0].Match("gtFine"), "");
  EXPECT_EQ(pattern->parts()[0].Match("gtfine"), std::nullopt);
  EXPECT_EQ(pattern->parts()[2].Match("aachen"), "aachen");
  const PathPattern::Part& file = pattern->parts()[3];
  EXPECT_EQ(file.Match("aachen_000000_000019_gtFine_labelIds.png"), "aachen_000000_000019");
  EXPECT_EQ(file.Match("aachen_000000_000019_gtFine_color.png"), std::nullopt);
  EXPECT_EQ(file.Match("_gtFine_labelIds.png"), std::nullopt) << "a star stands for something";
  EXPECT_EQ(pattern->Fill({"aachen", "a_0"}), "gtFine/train/aachen/a_0_gtFine_labelIds.png");
  // What is before and after the star must not overlap.
  EXPECT_EQ(PathPattern::Parse("aba*ba")->parts()[0].Match("aba"), std::nullopt);
  EXPECT_EQ(PathPattern::Parse("aba*ba")->parts()[0].Match("abaxba"), "x");
}

TEST(PathPatternTest, WhatIsNoPatternIsRefusedInWords) {
  const auto refusal = [](std::string_view text) {
    const auto pattern = PathPattern::Parse(text);
    EXPECT_FALSE(pattern.ok()) << text;
    EXPECT_EQ(pattern.status().code(), StatusCode::kInvalidArgument);
    return std::string(pattern.status().message());
  };
  EXPECT_EQ(refusal(""), "is empty");
  EXPECT_THAT(refusal("/data/*.png"), HasSubstr("absolute"));
  EXPECT_THAT(refusal("a//*.png"), HasSubstr("empty part"));
  EXPECT_THAT(refusal("a/*/"), HasSubstr("empty part"));
  EXPECT_THAT(refusal("../*.png"), HasSubstr("part '..'"));
  EXPECT_THAT(refusal("./*.png"), HasSubstr("part '.'"));
  EXPECT_THAT(refusal("**/a.png"), HasSubstr("'**'"));
  EXPECT_THAT(refusal("*_*.png"), HasSubstr("2 stars in '*_*.png'"));
  EXPECT_THAT(refusal("images/a.png"), HasSubstr("no '*'"));
  EXPECT_THAT(refusal(std::string("a\0*", 3)), HasSubstr("control character"));
  EXPECT_THAT(refusal(std::string(2000, 'a') + "*"), HasSubstr("2001 bytes"));
}

}  // namespace
}  // namespace distill
