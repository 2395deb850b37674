// data.transforms and data.on_bad_image.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string WithData(const std::string& more) {
  return With(kPresetJob, "train_size: 60000}", "train_size: 60000, " + more + "}");
}

TEST(JobTransformsTest, ListsAreReadWithTheirDefaults) {
  const StatusOr<ExpandedJob> job =
      Expand(WithData("transforms: {train: [{random_resized_crop: {size: 28, scale: [0.5, 1]}}, horizontal_flip, "
                      "{pad_crop: {padding: 4}}], "
                      "test: [{resize: {size: 32}}, {center_crop: {size: [28, 28]}}]}"));
  ASSERT_TRUE(job.ok()) << job.status();
  const DataPlan& data = job->plan.data;
  ASSERT_EQ(data.train_transforms.size(), 3);
  EXPECT_EQ(data.train_transforms[0].type, "random_resized_crop");
  EXPECT_THAT(data.train_transforms[0].values.at("size"), ElementsAre(28));
  EXPECT_THAT(data.train_transforms[0].values.at("scale"), ElementsAre(0.5, 1));
  EXPECT_THAT(data.train_transforms[0].values.at("ratio"), ElementsAre(0.75, 4.0 / 3));
  EXPECT_THAT(data.train_transforms[1].values.at("p"), ElementsAre(0.5));
  EXPECT_THAT(data.train_transforms[2].values.at("fill"), ElementsAre(0));
  ASSERT_EQ(data.test_transforms.size(), 2);
  EXPECT_THAT(data.test_transforms[1].values.at("size"), ElementsAre(28, 28));
  EXPECT_EQ(data.on_bad_image, "fail");
  EXPECT_THAT(Expand(kPresetJob)->plan.data.train_transforms, IsEmpty());
}

TEST(JobTransformsTest, WhatIsWrongIsToldWithItsPlace) {
  const auto refusal = [](const std::string& list) { return Refusal(WithData("transforms: {" + list + "}")); };
  EXPECT_THAT(refusal("train: horizontal_flip"), HasSubstr("data.transforms.train: expected a list of transforms"));
  EXPECT_THAT(refusal("train: [flip]"), HasSubstr("data.transforms.train[0]: unknown transform 'flip'"));
  EXPECT_THAT(refusal("train: [horizontal_flip, [1]]"),
              HasSubstr("data.transforms.train[1]: expected the name of a transform"));
  EXPECT_THAT(refusal("train: [{horizontal_flip: {p: 0.5}, pad_crop: {padding: 4}}]"), HasSubstr("a map of 2 keys"));
  EXPECT_THAT(refusal("train: [{horizontal_flip: {q: 0.5}}]"),
              HasSubstr("unknown key 'q' in data.transforms.train[0].horizontal_flip"));
  EXPECT_THAT(refusal("train: [{horizontal_flip: {p: often}}]"), HasSubstr("expected a number"));
  EXPECT_THAT(refusal("train: [{horizontal_flip: {p: 2}}]"),
              HasSubstr("horizontal_flip.p is 2; it must be one number in [0, 1]"));
  EXPECT_THAT(refusal("train: [{horizontal_flip: 0.5}]"), HasSubstr("data.transforms.train[0].horizontal_flip"));
  EXPECT_THAT(refusal("train: [pad_crop]"), HasSubstr("pad_crop needs 'padding'"));
  EXPECT_THAT(refusal("test: [horizontal_flip]"), HasSubstr("data.transforms.test[0]: horizontal_flip is random"));
  EXPECT_THAT(refusal("train: [random_scale]"),
              HasSubstr("data.transforms.train: random_scale leaves pictures of many sizes"));
  EXPECT_THAT(refusal("train: [{random_crop: {size: 32}}]"),
              HasSubstr("data.transforms.train: makes pictures of [32, 32] (height, width), the student takes "
                        "student.image [28, 28]"));
  EXPECT_THAT(refusal("valid: []"), HasSubstr("unknown key 'valid' in data.transforms"));
  EXPECT_THAT(Refusal(WithData("holdout: 64, transforms: {train: [{random_crop: {size: 28}}]}")),
              HasSubstr("data.transforms.test: held-out images are training images"));
  EXPECT_THAT(Refusal(WithData("augment: {}")), HasSubstr("unknown key 'augment'"));
}

TEST(JobTransformsTest, BadImagesAreSkippedWhereTheJobSaysSo) {
  const auto folder = [](const std::string& more) { return WithData("format: image_folder, " + more); };
  const StatusOr<ExpandedJob> job = Expand(folder("on_bad_image: skip, bad_image_limit: 0.05"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.on_bad_image, "skip");
  EXPECT_EQ(job->plan.data.bad_image_limit, 0.05);
  EXPECT_THAT(Refusal(folder("on_bad_image: ignore")), HasSubstr("data.on_bad_image: unknown value 'ignore'"));
  EXPECT_THAT(Refusal(folder("on_bad_image: skip, bad_image_limit: 2")), HasSubstr("2 is out of range"));
  EXPECT_THAT(Refusal(folder("bad_image_limit: 0.5")), HasSubstr("the limit of on_bad_image: skip, which is not set"));
  EXPECT_THAT(Refusal(WithData("on_bad_image: skip")), HasSubstr("IDX files hold plain pixels"));
}

TEST(JobTransformsTest, RandAugmentIsForOneLabelAnImage) {
  EXPECT_THAT(Refusal(WithData("transforms: {train: [{rand_augment: {magnitude: 10, num_magnitude_bins: 10}}]}")),
              HasSubstr("rand_augment.magnitude is 10; it must be below num_magnitude_bins, which is 10"));
  const std::string streets = R"yaml(name: streets
batch_size: 16
student: {arch: fcn_resnet18, width: 16, num_classes: 3, in_channels: 3, image: [32, 32]}
data: {format: segmentation_folder, path: cities, train_size: 160, transforms: {train: [rand_augment]}}
preset: scratch
budget: {steps: 10}
)yaml";
  EXPECT_THAT(Refusal(streets), HasSubstr("rand_augment shears, shifts and turns pictures without their label maps"));
}

}  // namespace
}  // namespace distill
