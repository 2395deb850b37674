#include "student_worker/data/training_images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/student_worker/data/data_root.h"

namespace distill {
namespace {

using ::testing::HasSubstr;
using testing::Image;
using testing::LabelMap;

// 10 labelled and 6 other images of one pixel; the pixel is the image's number.
DataSplits TenAndSix(bool labelled = true) {
  const auto make = [](uint8_t first, int count, bool with_labels) {
    std::vector<uint8_t> pixels;
    std::vector<int64_t> labels;
    for (int i = 0; i < count; ++i) {
      pixels.push_back(static_cast<uint8_t>(first + i));
      labels.push_back(with_labels ? i % 2 : kNoLabel);
    }
    return MakeMemoryDataset(1, 1, 1, 2, std::move(pixels), std::move(labels)).value();
  };
  return {labelled ? make(0, 10, true) : nullptr, make(100, 2, true), make(10, 6, false)};
}

TEST(TrainingImagesTest, LabelledImagesKeepTheirNumbersAndOthersFollow) {
  const TrainingImages images = PrepareTrainingImages(TenAndSix(), 0, 3).value();
  ASSERT_EQ(images.labelled->size(), 10);
  ASSERT_EQ(images.all->size(), 16);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(Image(*images.all, i)[0], i);
    EXPECT_EQ(images.all->label(i), i < 10 ? i % 2 : kNoLabel);
  }
  EXPECT_EQ(images.held_out, nullptr);
  DataSplits plain = TenAndSix();
  plain.unlabelled = nullptr;
  EXPECT_EQ(PrepareTrainingImages(plain, 0, 3)->all, plain.train);
}

TEST(TrainingImagesTest, HeldOutImagesHaveLabelsIfAnyHas) {
  const TrainingImages images = PrepareTrainingImages(TenAndSix(), 4, 3).value();
  EXPECT_EQ(images.labelled->size(), 6);
  EXPECT_EQ(images.all->size(), 12);
  ASSERT_EQ(images.held_out->size(), 4);
  std::set<int> seen;
  for (int i = 0; i < 4; ++i) {
    EXPECT_NE(images.held_out->label(i), kNoLabel);
    seen.insert(Image(*images.held_out, i)[0]);
  }
  for (int i = 0; i < 12; ++i)
    EXPECT_TRUE(seen.insert(Image(*images.all, i)[0]).second) << "measured on and trained on";
  EXPECT_EQ(seen.size(), 16);
  EXPECT_FALSE(PrepareTrainingImages(TenAndSix(), 10, 3).ok());

  const TrainingImages none = PrepareTrainingImages(TenAndSix(false), 2, 3).value();
  EXPECT_EQ(none.labelled, nullptr);
  EXPECT_EQ(none.all->size(), 4);
  EXPECT_EQ(none.held_out->label(1), kNoLabel);
}

TEST(TrainingImagesTest, AStageGetsWhatItMayUseOrIsRefusedByName) {
  const TrainingImages images = PrepareTrainingImages(TenAndSix(), 0, 3).value();
  const TrainingImages none = PrepareTrainingImages(TenAndSix(false), 0, 3).value();
  StagePlan head{.name = "head", .steps = 1, .uses_labels = true};
  StagePlan mimic{.name = "mimic", .steps = 1};
  StagePlan open{.name = "open", .steps = 1, .unlabelled_ok = true};
  EXPECT_EQ(*ImagesOfStage(images, head, 8), images.labelled);
  EXPECT_EQ(*ImagesOfStage(images, mimic, 8), images.labelled);
  EXPECT_EQ(*ImagesOfStage(images, open, 8), images.all);
  EXPECT_EQ(*ImagesOfStage(none, open, 6), none.all);
  const auto refusal = [](const TrainingImages& from, const StagePlan& stage, uint32_t batch) {
    return std::string(ImagesOfStage(from, stage, batch).status().message());
  };
  EXPECT_THAT(refusal(none, head, 1), HasSubstr("stage 'head' reads labels, but no training image has one"));
  EXPECT_THAT(refusal(none, mimic, 1), HasSubstr("stage 'mimic' may use images with labels only"));
  EXPECT_THAT(refusal(images, head, 11),
              HasSubstr("stage 'head' has 10 training images with labels, fewer than a batch of 11"));
  EXPECT_TRUE(ImagesOfStage(images, open, 16).ok());
  EXPECT_THAT(refusal(images, open, 17), HasSubstr("stage 'open' has 16 training images"));
  head.steps = 0;
  EXPECT_TRUE(ImagesOfStage(none, head, 1).ok()) << "a stage without steps reads nothing";
  open.uses_labels = true;
  EXPECT_THAT(refusal(images, open, 1), HasSubstr("stage 'open' reads labels and may not use images without"));
}

// ---- Label maps

// As TenAndSix, of 1x2 pixels; the first id of a label map is the image's number, the second is ignored.
DataSplits TenWithMapsAndSix() {
  const auto make = [](uint8_t first, int count, bool with_maps) {
    std::vector<uint8_t> pixels, maps;
    for (int i = 0; i < count; ++i) {
      pixels.insert(pixels.end(), 2, static_cast<uint8_t>(first + i));
      maps.insert(maps.end(), {static_cast<uint8_t>(first + i), kIgnoredPixel});
    }
    if (!with_maps) maps.clear();
    return MakeMemoryDataset(1, 1, 2, 200, std::move(pixels), std::vector<int64_t>(count, kNoLabel), std::move(maps))
        .value();
  };
  return {make(0, 10, true), make(100, 2, true), make(10, 6, false)};
}

TEST(TrainingImagesTest, ImagesWithLabelMapsAreLabelled) {
  const TrainingImages images = PrepareTrainingImages(TenWithMapsAndSix(), 4, 3).value();
  ASSERT_EQ(images.labelled->size(), 6);
  ASSERT_EQ(images.held_out->size(), 4);
  for (const Dataset* part : {images.labelled.get(), images.held_out.get()}) {
    ASSERT_TRUE(part->has_label_maps());
    for (uint64_t i = 0; i < part->size(); ++i) {
      EXPECT_EQ(part->label(i), kNoLabel);
      EXPECT_EQ(LabelMap(*part, i), (std::vector<uint8_t>{Image(*part, i)[0], kIgnoredPixel})) << "image " << i;
    }
  }
  // A stage that reads labels gets them, one that may use all images gets a set in which not every image has a map.
  const StagePlan head{.name = "head", .steps = 1, .uses_labels = true};
  const StagePlan open{.name = "open", .steps = 1, .unlabelled_ok = true};
  EXPECT_EQ(*ImagesOfStage(images, head, 6), images.labelled);
  EXPECT_EQ(*ImagesOfStage(images, open, 8), images.all);
  EXPECT_EQ(images.all->size(), 12);
  EXPECT_FALSE(images.all->has_label_maps());
  // Without others, all images are the labelled ones.
  DataSplits plain = TenWithMapsAndSix();
  plain.unlabelled = nullptr;
  EXPECT_TRUE(PrepareTrainingImages(plain, 0, 3)->all->has_label_maps());
}

// Of which whole images cannot be read.
class PartsAlone : public Dataset {
 public:
  explicit PartsAlone(uint8_t first) : first_(first) {}
  uint64_t size() const override { return 4; }
  uint32_t channels() const override { return 1; }
  uint32_t height() const override { return 2; }
  uint32_t width() const override { return 2; }
  uint32_t classes() const override { return 2; }
  int64_t label(uint64_t) const override { return kNoLabel; }
  bool has_label_maps() const override { return false; }
  std::string Where(uint64_t index) const override { return std::to_string(index); }
  Status Read(uint64_t, Picture* /*out*/) const override { return absl::InternalError("was read whole"); }
  Status ReadPart(uint64_t index, const PartChooser& choose, Picture* out, DecodedPart* part) const override {
    *out = {1, 1, 1, {static_cast<uint8_t>(first_ + index)}, {}};
    *part = {2, 2, choose(2, 2), {}};
    return OkStatus();
  }

 private:
  const uint8_t first_;
};

TEST(TrainingImagesTest, PartsAreAskedOfTheSetsThatHoldTheImages) {
  DataSplits splits = TenAndSix();
  splits.train = std::make_shared<PartsAlone>(0);
  splits.unlabelled = std::make_shared<PartsAlone>(10);
  const TrainingImages images = PrepareTrainingImages(splits, 1, 3).value();
  std::set<int> seen;
  for (const auto& set : {images.labelled, images.held_out, images.all}) {
    for (uint64_t i = 0; i < set->size(); ++i) {
      Picture out;
      DecodedPart part;
      const Status status = set->ReadPart(
          i,
          [](uint32_t height, uint32_t width) {
            return WantedPart{{0, 0, height, width}, 7, 7};
          },
          &out, &part);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(part.wanted.height, 7);
      seen.insert(out.pixels[0]);
    }
  }
  EXPECT_EQ(seen, (std::set<int>{0, 1, 2, 3, 10, 11, 12, 13}));
}

}  // namespace
}  // namespace distill
