// Data sets that are read picture by picture: what stays in memory changes nothing, and bad pictures follow the job's
// rule.
#include "student_worker/data/file_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <filesystem>
#include <fstream>

#include "common/str_cat.h"
#include "student_worker/data/sample_reader.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::EncodeJpeg;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::Image;
using testing::TarEnd;
using testing::TarMember;
using testing::WriteWithFolders;

constexpr int kImages = 12;

class FileDatasetTest : public testing::DataRootTest {
 protected:
  // Pictures of many sizes, [8 + 3 * i, 10 + 2 * i].
  static std::string File(int i) {
    const int height = 8 + 3 * i, width = 10 + 2 * i;
    std::vector<uint8_t> pixels;
    for (int p = 0; p < height * width * 3; ++p) pixels.push_back(static_cast<uint8_t>(p * 5 / 3 + i * 20));
    return i % 2 == 0 ? EncodeJpeg(height, width, 3, pixels) : EncodePng(height, width, PNG_COLOR_TYPE_RGB, 8, pixels);
  }
  static std::string Name(int i) { return StrCat(i % 2 == 0 ? "a/" : "b/", i + 10, i % 2 == 0 ? ".jpg" : ".png"); }

  void WriteFolder(const std::string& folder) {
    for (const char* split : {"train", "test"}) {
      for (int i = 0; i < kImages; ++i) WriteWithFolders(Path(StrCat(folder, "/", split, "/", Name(i))), File(i));
    }
  }

  static DataPlan Plan(const std::string& path) {
    return {.format = "image_folder",
            .path = path,
            .train_transforms = {{"random_resized_crop", {{"size", {16, 12}}}}, {"horizontal_flip", {}}},
            .test_transforms = {{"resize", {{"size", {18}}}}, {"center_crop", {{"size", {16, 12}}}}}};
  }

  struct Opened {
    DataSplits splits;
    std::shared_ptr<const SampleReader> train, test;
  };
  StatusOr<Opened> OpenReaders(const DataPlan& plan, const DataOptions& options = {}) {
    JobPlan job;
    job.seed = 4;
    job.data = plan;
    Opened opened;
    const WantedImages want{.classes = 2, .channels = 3, .height = 16, .width = 12};
    DISTILL_ASSIGN_OR_RETURN(opened.splits, OpenDataset(plan, root_, 1, want, options));
    DISTILL_ASSIGN_OR_RETURN(const SampleReaders readers, SampleReaders::Create(job, opened.splits));
    DISTILL_ASSIGN_OR_RETURN(opened.train, readers.ForTraining(opened.splits.train));
    DISTILL_ASSIGN_OR_RETURN(opened.test, readers.ForMeasuring(opened.splits.test));
    return opened;
  }

  static std::vector<uint8_t> AllPixels(const Opened& opened) {
    std::vector<uint8_t> pixels;
    std::vector<uint32_t> ids;
    for (uint32_t id = 0; id < opened.train->size(); ++id) ids.push_back(id);
    for (const auto& samples : {opened.train->Read(ids, 0), opened.train->Read(ids, 1), opened.test->Read(ids, 0)}) {
      EXPECT_TRUE(samples.ok()) << samples.status();
      if (samples.ok()) pixels.insert(pixels.end(), samples->pixels.begin(), samples->pixels.end());
    }
    return pixels;
  }
};

TEST_F(FileDatasetTest, WhatStaysInMemoryAndHowManyThreadsReadChangesNothing) {
  WriteFolder("d");
  const auto first = OpenReaders(Plan("d"));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->splits.train->height(), 0) << "many sizes";
  const std::vector<uint8_t> expected = AllPixels(*first);
  EXPECT_EQ(expected.size(), 3 * kImages * 3 * 16 * 12);
  for (const CacheMode cache : {CacheMode::kAuto, CacheMode::kNone, CacheMode::kEncoded, CacheMode::kDecoded}) {
    for (const uint64_t bytes : {uint64_t{0}, uint64_t{5000}, uint64_t{1} << 30}) {
      for (const uint32_t threads : {1u, 4u}) {
        const auto opened = OpenReaders(Plan("d"), {.threads = threads, .cache = cache, .cache_bytes = bytes});
        ASSERT_TRUE(opened.ok()) << opened.status();
        for (int again = 0; again < 2; ++again) {
          EXPECT_EQ(AllPixels(*opened), expected) << static_cast<int>(cache) << ", " << bytes << " bytes";
        }
        EXPECT_EQ(opened->splits.digest, first->splits.digest);
      }
    }
  }
}

