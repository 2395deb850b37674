#include "teacher_server/memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

const MemoryBudget::Time kStart{};

TEST(MemoryBudgetTest, OneHalfIsForPixels) {
  MemoryBudget budget(100);
  EXPECT_TRUE(budget.TakePixels(50, kStart));
  EXPECT_FALSE(budget.TakePixels(1, kStart + std::chrono::seconds(1)));
  EXPECT_FALSE(budget.TakePixels(1, kStart + std::chrono::seconds(2)));
  EXPECT_EQ(budget.used(), 50);
  // Whoever was refused waits somewhere.
  EXPECT_EQ(*budget.waiting_since(), kStart + std::chrono::seconds(1));
  budget.GivePixels(20);
  EXPECT_FALSE(budget.waiting_since().has_value());
  EXPECT_TRUE(budget.TakePixels(20, kStart));
  // However many there are, what they ask for can be computed.
  EXPECT_TRUE(budget.TakeFeatures(1, 50, /*covered=*/true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 1, true, kStart));
  budget.GivePixels(50);
  // A batch larger than its share goes when there is no other.
  EXPECT_TRUE(budget.TakePixels(80, kStart));
  EXPECT_FALSE(budget.TakePixels(1, kStart));
}

TEST(MemoryBudgetTest, AnswersWithoutCreditUseHalfOfTheFeaturesHalf) {
  MemoryBudget budget(200);
  EXPECT_TRUE(budget.TakeFeatures(1, 40, /*covered=*/false, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 20, false, kStart));
  EXPECT_TRUE(budget.TakeFeatures(3, 20, true, kStart));
  EXPECT_TRUE(budget.TakeFeatures(3, 40, true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(3, 1, true, kStart));
  EXPECT_EQ(budget.used(), 100);
}

TEST(MemoryBudgetTest, AnyAnswerFitsWhenNoneIsHeld) {
  MemoryBudget budget(100);
  EXPECT_TRUE(budget.TakePixels(50, kStart));
  EXPECT_TRUE(budget.TakeFeatures(1, 1000, true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 1, true, kStart));
  budget.AddFeatures(-1000);
  EXPECT_TRUE(budget.TakeFeatures(2, 1000, false, kStart));
}

TEST(MemoryBudgetTest, ThoseThatWaitHaveTheirTurnInOrder) {
  MemoryBudget budget(200);
  EXPECT_THAT(budget.NextWaiting(), IsEmpty());
  EXPECT_FALSE(budget.waiting_since().has_value());
  ASSERT_TRUE(budget.TakeFeatures(1, 100, true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 60, true, kStart + std::chrono::seconds(1)));
  EXPECT_FALSE(budget.TakeFeatures(3, 10, true, kStart + std::chrono::seconds(2)));
  EXPECT_FALSE(budget.TakeFeatures(2, 60, true, kStart + std::chrono::seconds(3)));
  EXPECT_THAT(budget.NextWaiting(), ElementsAre(2));
  EXPECT_EQ(*budget.waiting_since(), kStart + std::chrono::seconds(1));
  budget.AddFeatures(-50);
  // It would fit, but a larger one came first and must not starve.
  EXPECT_FALSE(budget.TakeFeatures(3, 10, true, kStart));
  budget.AddFeatures(-50);
  EXPECT_TRUE(budget.TakeFeatures(2, 60, true, kStart));
  EXPECT_THAT(budget.NextWaiting(), ElementsAre(3));
  EXPECT_TRUE(budget.TakeFeatures(3, 10, true, kStart));
  EXPECT_THAT(budget.NextWaiting(), IsEmpty());
}

TEST(MemoryBudgetTest, CoveredAnswersDoNotWaitBehindUncoveredOnes) {
  MemoryBudget budget(200);
  ASSERT_TRUE(budget.TakeFeatures(1, 50, false, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 10, false, kStart + std::chrono::seconds(1)));
  EXPECT_TRUE(budget.TakeFeatures(3, 50, true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(4, 10, true, kStart + std::chrono::seconds(2)));
  EXPECT_THAT(budget.NextWaiting(), ElementsAre(4, 2));
  // Credit came: it moves to the other row, and has waited since it first asked.
  EXPECT_FALSE(budget.TakeFeatures(2, 10, true, kStart + std::chrono::seconds(9)));
  EXPECT_THAT(budget.NextWaiting(), ElementsAre(4));
  EXPECT_EQ(*budget.waiting_since(), kStart + std::chrono::seconds(1));
  budget.Forget(4);
  EXPECT_THAT(budget.NextWaiting(), ElementsAre(2));
}

TEST(MemoryBudgetTest, RingsHaveAnEighthOfItAndFeaturesSoMuchLess) {
  MemoryBudget budget(800);
  EXPECT_FALSE(budget.TakeRing(101));
  EXPECT_FALSE(budget.TakeRing(UINT64_MAX));
  EXPECT_TRUE(budget.TakeRing(60));
  EXPECT_TRUE(budget.TakeRing(40));
  EXPECT_FALSE(budget.TakeRing(1));
  EXPECT_EQ(budget.used(), 100);
  EXPECT_TRUE(budget.TakeFeatures(1, 150, false, kStart));
  EXPECT_FALSE(budget.TakeFeatures(2, 1, false, kStart));
  EXPECT_TRUE(budget.TakeFeatures(3, 150, true, kStart));
  EXPECT_FALSE(budget.TakeFeatures(4, 100, true, kStart));
  budget.GiveRing(60);
  EXPECT_FALSE(budget.TakeFeatures(4, 100, true, kStart));
  budget.GiveRing(40);
  EXPECT_TRUE(budget.TakeFeatures(4, 100, true, kStart));
  EXPECT_EQ(budget.used(), 400);
}

// Rings are there as long as streams are: an answer larger than what they leave must not wait for ever.
TEST(MemoryBudgetTest, AnAnswerOfAnySizeFitsBesideRingsAlone) {
  MemoryBudget budget(800);
  EXPECT_TRUE(budget.TakeRing(100));
  EXPECT_TRUE(budget.TakeFeatures(1, 5000, true, kStart));
}

}  // namespace
}  // namespace distill
