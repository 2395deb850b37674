#include "student_worker/train/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using testing::ElementsAre;
using Labels = std::vector<int64_t>;

double Metric(const Score& score, const char* name) {
  const double* value = score.Find(name);
  return value == nullptr ? -1 : *value;
}

TEST(ScoreTest, ImagesHaveTop1AndOfManyClassesTop5) {
  ScoreTally tally(10, /*pixels=*/false);
  EXPECT_EQ(tally.Result(), Score());
  tally.Add(Labels{3, 1, 9}, Labels{3, 2, 9}, Labels{0, 4, 0});
  tally.Add(Labels{0, 0}, Labels{5, kNoLabel}, Labels{5, 0});
  const Score score = tally.Result();
  EXPECT_EQ(score.metrics, (std::vector<NamedNumber>{{"top1", 0.5}, {"top5", 0.75}}));
  EXPECT_THAT(score.by_class.labelled, ElementsAre(0, 0, 1, 1, 0, 1, 0, 0, 0, 1));
  EXPECT_THAT(score.by_class.answered, ElementsAre(1, 1, 0, 1, 0, 0, 0, 0, 0, 1));
  EXPECT_THAT(score.by_class.right, ElementsAre(0, 0, 0, 1, 0, 0, 0, 0, 0, 1));
  ASSERT_EQ(score.by_class.confusion.size(), 100u);
  EXPECT_EQ(score.by_class.confusion[2 * 10 + 1], 1u);  // labelled 2, answered 1
  EXPECT_EQ(score.by_class.confusion[5 * 10 + 0], 1u);
  ScoreTally few(5, /*pixels=*/false);
  few.Add(Labels{1}, Labels{1}, Labels{0});
  EXPECT_EQ(few.Result().metrics, (std::vector<NamedNumber>{{"top1", 1}}));
}

TEST(ScoreTest, ManyClassesHaveNoMatrixAndVeryManyNoCounts) {
  ScoreTally many(1000, /*pixels=*/false);
  many.Add(Labels{999, 1, 2000}, Labels{999, 2, 7}, Labels{0, 1, 9});
  const Score score = many.Result();
  EXPECT_EQ(Metric(score, kTop1), 1.0 / 3);
  EXPECT_EQ(Metric(score, kTop5), 2.0 / 3);
  EXPECT_EQ(score.by_class.classes(), 1000u);
  EXPECT_EQ(score.by_class.right[999], 1u);
  EXPECT_EQ(score.by_class.answered[1], 1u);
  EXPECT_EQ(score.by_class.labelled[7], 1u);
  EXPECT_TRUE(score.by_class.confusion.empty());
  ScoreTally very_many(1'000'000, /*pixels=*/false);
  very_many.Add(Labels{5}, Labels{5}, Labels{0});
  EXPECT_EQ(Metric(very_many.Result(), kTop1), 1);
  EXPECT_EQ(very_many.Result().by_class, ClassResults());
}

// Worked by hand. Labels of 8 pixels, one of them ignored, and answers:
//   labels   0 0 0 1 1 2 2 -      answers  0 0 1 1 2 2 2 0
//   class 0: 2 right of 3 labelled or answered; class 1: 1 of 3; class 2: 2 of 3; class 3 occurs nowhere.
TEST(ScoreTest, PixelsHaveAMeanIouAndAnAccuracy) {
  ScoreTally tally(4, /*pixels=*/true);
  tally.Add(Labels{0, 0, 1, 1, 2, 2, 2, 0}, Labels{0, 0, 0, 1, 1, 2, 2, kNoLabel}, {});
  const Score score = tally.Result();
  ASSERT_EQ(score.metrics.size(), 2u);
  EXPECT_EQ(score.metrics[0].name, "mean_iou");
  EXPECT_DOUBLE_EQ(score.metrics[0].value, (2.0 / 3 + 1.0 / 3 + 2.0 / 3) / 3);
  EXPECT_EQ(score.metrics[1].name, "pixel_accuracy");
  EXPECT_DOUBLE_EQ(score.metrics[1].value, 5.0 / 7);
  EXPECT_THAT(score.by_class.confusion, ElementsAre(2, 1, 0, 0, 0, 1, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0));
}

TEST(ScoreTest, AClassThatIsOnlyAnsweredCountsAsZero) {
  ScoreTally tally(2, /*pixels=*/true);
  tally.Add(Labels{0, 1}, Labels{0, 0}, {});
  EXPECT_DOUBLE_EQ(Metric(tally.Result(), kMeanIou), (0.5 + 0) / 2);
}

TEST(ScoreTest, AnAnswerBeyondTheClassesIsWrong) {
  for (const int64_t beyond : {2, 7, -1}) {
    ScoreTally tally(2, /*pixels=*/true);
    tally.Add(Labels{beyond, 1}, Labels{0, 1}, {});
    EXPECT_DOUBLE_EQ(Metric(tally.Result(), kPixelAccuracy), 0.5);
    EXPECT_DOUBLE_EQ(Metric(tally.Result(), kMeanIou), 0.5);
    EXPECT_THAT(tally.Result().by_class.answered, ElementsAre(0, 1));
  }
}

TEST(ScoreTest, NothingButIgnoredPixelsIsNotMeasured) {
  ScoreTally tally(2, /*pixels=*/true);
  tally.Add(Labels{1, 1}, Labels{kNoLabel, kNoLabel}, {});
  EXPECT_EQ(tally.Result(), Score());
}

// The mean IoU of the whole is not the mean of the parts': ranks add counts.
TEST(ScoreTest, CountsOfPartsAddUpToThoseOfTheWhole) {
  const Labels answers = {0, 1, 1, 2, 2, 0}, labels = {0, 1, 0, 2, 1, 0};
  ScoreTally whole(3, true), first(3, true), second(3, true);
  whole.Add(answers, labels, {});
  first.Add(std::span(answers).first(2), std::span(labels).first(2), {});
  second.Add(std::span(answers).subspan(2), std::span(labels).subspan(2), {});
  std::vector<double> sums = first.counts();
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += second.counts()[i];
  ScoreTally joined(3, true);
  joined.SetCounts(sums);
  EXPECT_EQ(joined.Result(), whole.Result());
  EXPECT_NE((Metric(first.Result(), kMeanIou) + Metric(second.Result(), kMeanIou)) / 2,
            Metric(whole.Result(), kMeanIou));
}

TEST(ScoreTest, LabelsOfImagesAndOfPixels) {
  EXPECT_THAT(LabelsOf({.labels = {4, 0}}), ElementsAre(4, 0));
  EXPECT_THAT(LabelsOf({.labels = {kNoLabel, kNoLabel}, .label_maps = {3, kIgnoredPixel, 0, 1}}),
              ElementsAre(3, kNoLabel, 0, 1));
}

}  // namespace
}  // namespace distill
