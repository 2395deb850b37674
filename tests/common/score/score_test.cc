#include "common/score/score.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(NamedMetricsTest, MetricsAreFoundByName) {
  const Score score{.metrics = {{kMeanIou, 0.5}, {kPixelAccuracy, 0.75}}, .by_class = {}};
  EXPECT_TRUE(score.measured());
  ASSERT_NE(score.Find(kPixelAccuracy), nullptr);
  EXPECT_EQ(*score.Find(kPixelAccuracy), 0.75);
  EXPECT_EQ(score.Find(kTop1), nullptr);
  EXPECT_FALSE(Score().measured());
}

TEST(NamedMetricsTest, IsSaidInWords) {
  EXPECT_EQ(DescribeScore({.metrics = {{kTop1, 0.8847}, {kTop5, 0.9912}}, .by_class = {}}),
            "top-1 0.8847, top-5 0.9912");
  EXPECT_EQ(DescribeScore({.metrics = {{kMeanIou, 0.5}, {kPixelAccuracy, 0.75}, {"some_new_one", 1}}, .by_class = {}}),
            "mIoU 0.5, pixel accuracy 0.75, some new one 1");
  EXPECT_EQ(DescribeScore(Score()), "not measured");
}

}  // namespace
}  // namespace distill
