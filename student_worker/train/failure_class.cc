#include "student_worker/train/failure_class.h"

namespace distill {

FailureKind ClassOf(const Status& status) {
  if (const auto marked = KindOf(status); marked.has_value()) return *marked;
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kOutOfRange:
    case StatusCode::kUnimplemented:
    case StatusCode::kAlreadyExists:
      return FailureKind::kJob;
    case StatusCode::kUnavailable:
    case StatusCode::kDeadlineExceeded:
    case StatusCode::kAborted:
    case StatusCode::kCancelled:
      return FailureKind::kPassing;
    default:
      return FailureKind::kWorker;
  }
}

}  // namespace distill
