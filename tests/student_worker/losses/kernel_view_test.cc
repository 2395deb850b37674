#include "student_worker/losses/kernel_view.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

namespace distill::loss_internal {
namespace {

// A build without OpenMP runs everything on the caller's thread, and only the clock would tell.
TEST(ParallelForOfTorchTest, SharesTheWorkAmongTorchsThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  int64_t done = 0;
  ParallelForOfTorch(0, 30, 1, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
    done += end - begin;
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 3u);
  EXPECT_EQ(done, 30);
}

}  // namespace
}  // namespace distill::loss_internal
