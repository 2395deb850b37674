// data.format, data.split, and what segmentation folders add: data.pairs, label_map, reduce_zero_label.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "common/str_cat.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

std::string WithData(const std::string& more) {
  return With(kPresetJob, "train_size: 60000}", "train_size: 60000, " + more + "}");
}

TEST(JobDataTest, FormatsOfPlainPixelsTakeNoSettingsOfPictures) {
  const StatusOr<ExpandedJob> job = Expand(WithData("format: cifar"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.format, "cifar");
  EXPECT_THAT(Refusal(WithData("format: cifar, shrink: 2")),
              HasSubstr("data.shrink: CIFAR images are taken as they are"));
  EXPECT_THAT(Refusal(WithData("format: cifar, on_bad_image: skip")), HasSubstr("CIFAR files hold plain pixels"));
  EXPECT_THAT(Refusal(WithData("format: cifar, unlabelled: more")), HasSubstr("CIFAR's files all have labels"));
  EXPECT_THAT(Refusal(WithData("format: cifar, split: {test: 0.2}")),
              HasSubstr("data.split: chooses by the names of picture files; format: cifar has test files of its own"));
  EXPECT_THAT(Refusal(WithData("format: cifra")), HasSubstr("unknown value 'cifra'; did you mean 'cifar'?"));
}

TEST(JobDataTest, SplitIsReadWithItsDefaults) {
  const StatusOr<ExpandedJob> job = Expand(WithData("format: image_list, split: {test: 0.25}"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.split, (SplitPlan{.test = 0.25, .by = "class", .seed = 0}));
  EXPECT_EQ(Expand(WithData("format: image_folder, split: {test: 0.25, by: image, seed: 7}"))->plan.data.split,
            (SplitPlan{.test = 0.25, .by = "image", .seed = 7}));
  EXPECT_FALSE(Expand(kPresetJob)->plan.data.split.has_value());
  const auto refusal = [](const std::string& split) {
    return Refusal(WithData("format: image_folder, split: " + split));
  };
  EXPECT_THAT(refusal("{by: class}"), HasSubstr("test"));
  EXPECT_THAT(refusal("{test: 0}"), HasSubstr("out of range"));
  EXPECT_THAT(refusal("{test: 1}"), HasSubstr("out of range"));
  EXPECT_THAT(refusal("{test: 0.2, by: name}"), HasSubstr("data.split.by: unknown value 'name'"));
  EXPECT_THAT(refusal("{test: 0.2, train: 0.8}"), HasSubstr("unknown key 'train' in data.split"));
  EXPECT_THAT(refusal("0.2"), HasSubstr("data.split"));
}

// A job whose `data` holds `more`.
std::string Streets(const std::string& more) {
  return With(R"yaml(name: streets
batch_size: 16
student: {arch: fcn_resnet18, width: 16, num_classes: 3, in_channels: 3, image: [32, 32]}
data: {format: segmentation_folder, path: cities, train_size: 160}
preset: scratch
budget: {steps: 10}
)yaml",
              "train_size: 160}", "train_size: 160, " + more + "}");
}

constexpr char kTrain[] = "train: {images: 'i/train/*/*_l.png', labels: 'g/train/*/*_ids.png'}";
constexpr char kTest[] = "test: {images: 'i/val/*/*_l.png', labels: 'g/val/*/*_ids.png', list: val.txt}";

TEST(JobDataTest, PairsAreReadAsPatterns) {
  const StatusOr<ExpandedJob> job = Expand(Streets(StrCat("pairs: {", kTrain, ", ", kTest, "}")));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.train_files,
            (SplitFiles{.images = "i/train/*/*_l.png", .labels = "g/train/*/*_ids.png", .list = ""}));
  EXPECT_EQ(job->plan.data.test_files->list, "val.txt");
  const auto refusal = [](const std::string& pairs) { return Refusal(Streets("pairs: {" + pairs + "}")); };
  EXPECT_THAT(refusal(kTest), HasSubstr("train"));
  EXPECT_THAT(refusal(kTrain), HasSubstr("data.pairs.test: the test images are missing"));
  const std::string with_split = StrCat("split: {test: 0.1}, pairs: {", kTrain);
  EXPECT_TRUE(Expand(Streets(with_split + "}")).ok());
  EXPECT_THAT(Refusal(Streets(StrCat(with_split, ", ", kTest, "}"))), HasSubstr("leave one of the two out"));
  const auto train = [&](const std::string& text) { return refusal(StrCat("train: {", text, "}, ", kTest)); };
  EXPECT_THAT(train("images: 'a/*.png'"), HasSubstr("labels"));
  EXPECT_THAT(train("images: 'a/*.png', labels: 'b/*/*.png'"), HasSubstr("has 2 stars, images 1"));
  EXPECT_THAT(train("images: 'a/*.png', labels: 'a/*.png'"), HasSubstr("names the images themselves"));
  EXPECT_THAT(train("images: 'a/b.png', labels: 'a/*.png'"), HasSubstr("the pattern 'a/b.png' has no '*'"));
  EXPECT_THAT(train("images: '../*.png', labels: 'a/*.png'"), HasSubstr("part '..'"));
  EXPECT_THAT(train("images: 'a/*.png', labels: 'b/*.png', list: ../x"), HasSubstr("'../x'"));
  EXPECT_THAT(refusal(StrCat(kTrain, ", test", std::string(kTrain).substr(5))), HasSubstr("names the training images"));
  EXPECT_THAT(Refusal(Streets(StrCat("unlabelled: extra, pairs: {", kTrain, ", ", kTest, "}"))),
              HasSubstr("beside data.pairs it is a pattern of images, and 'extra' has no '*'"));
  EXPECT_THAT(Refusal(WithData(StrCat("format: image_folder, pairs: {", kTrain, "}"))),
              HasSubstr("which only format: segmentation_folder has"));
}

