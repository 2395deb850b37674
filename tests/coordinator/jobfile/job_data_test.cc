// data.format and data.split.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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

}  // namespace
}  // namespace distill
