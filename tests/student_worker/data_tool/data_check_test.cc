#include "student_worker/data_tool/data_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/data_survey.h"
#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using ::testing::AllOf;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using testing::EncodePng;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::WriteWithFolders;

std::string Flat(int height, int width, uint8_t red, uint8_t green, uint8_t blue) {
  std::vector<uint8_t> pixels;
  for (int i = 0; i < height * width; ++i) pixels.insert(pixels.end(), {red, green, blue});
  return EncodePng(height, width, PNG_COLOR_TYPE_RGB, 8, pixels);
}

class DataCheckTest : public testing::DataRootTest {
 protected:
  DataCheck Check(DataPlan plan, uint32_t classes = 0) {
    plan.path = "d";
    const auto check = CheckData({.data = std::move(plan), .data_root = root_, .classes = classes});
    EXPECT_TRUE(check.ok()) << check.status();
    return check.value_or(DataCheck());
  }
};

// Worked by hand: red 0 on 4 pixels and 255 on 12; mean 0.75, std sqrt(0.75 - 0.5625).
TEST(DataSurveyTest, MeanAndStdAreOfAllPixelsAlike) {
  DataSurvey survey;
  survey.Add("train", 0, {1, 2, 2, std::vector<uint8_t>(4, 0), {}});
  survey.Add("train", 0, {1, 3, 4, std::vector<uint8_t>(12, 255), {}});
  const SplitSurvey split = survey.splits()["train"];
  EXPECT_THAT(split.Mean(), ElementsAre(DoubleNear(0.75, 1e-12)));
  EXPECT_THAT(split.Std(), ElementsAre(DoubleNear(0.4330127, 1e-6)));
}

TEST_F(DataCheckTest, TellsSizesClassesAndColours) {
  WriteWithFolders(Path("d/train/cat/1.png"), Flat(8, 10, 0, 51, 255));
  WriteWithFolders(Path("d/train/cat/2.png"), Flat(8, 10, 255, 51, 255));
  WriteWithFolders(Path("d/train/dog/1.png"), Flat(40, 20, 255, 51, 255));
  for (const char* name : {"cat", "dog"})
    WriteWithFolders(Path(StrCat("d/test/", name, "/1.png")), Flat(8, 8, 1, 2, 3));
  const DataCheck check = Check({.format = "image_folder"});
  EXPECT_TRUE(check.sound);
  EXPECT_THAT(check.text, AllOf(HasSubstr("images     3, of 3 channels"),
                                HasSubstr("2 sizes, 8x10 to 40x20 (height x width), most often 8x10 (66.7 %)"),
                                HasSubstr("8 to 15: 2, 16 to 31: 1"), HasSubstr("2: cat 2, dog 1"),
                                HasSubstr("mean       [0.9167, 0.2000, 1.0000]"),
                                HasSubstr("8x8 (height x width), all of them"), HasSubstr("nothing is wrong")))
      << check.text;
}

TEST_F(DataCheckTest, AllThatIsWrongIsNamed) {
  constexpr int kBad = 33;  // more than a job names
  for (int i = 0; i < kBad; ++i) WriteWithFolders(Path(StrCat("d/train/cat/bad", i, ".png")), "no picture");
  const std::string good = Flat(8, 10, 0, 51, 255);
  WriteWithFolders(Path("d/train/cat/good.png"), good);
  WriteWithFolders(Path("d/train/cat/cut.png"), good.substr(0, good.size() - 30));  // its header is whole
  WriteWithFolders(Path("d/train/cat/note.gif"), "GIF89a");
  WriteWithFolders(Path("d/test/cat/good.png"), good);
  const DataCheck check = Check({.format = "image_folder"});
  EXPECT_FALSE(check.sound);
  for (int i = 0; i < kBad; ++i) EXPECT_THAT(check.text, HasSubstr(StrCat("bad", i, ".png'")));
  EXPECT_THAT(check.text, AllOf(HasSubstr("cut.png'"), HasSubstr("odd:"), HasSubstr("note.gif"), HasSubstr("wrong:"),
                                HasSubstr("images     1, of 3 channels"), Not(HasSubstr("nothing is wrong"))))
      << check.text;
}

TEST_F(DataCheckTest, LabelMapsAreCounted) {
  for (const char* split : {"train", "val"}) {
    WriteWithFolders(Path(StrCat("d/images/", split, "/1.png")), Flat(2, 4, 9, 9, 9));
    WriteWithFolders(Path(StrCat("d/labels/", split, "/1.png")),
                     EncodePng(2, 4, PNG_COLOR_TYPE_GRAY, 8, {0, 0, 0, 0, 1, 1, 255, 255}));
  }
  const DataCheck check = Check({.format = "segmentation_folder"}, 2);
  EXPECT_TRUE(check.sound) << check.text;
  EXPECT_THAT(check.text, HasSubstr("0 50.0 %, 1 25.0 %, without a label 25.0 %"));
  EXPECT_THAT(Check({.format = "segmentation_folder"}, 1).text, HasSubstr("beyond the student's 1 classes"));
}

TEST_F(DataCheckTest, SetsInMemoryAreLookedAtToo) {
  const auto write = [&](const std::string& prefix, const std::string& labels) {
    const auto count = static_cast<uint32_t>(labels.size());
    WriteWithFolders(Path("d/" + prefix + "-images-idx3-ubyte"),
                     testing::Idx(0x803, {count, 2, 2}, std::string(4 * count, '\x33')));
    WriteWithFolders(Path("d/" + prefix + "-labels-idx1-ubyte"), testing::Idx(0x801, {count}, labels));
  };
  write("train", {0, 1, 1});
  write("t10k", {0, 1});
  const DataCheck check = Check({.format = "idx"});
  EXPECT_TRUE(check.sound) << check.text;
  EXPECT_THAT(check.text,
              AllOf(HasSubstr("2: 0 1, 1 2"), HasSubstr("mean       [0.2000]"), HasSubstr("std        [0.0000]")));
}

TEST_F(DataCheckTest, WhatCannotBeLookedAtIsAnError) {
  EXPECT_EQ(CheckData({.data = {.format = "idx", .path = "none"}, .data_root = root_}).status().code(),
            StatusCode::kNotFound);
  WriteWithFolders(Path("d/x"), "");
  const DataCheck check = Check({.format = "image_folder"});
  EXPECT_FALSE(check.sound);
  EXPECT_THAT(check.text, HasSubstr("'train/', 'train.tar'"));
}

}  // namespace
}  // namespace distill
