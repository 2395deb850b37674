#include "student_worker/train/score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using testing::ElementsAre;
using Labels = std::vector<int64_t>;

TEST(ScoreTest, ImagesHaveAnAccuracyAndNoIntersectionOverUnion) {
  ScoreTally tally(10, /*pixels=*/false);
  EXPECT_EQ(tally.Result(), Score());
  tally.Add(Labels{3, 1, 9}, Labels{3, 2, 9});
  tally.Add(Labels{0}, Labels{0});
  EXPECT_EQ(tally.Result(), (Score{.accuracy = 0.75, .mean_iou = -1}));
}

// Worked by hand. Labels of 8 pixels, one of them ignored, and answers:
//   labels   0 0 0 1 1 2 2 -      answers  0 0 1 1 2 2 2 0
//   class 0: 2 right of 3 labelled or answered; class 1: 1 of 3; class 2: 2 of 3; class 3 occurs nowhere.
TEST(ScoreTest, PixelsHaveBoth) {
  ScoreTally tally(4, /*pixels=*/true);
  tally.Add(Labels{0, 0, 1, 1, 2, 2, 2, 0}, Labels{0, 0, 0, 1, 1, 2, 2, kNoLabel});
  const Score score = tally.Result();
  EXPECT_DOUBLE_EQ(score.accuracy, 5.0 / 7);
  EXPECT_DOUBLE_EQ(score.mean_iou, (2.0 / 3 + 1.0 / 3 + 2.0 / 3) / 3);
}

TEST(ScoreTest, AClassThatIsOnlyAnsweredCountsAsZero) {
  ScoreTally tally(2, /*pixels=*/true);
  tally.Add(Labels{0, 1}, Labels{0, 0});
  EXPECT_DOUBLE_EQ(tally.Result().mean_iou, (0.5 + 0) / 2);
}

TEST(ScoreTest, AnAnswerBeyondTheClassesIsWrong) {
  ScoreTally tally(2, /*pixels=*/true);
  tally.Add(Labels{7, 1}, Labels{0, 1});
  EXPECT_DOUBLE_EQ(tally.Result().accuracy, 0.5);
  EXPECT_DOUBLE_EQ(tally.Result().mean_iou, 0.5);
}

TEST(ScoreTest, NothingButIgnoredPixelsIsNotMeasured) {
  ScoreTally tally(2, /*pixels=*/true);
  tally.Add(Labels{1, 1}, Labels{kNoLabel, kNoLabel});
  EXPECT_EQ(tally.Result(), Score());
}

// The mean IoU of the whole is not the mean of the parts': ranks add counts.
TEST(ScoreTest, CountsOfPartsAddUpToThoseOfTheWhole) {
  const Labels answers = {0, 1, 1, 2, 2, 0}, labels = {0, 1, 0, 2, 1, 0};
  ScoreTally whole(3, true), first(3, true), second(3, true);
  whole.Add(answers, labels);
  first.Add(std::span(answers).first(2), std::span(labels).first(2));
  second.Add(std::span(answers).subspan(2), std::span(labels).subspan(2));
  std::vector<double> sums = first.counts();
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += second.counts()[i];
  ScoreTally joined(3, true);
  joined.SetCounts(sums);
  EXPECT_EQ(joined.Result(), whole.Result());
  EXPECT_NE((first.Result().mean_iou + second.Result().mean_iou) / 2, whole.Result().mean_iou);
}

TEST(ScoreTest, LabelsOfImagesAndOfPixels) {
  EXPECT_THAT(LabelsOf({.labels = {4, 0}}), ElementsAre(4, 0));
  EXPECT_THAT(LabelsOf({.labels = {kNoLabel, kNoLabel}, .label_maps = {3, kIgnoredPixel, 0, 1}}),
              ElementsAre(3, kNoLabel, 0, 1));
}

}  // namespace
}  // namespace distill
