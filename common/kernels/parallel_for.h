// How a kernel spreads its work over threads it does not own: the caller passes a parallel-for, so that a program has
// one thread pool (torch's, say: at::parallel_for fits, in a file compiled with OpenMP) and a kernel none.
#ifndef DISTILL_COMMON_KERNELS_PARALLEL_FOR_H_
#define DISTILL_COMMON_KERNELS_PARALLEL_FOR_H_

#include <cstdint>
#include <functional>

namespace distill {

// The work on indices [begin, end). Called from any thread, several at once, on ranges that do not overlap. Never
// throws.
using ParallelBody = std::function<void(int64_t begin, int64_t end)>;

// Calls `body` on ranges that cover [begin, end) exactly once, and returns when all of them are done. `grain` >= 1 is
// the smallest range worth a thread. The split is the caller's business: no kernel's result depends on it.
using ParallelFor = std::function<void(int64_t begin, int64_t end, int64_t grain, const ParallelBody& body)>;

// Everything on the calling thread.
inline void SerialFor(int64_t begin, int64_t end, int64_t /*grain*/, const ParallelBody& body) {
  if (begin < end) body(begin, end);
}

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_PARALLEL_FOR_H_
