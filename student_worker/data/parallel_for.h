// A loop over files on a few threads.
#ifndef DISTILL_STUDENT_WORKER_DATA_PARALLEL_FOR_H_
#define DISTILL_STUDENT_WORKER_DATA_PARALLEL_FOR_H_

#include <cstddef>
#include <functional>

#include "common/status.h"

namespace distill {

// Runs fn(i) for i in [0, count) on two threads (data-dec-0, data-dec-1) and waits for them. The error of the smallest
// failing index that was reached; after the first one no further index is begun. An exception, which can only mean that
// memory ran out, becomes kResourceExhausted.
Status ParallelFor(size_t count, const std::function<Status(size_t)>& fn);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PARALLEL_FOR_H_
