// What logs, metrics and people call a FailureKind.
#ifndef DISTILL_COMMON_FAILURE_KIND_NAME_H_
#define DISTILL_COMMON_FAILURE_KIND_NAME_H_

#include "common/failure_kind.h"

namespace distill {

// "job", "worker", "passing".
constexpr const char* Name(FailureKind kind) {
  switch (kind) {
    case FailureKind::kJob:
      return "job";
    case FailureKind::kWorker:
      return "worker";
    case FailureKind::kPassing:
      return "passing";
  }
  return "unknown";
}

}  // namespace distill

#endif  // DISTILL_COMMON_FAILURE_KIND_NAME_H_
