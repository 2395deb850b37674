#include "student_worker/data/test_images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using testing::EncodeJpeg;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::Picture;
using testing::WriteWithFolders;

// The order of SHA-256("0 a"), ("0 b") ..., computed by sha256sum.
TEST(TestImagesTest, FollowsTheHashesOfTheNames) {
  const std::vector<std::string> names = {"a", "b", "c", "d", "e", "f"};
  const std::vector<int64_t> labels(6, 0);
  EXPECT_EQ(ChooseTestImages({.test = 0.34, .by = "image"}, names, labels),
            (std::vector<bool>{false, true, false, false, true, false}));
  EXPECT_EQ(ChooseTestImages({.test = 0.34, .by = "image", .seed = 5}, names, labels),
            (std::vector<bool>{true, false, false, false, false, true}));
}

TEST(TestImagesTest, EveryClassGivesItsShare) {
  std::vector<std::string> names;
  std::vector<int64_t> labels;
  const std::vector<int> sizes = {1, 2, 3, 10, 101};
  for (size_t label = 0; label < sizes.size(); ++label) {
    for (int i = 0; i < sizes[label]; ++i) {
      names.push_back(StrCat(label, "/", i, ".jpg"));
      labels.push_back(static_cast<int64_t>(label));
    }
  }
  const auto count = [&](const SplitPlan& plan) {
    std::vector<int> counts(sizes.size());
    const std::vector<bool> chosen = ChooseTestImages(plan, names, labels);
    for (size_t i = 0; i < names.size(); ++i) counts[labels[i]] += chosen[i] ? 1 : 0;
    return counts;
  };
  EXPECT_THAT(count({.test = 0.2, .by = "class"}), ElementsAre(0, 1, 1, 2, 20));
  EXPECT_THAT(count({.test = 0.999, .by = "class"}), ElementsAre(0, 1, 2, 9, 100));
  const std::vector<int> together = count({.test = 0.2, .by = "image"});
  EXPECT_EQ(std::accumulate(together.begin(), together.end(), 0), 23);

  // Whatever the order; and what comes to a class moves hardly any other image.
  const SplitPlan plan{.test = 0.2, .by = "class"};
  const std::vector<bool> before = ChooseTestImages(plan, names, labels);
  std::vector<std::string> reversed(names.rbegin(), names.rend());
  std::vector<int64_t> reversed_labels(labels.rbegin(), labels.rend());
  std::vector<bool> after = ChooseTestImages(plan, reversed, reversed_labels);
  std::reverse(after.begin(), after.end());
  EXPECT_EQ(after, before);
  names.push_back("4/new.jpg");
  labels.push_back(4);
  const std::vector<bool> grown = ChooseTestImages(plan, names, labels);
  int moved = 0;
  for (size_t i = 0; i < before.size(); ++i) moved += grown[i] != before[i] ? 1 : 0;
  EXPECT_LE(moved, 1);
}

class SplitDataTest : public testing::DataRootTest {};

