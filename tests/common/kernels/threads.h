// A ParallelFor for tests: `threads` threads, ranges of uneven lengths.
#ifndef DISTILL_TESTS_COMMON_KERNELS_THREADS_H_
#define DISTILL_TESTS_COMMON_KERNELS_THREADS_H_

#include <algorithm>
#include <thread>
#include <vector>

#include "common/kernels/parallel_for.h"

namespace distill {

inline ParallelFor Threads(int threads) {
  return [threads](int64_t begin, int64_t end, int64_t /*grain*/, const ParallelBody& body) {
    std::vector<std::thread> running;
    for (int i = 0; i < threads && begin < end; ++i) {
      const int64_t left = end - begin;
      const int64_t take = i + 1 == threads ? left : std::min(left, left / 3 + 1);
      running.emplace_back([&body, begin, take] { body(begin, begin + take); });
      begin += take;
    }
    for (std::thread& thread : running) thread.join();
  };
}

}  // namespace distill

#endif  // DISTILL_TESTS_COMMON_KERNELS_THREADS_H_