TEST_F(FileDatasetTest, ArchivesAreReadWhereTheyLie) {
  WriteFolder("d");
  std::string tar;
  for (int i = 0; i < kImages; ++i) tar += TarMember(Name(i), File(i));
  tar += TarEnd();
  for (const char* split : {"train", "test"}) {
    WriteWithFolders(Path(StrCat("plain/", split, ".tar")), tar);
    WriteWithFolders(Path(StrCat("gzip/", split, ".tar.gz")), testing::Gzip(tar));
  }
  const std::vector<uint8_t> expected = AllPixels(OpenReaders(Plan("d")).value());
  const DataOptions none{.cache = CacheMode::kNone};
  for (const char* path : {"plain", "gzip"}) {
    const auto opened = OpenReaders(Plan(path), none);
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(AllPixels(*opened), expected) << path;
  }
  // Of a plain archive nothing is held: what is written over it shows.
  const auto opened = OpenReaders(Plan("plain"), none).value();
  std::fstream file(Path("plain/train.tar"), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(512);  // the first member's content
  file << "not a picture any more";
  file.close();
  const Status status = opened.train->ReadRange(0, 1).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("plain/train.tar:a/10.jpg"));
  EXPECT_TRUE(opened.train->ReadRange(1, 5).ok());
}

TEST_F(FileDatasetTest, DamageBehindTheHeaderIsFoundAtOnceOrWhenItIsRead) {
  WriteFolder("d");
  const std::string bad = Path("d/train/" + Name(0));  // image 0 of class a
  WriteWithFolders(bad, File(0).substr(0, File(0).size() - 20));
  const Status at_once = OpenReaders(Plan("d")).status();
  EXPECT_EQ(at_once.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(at_once.message()), HasSubstr(bad));
  const auto lazy = OpenReaders(Plan("d"), {.cache = CacheMode::kNone});
  ASSERT_TRUE(lazy.ok()) << lazy.status();
  const Status later = lazy->train->ReadRange(0, 4).status();
  EXPECT_EQ(later.code(), StatusCode::kDataLoss);
  EXPECT_THAT(std::string(later.message()), HasSubstr(bad));
  EXPECT_THAT(std::string(later.message()), HasSubstr("cannot be decoded"));
  EXPECT_TRUE(lazy->train->ReadRange(1, 4).ok());
}

TEST_F(FileDatasetTest, BadPicturesAreSkippedUpToALimitInTheSameWayWheneverTheyAreFound) {
  WriteFolder("d");
  const std::string truncated = Path("d/train/" + Name(0)), no_picture = Path("d/test/" + Name(3));
  WriteWithFolders(truncated, File(0).substr(0, File(0).size() - 20));
  WriteWithFolders(no_picture, "an error page");
  DataPlan plan = Plan("d");
  EXPECT_FALSE(OpenReaders(plan).ok());
  plan.on_bad_image = "skip";
  plan.bad_image_limit = 2.0 / (2 * kImages);
  std::vector<std::vector<uint8_t>> pixels;
  for (const CacheMode cache : {CacheMode::kAuto, CacheMode::kNone}) {
    const auto opened = OpenReaders(plan, {.cache = cache});
    ASSERT_TRUE(opened.ok()) << opened.status();
    EXPECT_EQ(opened->train->size(), kImages) << "numbers of images stay";
    // In training the next one stands for it, with that one's label and this one's crop; in measuring nothing does.
    const auto train = opened->train->Read(std::vector<uint32_t>{0, 1}, 3);
    ASSERT_TRUE(train.ok()) << train.status();
    EXPECT_THAT(train->labels, ElementsAre(0, 0));
    EXPECT_NE(train->pixels, std::vector<uint8_t>(train->pixels.size()));
    uint32_t id = 0;
    while (opened->splits.test->Where(id) != no_picture) ++id;
    const auto test = opened->test->ReadRange(id, 2);
    ASSERT_TRUE(test.ok()) << test.status();
    EXPECT_THAT(test->labels, ElementsAre(kNoLabel, 1));
    EXPECT_EQ(test->visible[0], VisibleRect());
    pixels.push_back(AllPixels(*opened));
    EXPECT_EQ(opened->splits.bad_images->count(), 2);
    std::string news;
    for (const std::string& text : opened->splits.warnings) news += text;
    for (const std::string& text : opened->splits.bad_images->TakeNews()) news += text;
    EXPECT_THAT(news, HasSubstr(truncated));
    EXPECT_THAT(news, HasSubstr(no_picture));
    EXPECT_TRUE(opened->splits.bad_images->TakeNews().empty()) << "told once";
  }
  EXPECT_EQ(pixels[0], pixels[1]);
  plan.bad_image_limit = 1.0 / (2 * kImages);
  const std::string over = std::string(OpenReaders(plan).status().message());
  EXPECT_THAT(over, HasSubstr("2 of 24 pictures cannot be decoded, over data.bad_image_limit"));
  const auto lazy = OpenReaders(plan, {.cache = CacheMode::kNone});
  ASSERT_TRUE(lazy.ok()) << "one of them is not known yet: " << lazy.status();
  EXPECT_THAT(std::string(lazy->train->ReadRange(0, 2).status().message()), HasSubstr("over data.bad_image_limit"));
}

