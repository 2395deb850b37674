// Whose fault an error is: what the coordinator makes of a failed rank hangs on it. No torch here.
//
// Whoever raises an error and knows marks it (common/failure_kind.h). Otherwise the Status's code decides:
//
// clang-format off
// kInvalidArgument, kFailedPrecondition,       job      the plan contradicts itself, the data or the weights; a loss is
// kOutOfRange, kUnimplemented, kAlreadyExists           no number. Every worker would come to the same end.
// kNotFound, kPermissionDenied, kDataLoss      worker   data, weights or folders that are missing, closed or damaged
//                                                       on this machine; others may have them.
// kResourceExhausted                           worker   its disk or its memory is full.
// kInternal, kUnknown                          worker   its device failed, or something that nobody foresaw.
// kUnauthenticated                             worker   its token or certificate is refused.
// kUnavailable, kDeadlineExceeded, kAborted,   passing  a lost peer, no teacher, the coordinator away.
// kCancelled
// clang-format on
#ifndef DISTILL_STUDENT_WORKER_TRAIN_FAILURE_CLASS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_FAILURE_CLASS_H_

#include "common/failure_kind.h"
#include "common/status.h"

namespace distill {

// REQUIRES: !status.ok().
FailureKind ClassOf(const Status& status);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_FAILURE_CLASS_H_
