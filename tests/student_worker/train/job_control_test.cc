#include "student_worker/train/job_control.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(JobControlTest, RevokeCallsTheAbortFunctionWheneverItIsSet) {
  JobControl control({});
  int calls = 0;
  control.SetAbort([&] { ++calls; });
  EXPECT_FALSE(control.revoked());
  control.Revoke();
  EXPECT_TRUE(control.revoked());
  EXPECT_EQ(calls, 1);
  control.SetAbort([&] { calls += 10; });  // the group was formed after the revocation
  EXPECT_EQ(calls, 11);
  control.SetAbort(nullptr);
  control.Revoke();
  EXPECT_EQ(calls, 11);
}

TEST(JobControlTest, TeachersAreDeliveredOncePerChange) {
  JobControl control({{"t0", "127.0.0.1:1", "m", "d"}});
  uint64_t version = 0;
  std::vector<TeacherEndpoint> teachers;
  EXPECT_TRUE(control.TeachersChanged(&version, &teachers));
  ASSERT_EQ(teachers.size(), 1u);
  EXPECT_FALSE(control.TeachersChanged(&version, &teachers));
  control.SetTeachers({});
  EXPECT_TRUE(control.TeachersChanged(&version, &teachers));
  EXPECT_TRUE(teachers.empty());
}

TEST(JobControlTest, StopRequestsAreSeparate) {
  JobControl control({});
  control.Cancel();
  EXPECT_TRUE(control.cancelled());
  EXPECT_FALSE(control.terminating());
  control.Terminate();
  EXPECT_TRUE(control.terminating());
  EXPECT_FALSE(control.revoked());
}

}  // namespace
}  // namespace distill