TEST(JobDataTest, LabelMapsNumberEveryClassOfTheStudent) {
  const StatusOr<ExpandedJob> job = Expand(Streets("label_map: {7: 0, 8: 1, 11: 2, 33: 2}"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.label_map, (std::map<uint32_t, uint32_t>{{7, 0}, {8, 1}, {11, 2}, {33, 2}}));
  const auto refusal = [](const std::string& map) { return Refusal(Streets("label_map: " + map)); };
  EXPECT_THAT(refusal("{7: 0, 8: 1, 11: 3}"), HasSubstr("11 has class 3, but the student has 3 classes, 0 to 2"));
  EXPECT_THAT(refusal("{7: 0, 8: 1, 11: 1}"), HasSubstr("no id has class 2, though the student has 3 classes (ids 8 "
                                                        "and 11 have class 1)"));
  EXPECT_THAT(refusal("{256: 0}"), HasSubstr("'256' is no id of a label map's pixel"));
  EXPECT_THAT(refusal("{-1: 0}"), HasSubstr("'-1' is no id"));
  EXPECT_THAT(refusal("{7: 255}"), HasSubstr("expected a class, a whole number in [0, 254]"));
  EXPECT_THAT(refusal("{7: road}"), HasSubstr("leave ids without a class out"));
  EXPECT_THAT(refusal("{7: 0, 07: 1, 8: 1, 9: 2}"), HasSubstr("id 7 is named twice"));
  EXPECT_THAT(refusal("{7: 0, 7: 1}"), HasSubstr("duplicate key '7'"));
  EXPECT_THAT(refusal("{}"), HasSubstr("an empty one"));
  EXPECT_THAT(refusal("[0, 1, 2]"), HasSubstr("expected a map of ids to classes"));
  EXPECT_THAT(refusal("{7: 0, 8: 1, 11: 2}, ignore_label: 8"), HasSubstr("data.ignore_label says that it is no label"));
  EXPECT_THAT(refusal("{7: 0, 8: 1, 11: 2}, reduce_zero_label: true"), HasSubstr("leave one of the two out"));
  EXPECT_TRUE(Expand(Streets("reduce_zero_label: true"))->plan.data.reduce_zero_label);
  EXPECT_THAT(Refusal(WithData("reduce_zero_label: true")), HasSubstr("which only format: segmentation_folder has"));
}

}  // namespace
}  // namespace distill
