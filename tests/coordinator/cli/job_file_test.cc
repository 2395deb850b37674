#include "coordinator/cli/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>

#include "common/str_cat.h"

namespace distill::cli {
namespace {

using ::testing::HasSubstr;

std::string Write(const std::string& content) {
  // Tests of this file run at the same time, each in a process of its own.
  const std::string path = StrCat(::testing::TempDir(), "job_file_test.", getpid(), ".yaml");
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

TEST(JobFileTest, ReadsUpToTheLimit) {
  const std::string path = Write(std::string(kMaxJobFileBytes, 'x'));
  const StatusOr<JobFile> file = ReadJobFile(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->content.size(), kMaxJobFileBytes);
  EXPECT_EQ(file->name, path);
  std::remove(path.c_str());
}

TEST(JobFileTest, RefusesWhatIsNoJobFile) {
  const StatusOr<JobFile> missing = ReadJobFile("/no/such/job.yaml");
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_THAT(ToStd(missing.status().message()), HasSubstr("/no/such/job.yaml"));
  EXPECT_TRUE(absl::IsNotFound(ReadJobFile(::testing::TempDir()).status()));

  const std::string path = Write(std::string(kMaxJobFileBytes + 1, 'x'));
  EXPECT_THAT(ToStd(ReadJobFile(path).status().message()), HasSubstr("larger than 1 MiB"));
  Write("");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadJobFile(path).status()));
  Write("name: x\nseed: \xff\n");
  const StatusOr<JobFile> bytes = ReadJobFile(path);
  EXPECT_TRUE(absl::IsInvalidArgument(bytes.status()));
  EXPECT_THAT(ToStd(bytes.status().message()), HasSubstr(path + ":2:7: byte 0xff is not UTF-8"));
  std::remove(path.c_str());
}

}  // namespace
}  // namespace distill::cli
