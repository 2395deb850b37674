#include "student_worker/train/failure_class.h"

#include <gtest/gtest.h>

#include <map>

namespace distill {
namespace {

TEST(FailureClassTest, EveryCodeHasAKind) {
  using enum StatusCode;
  const std::map<StatusCode, FailureKind> kinds = {
      {kInvalidArgument, FailureKind::kJob},      {kFailedPrecondition, FailureKind::kJob},
      {kOutOfRange, FailureKind::kJob},           {kUnimplemented, FailureKind::kJob},
      {kAlreadyExists, FailureKind::kJob},        {kNotFound, FailureKind::kWorker},
      {kPermissionDenied, FailureKind::kWorker},  {kDataLoss, FailureKind::kWorker},
      {kResourceExhausted, FailureKind::kWorker}, {kInternal, FailureKind::kWorker},
      {kUnknown, FailureKind::kWorker},           {kUnauthenticated, FailureKind::kWorker},
      {kUnavailable, FailureKind::kPassing},      {kDeadlineExceeded, FailureKind::kPassing},
      {kAborted, FailureKind::kPassing},          {kCancelled, FailureKind::kPassing},
  };
  for (int code = 1; code <= 16; ++code) {
    const Status status(static_cast<StatusCode>(code), "why");
    ASSERT_TRUE(kinds.contains(status.code())) << code;
    EXPECT_EQ(ClassOf(status), kinds.at(status.code())) << status;
  }
}

TEST(FailureClassTest, AMarkCountsMoreThanTheCodeWhateverIsSaidAroundIt) {
  const Status status =
      Annotate(WithKind(absl::InvalidArgumentError("no --model-root"), FailureKind::kWorker), "rank 1");
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ClassOf(status), FailureKind::kWorker);
  EXPECT_EQ(ClassOf(WithKind(status, FailureKind::kPassing)), FailureKind::kPassing);
}

}  // namespace
}  // namespace distill
