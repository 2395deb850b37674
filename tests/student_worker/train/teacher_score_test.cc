#include "student_worker/train/teacher_score.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/student_worker/data/sample_readers.h"
#include "tests/student_worker/feature/test_teacher.h"

namespace distill {
namespace {

using ::testing::HasSubstr;
using testing::kDigest;
using testing::kModel;
using testing::TestTeacher;

constexpr uint32_t kChannels = 3, kSide = 4, kImages = 11, kClasses = 7;
constexpr uint64_t kPixels = kSide * kSide;
// The test teacher's tap "maps" has a value for each pixel and channel: as logits, a class for each pixel.
constexpr uint64_t kAnswerBytes = kChannels * kPixels * sizeof(float);

// Pixels such that channel (i + p) % 3 is the largest at position p of image i; labels that say so, but for one pixel
// of each image.
std::shared_ptr<const Dataset> Images() {
  std::vector<uint8_t> pixels, maps;
  for (uint32_t i = 0; i < kImages; ++i) {
    for (uint32_t c = 0; c < kChannels; ++c) {
      for (uint32_t p = 0; p < kPixels; ++p) pixels.push_back((i + p) % kChannels == c ? 200 : 50 + c);
    }
    for (uint32_t p = 0; p < kPixels; ++p) maps.push_back((i + p + (p == 0 ? 1 : 0)) % kChannels);
  }
  return MakeMemoryDataset(kChannels, kSide, kSide, kChannels, std::move(pixels),
                           std::vector<int64_t>(kImages, kNoLabel), std::move(maps))
      .value();
}

// The test teacher's logits of an image are its channels' means. Channel c of each of these has 10 * c, the larger the
// better; the labels of seven images are the classes one after the other.
std::shared_ptr<const Dataset> LabelledImages() {
  std::vector<uint8_t> pixels;
  std::vector<int64_t> labels;
  for (uint32_t i = 0; i < kClasses; ++i) {
    for (uint32_t c = 0; c < kClasses; ++c) pixels.insert(pixels.end(), kPixels, static_cast<uint8_t>(10 * c));
    labels.push_back(i);
  }
  return MakeMemoryDataset(kClasses, kSide, kSide, kClasses, std::move(pixels), std::move(labels)).value();
}

JobPlan Plan(uint32_t classes, uint32_t batch_size, uint64_t window_bytes = 1 << 20) {
  JobPlan plan;
  plan.student.num_classes = classes;
  plan.student.in_channels = classes;
  plan.batch_size = batch_size;
  plan.prefetch_bytes = window_bytes;
  return plan;
}
JobPlan Labelled() { return Plan(kClasses, 3); }

class TeacherScoreTest : public ::testing::Test {
 protected:
  StatusOr<Score> Measure(uint64_t window_bytes, uint32_t batch_size) {
    return MeasureOn(Images(), "maps", {kChannels, kSide, kSide}, Plan(kChannels, batch_size, window_bytes));
  }
  StatusOr<Score> MeasureOn(std::shared_ptr<const Dataset> images, const std::string& tap,
                            const std::vector<uint32_t>& shape, const JobPlan& plan) {
    TeacherPool::Options options;
    options.model = kModel;
    options.digest = kDigest;
    options.taps = {{tap}};
    options.tap_shapes = {shape};
    options.client = "test";
    options.window_bytes = plan.prefetch_bytes;
    const auto pool = TeacherPool::Create(std::move(options)).value();
    pool->SetTeachers({teacher_->endpoint()});
    return MeasureTeacherScore(pool.get(), *testing::ReaderOf(std::move(images)), plan, [] { return true; });
  }
  std::unique_ptr<TestTeacher> teacher_ = TestTeacher::Start({});
};

TEST_F(TeacherScoreTest, CountsTheClassesOfTheLargestLogits) {
  const StatusOr<Score> score = Measure(1 << 20, 4);
  ASSERT_TRUE(score.ok()) << score.status();
  ASSERT_NE(score->Find(kPixelAccuracy), nullptr);
  EXPECT_DOUBLE_EQ(*score->Find(kPixelAccuracy), double{kPixels - 1} / kPixels);
  EXPECT_GT(*score->Find(kMeanIou), 0.8);
  EXPECT_EQ(teacher_->received(), 3);
}

TEST_F(TeacherScoreTest, CountsTheFirstFiveOfImagesWithOneLabelEach) {
  const StatusOr<Score> score = MeasureOn(LabelledImages(), "", {kClasses}, Labelled());
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->metrics, (std::vector<NamedNumber>{{"top1", 1.0 / 7}, {"top5", 5.0 / 7}}));
  EXPECT_THAT(score->by_class.answered, ::testing::ElementsAre(0, 0, 0, 0, 0, 0, 7));
}

// The test teacher sees pixels and means of pixels, so that a mirror image's answers are those of the image, mirrored.
TEST_F(TeacherScoreTest, WithAFlipBothViewsAreAnsweredTogether) {
  const StatusOr<Score> plain = Measure(1 << 20, 4);
  const int before = teacher_->received();
  JobPlan flip = Plan(kChannels, 4);
  flip.evaluate_flip = true;
  const StatusOr<Score> both = MeasureOn(Images(), "maps", {kChannels, kSide, kSide}, flip);
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(*both, *plain);
  EXPECT_EQ(teacher_->received() - before, 2 * before);
  JobPlan flipped = Labelled();
  flipped.evaluate_flip = true;
  const StatusOr<Score> images = MeasureOn(LabelledImages(), "", {kClasses}, flipped);
  ASSERT_TRUE(images.ok()) << images.status();
  EXPECT_EQ(*images, *MeasureOn(LabelledImages(), "", {kClasses}, Labelled()));
}

// The test teacher answers a pixel by that pixel alone, so that windows of a picture say what the picture does.
TEST_F(TeacherScoreTest, WindowsAreAskedForOneByOne) {
  const StatusOr<Score> whole = Measure(1 << 20, kImages);
  const int before = teacher_->received();
  JobPlan windows = Plan(kChannels, kImages);
  windows.evaluate_window = {3, 2};
  windows.evaluate_stride = {2, 2};
  const StatusOr<Score> parts = MeasureOn(Images(), "maps", {kChannels, 3, 2}, windows);
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_EQ(*parts, *whole);
  EXPECT_EQ(teacher_->received() - before, 4);
}

TEST_F(TeacherScoreTest, HowTheLogitsLieDoesNotMatter) {
  const StatusOr<Score> first = Measure(1 << 20, 4);
  ASSERT_TRUE(first.ok()) << first.status();
  teacher_ = TestTeacher::Start({.channels_last = true});
  const StatusOr<Score> last = Measure(1 << 20, 4);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(*last, *first);
}

// Logits for every pixel of a whole batch are larger than what a student may have under way.
TEST_F(TeacherScoreTest, BatchesAreAsLargeAsFitTheWindow) {
  const StatusOr<Score> whole = Measure(1 << 20, kImages);
  ASSERT_TRUE(whole.ok()) << whole.status();
  const int before = teacher_->received();
  EXPECT_EQ(before, 1);
  const StatusOr<Score> split = Measure(2 * kAnswerBytes + 100, kImages);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(*split, *whole);
  EXPECT_EQ(teacher_->received() - before, 6);  // two images at once, and the last alone
}

TEST_F(TeacherScoreTest, OneImageThatDoesNotFitIsThePoolsRefusal) {
  const StatusOr<Score> score = Measure(kAnswerBytes - 1, kImages);
  EXPECT_EQ(score.status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(score.status().message()), HasSubstr("more than the window"));
}

}  // namespace
}  // namespace distill
