// Status and StatusOr: how fallible functions of this project report what may happen.
//
// The vocabulary is Abseil's, whose codes are gRPC's, so a code means the same in process and on the wire. A code is an
// instruction:
//   kInvalidArgument     the caller's input is wrong; do not retry
//   kNotFound            the named thing does not exist
//   kFailedPrecondition  the world is not as required (digest changed, file corrupt); do not retry
//   kAborted             membership changed; drop the group and rejoin
//   kUnavailable         try again, or take another teacher
//   kResourceExhausted   a limit (message size, disk) was hit; the message names it
//   kDataLoss            stored bytes are damaged
//   kCancelled           somebody asked to stop
// Messages carry the facts and the remedy: which file, which value, what to do.
#ifndef DISTILL_COMMON_STATUS_H_
#define DISTILL_COMMON_STATUS_H_

#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distill {

using absl::Status;
using absl::StatusCode;
using absl::StatusOr;
inline Status OkStatus() { return absl::OkStatus(); }

// `context`: message, same code and payloads.
Status Annotate(const Status& status, std::string_view context);

}  // namespace distill

#define DISTILL_CONCAT_INNER(a, b) a##b
#define DISTILL_CONCAT(a, b) DISTILL_CONCAT_INNER(a, b)
#define DISTILL_RETURN_IF_ERROR(expr)                \
  do {                                               \
    ::distill::Status distill_status = (expr);       \
    if (!distill_status.ok()) return distill_status; \
  } while (false)
#define DISTILL_ASSIGN_OR_RETURN(lhs, expr) \
  DISTILL_ASSIGN_OR_RETURN_IMPL(DISTILL_CONCAT(distill_status_or_, __LINE__), lhs, expr)
#define DISTILL_ASSIGN_OR_RETURN_IMPL(var, lhs, expr) \
  auto var = (expr);                                  \
  if (!var.ok()) return var.status();                 \
  lhs = std::move(var).value()

#endif  // DISTILL_COMMON_STATUS_H_
