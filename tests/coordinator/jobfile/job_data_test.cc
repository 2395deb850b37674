// data.format.
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
  EXPECT_THAT(Refusal(WithData("format: cifra")), HasSubstr("unknown value 'cifra'; did you mean 'cifar'?"));
}

}  // namespace
}  // namespace distill