TEST_F(SplitDataTest, TestImagesComeFromTheTrainingFolder) {
  for (int i = 0; i < 20; ++i) {
    WriteWithFolders(Path(StrCat("d/train/", i % 2 == 0 ? "a" : "b", "/", i, ".jpg")),
                     EncodeJpeg(8, 8, 3, Picture(i % 10, 3)));
  }
  DataPlan plan{.format = "image_folder", .path = "d", .train_size = 16, .split = SplitPlan{.test = 0.2}};
  const auto data = Open(plan, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  ASSERT_EQ(data->train->size(), 16);
  ASSERT_EQ(data->test->size(), 4);
  std::set<std::string> all;
  std::map<int64_t, int> of_class;
  for (uint64_t i = 0; i < 16; ++i) all.insert(data->train->Where(i));
  for (uint64_t i = 0; i < 4; ++i) {
    all.insert(data->test->Where(i));
    ++of_class[data->test->label(i)];
  }
  EXPECT_EQ(all.size(), 20) << "each image is in one of the two";
  EXPECT_EQ(of_class[0], 2);
  // The job's seed has no part in it.
  const auto other = Open(plan, 99, 2);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(other->digest, data->digest);
  plan.split->seed = 1;
  EXPECT_NE(Open(plan, 1, 2)->digest, data->digest);
  plan.train_size = 20;
  EXPECT_THAT(std::string(Error(plan, 2).message()), HasSubstr("data.train_size is 20, but '"));
  // A picture in no class folder is told once.
  plan.train_size = 16;
  WriteWithFolders(Path("d/train/lost.jpg"), EncodeJpeg(8, 8, 3, Picture(0, 3)));
  EXPECT_THAT(std::string(Error(plan, 2).message()), ::testing::Not(HasSubstr("more")));
  std::filesystem::remove(Path("d/train/lost.jpg"));
  WriteWithFolders(Path("d/test/a/0.jpg"), EncodeJpeg(8, 8, 3, Picture(0, 3)));
  EXPECT_THAT(std::string(Error(plan, 2).message()), HasSubstr("leave data.split out, or name a folder without them"));
}

TEST_F(SplitDataTest, ClassesOfOneImageAreWarnedOf) {
  for (int i = 0; i < 5; ++i) {
    WriteWithFolders(Path(StrCat("d/train/", i == 0 ? "a" : "b", "/", i, ".jpg")), EncodeJpeg(8, 8, 3, Picture(i, 3)));
  }
  const auto data = Open({.format = "image_folder", .path = "d", .split = SplitPlan{.test = 0.5}}, 1, 2);
  ASSERT_TRUE(data.ok()) << data.status();
  EXPECT_THAT(data->warnings, ElementsAre(HasSubstr("data.split leaves 1 of 2 classes without a test image")));
}

TEST_F(SplitDataTest, ListsAndSegmentationFoldersAreSplitToo) {
  std::string list;
  for (int i = 0; i < 10; ++i) {
    WriteWithFolders(Path(StrCat("l/", i, ".jpg")), EncodeJpeg(8, 8, 3, Picture(i, 3)));
    StrAppend(&list, i, ".jpg\t", i % 2, "\n");
    WriteWithFolders(Path(StrCat("s/images/train/", i, ".jpg")), EncodeJpeg(8, 8, 3, Picture(i, 3)));
    std::vector<uint8_t> ids(64);
    for (size_t p = 0; p < ids.size(); ++p) ids[p] = static_cast<uint8_t>(p % 2);
    WriteWithFolders(Path(StrCat("s/labels/train/", i, ".png")), EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, ids));
  }
  WriteWithFolders(Path("l/train.tsv"), list);
  const auto listed = Open({.format = "image_list", .path = "l", .split = SplitPlan{.test = 0.4}}, 1, 2);
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_EQ(listed->test->size(), 4);
  EXPECT_EQ(listed->train->size(), 6);
  DataPlan plan{.format = "segmentation_folder", .path = "s", .split = SplitPlan{.test = 0.3, .by = "image"}};
  const auto pixels = Open(plan, 1, 2);
  ASSERT_TRUE(pixels.ok()) << pixels.status();
  EXPECT_EQ(pixels->test->size(), 3);
  EXPECT_EQ(pixels->train->size(), 7);
  EXPECT_EQ(testing::LabelMap(*pixels->test, 0).size(), 64);
  WriteWithFolders(Path("s/images/val/x.jpg"), EncodeJpeg(8, 8, 3, Picture(0, 3)));
  EXPECT_THAT(std::string(Error(plan, 2).message()), HasSubstr("leave data.split out"));
  // Nothing to choose from.
  EXPECT_THAT(std::string(Error({.format = "image_list", .path = "none", .split = SplitPlan{.test = 0.3}}).message()),
              HasSubstr("does not exist"));
}

}  // namespace
}  // namespace distill