TEST_F(FileDatasetTest, ADiskThatFailsIsNoBadPicture) {
  WriteFolder("d");
  DataPlan plan = Plan("d");
  plan.on_bad_image = "skip";
  plan.bad_image_limit = 1;
  const auto opened = OpenReaders(plan, {.cache = CacheMode::kNone});
  ASSERT_TRUE(opened.ok()) << opened.status();
  const std::string file = Path("d/train/" + Name(0));
  fs::remove(file);
  fs::create_directory(file);  // reading it fails, opening does not
  EXPECT_EQ(opened->train->ReadRange(0, 1).status().code(), StatusCode::kUnavailable);
}

TEST_F(FileDatasetTest, PicturesOfManySizesNeedTransforms) {
  WriteFolder("d");
  DataPlan plan = Plan("d");
  plan.test_transforms.clear();
  const std::string message(OpenReaders(plan).status().message());
  EXPECT_THAT(message, HasSubstr("nother size than"));
  EXPECT_THAT(message, HasSubstr("data.transforms"));
}

TEST_F(FileDatasetTest, TransformsToAnotherSizeThanTheStudentsAreRefused) {
  WriteFolder("d");
  DataPlan plan = Plan("d");
  plan.test_transforms = {{"resize", {{"size", {12, 16}}}}};
  EXPECT_THAT(std::string(OpenReaders(plan).status().message()),
              HasSubstr("makes pictures of [12, 16] (height, width), the student takes [16, 12]"));
}

// Sides of 24 to 57 pixels: shrunk by 3, then cut; label maps and pictures alike.
TEST_F(FileDatasetTest, SegmentationOfManySizesMovesLabelMapsWithTheirPictures) {
  for (const char* split : {"train", "test"}) {
    for (int i = 0; i < 6; ++i) {
      const int height = 24 + 3 * i, width = 60 - 6 * i;
      std::vector<uint8_t> pixels, ids;
      for (int p = 0; p < height * width; ++p) {
        const bool right = p % width >= width / 2;
        for (int c = 0; c < 3; ++c) pixels.push_back(right ? 200 : 40);
        ids.push_back(right ? 1 : 0);
      }
      WriteWithFolders(Path(StrCat("s/images/", split, "/", i, ".png")),
                       EncodePng(height, width, PNG_COLOR_TYPE_RGB, 8, pixels));
      WriteWithFolders(Path(StrCat("s/labels/", split, "/", i, ".png")),
                       EncodePng(height, width, PNG_COLOR_TYPE_GRAY, 8, ids));
    }
  }
  DataPlan plan = Plan("s");
  plan.format = "segmentation_folder";
  plan.shrink = 3;
  plan.train_transforms = {
      {"random_scale", {{"scale", {0.7, 2}}}}, {"random_crop", {{"size", {16, 12}}}}, {"horizontal_flip", {}}};
  plan.test_transforms = {{"resize", {{"size", {16, 12}}}}};
  for (const CacheMode cache : {CacheMode::kAuto, CacheMode::kNone}) {
    const auto opened = OpenReaders(plan, {.cache = cache});
    ASSERT_TRUE(opened.ok()) << opened.status();
    for (const auto& samples : {opened->train->ReadRange(0, 6), opened->test->ReadRange(0, 6)}) {
      ASSERT_TRUE(samples.ok()) << samples.status();
      ASSERT_EQ(samples->label_maps.size(), 6 * 16 * 12);
      for (size_t i = 0; i < 6; ++i) {
        for (size_t p = 0; p < 16 * 12; ++p) {
          const uint8_t value = samples->pixels[i * 3 * 16 * 12 + p], id = samples->label_maps[i * 16 * 12 + p];
          if (value < 90 && value > 0) {
            ASSERT_EQ(id, 0);
          }
          if (value > 160) {
            ASSERT_EQ(id, 1);
          }
        }
      }
    }
  }
  plan.shrink = 5;
  EXPECT_THAT(std::string(OpenReaders(plan).status().message()), HasSubstr("sides that data.shrink 5 does not divide"));
}

}  // namespace
}  // namespace distill
