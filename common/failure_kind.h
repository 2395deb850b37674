// Whose fault a failure is, as far as the one that sees it can tell, carried by its Status: what becomes of a job hangs
// on it, and only the place where the error comes up knows it.
#ifndef DISTILL_COMMON_FAILURE_KIND_H_
#define DISTILL_COMMON_FAILURE_KIND_H_

#include <optional>

#include "common/status.h"

namespace distill {

enum class FailureKind {
  kJob,      // it fails everywhere the same way: the job ends
  kWorker,   // this worker's data, device or disk: the job goes on without this worker
  kPassing,  // a lost peer, no teacher, the coordinator away: the same workers try again
};

// The same error, marked; an earlier mark is replaced. OK stays as it is. Annotate() keeps marks.
Status WithKind(Status status, FailureKind kind);
// Nothing: not marked.
std::optional<FailureKind> KindOf(const Status& status);

// Marks an error after which this process is of no use any more (a GPU's context is lost, a thread hangs in a driver)
// and should exit with kExitTemporary, so that it is started anew.
Status WithEndOfProcess(Status status);
bool EndsProcess(const Status& status);

}  // namespace distill

#endif  // DISTILL_COMMON_FAILURE_KIND_H_
