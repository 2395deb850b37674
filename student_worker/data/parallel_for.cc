#include "student_worker/data/parallel_for.h"

#include <pthread.h>

#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr int kThreads = 2;

}  // namespace

Status ParallelFor(size_t count, const std::function<Status(size_t)>& fn) {
  std::atomic<size_t> next = 0;
  absl::Mutex mutex;
  Status first;
  size_t first_index = count;
  auto run = [&](int number) {
    pthread_setname_np(pthread_self(), StrCat("data-dec-", number).c_str());
    for (size_t i = next++; i < count; i = next++) {
      Status status;
      try {
        status = fn(i);
      } catch (const std::exception& error) {  // out of memory
        status = absl::ResourceExhaustedError(StrCat("loading images: ", error.what()));
      }
      if (status.ok()) continue;
      absl::MutexLock lock(&mutex);
      if (i < first_index) {
        first = std::move(status);
        first_index = i;
      }
      next = count;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(run, i);
  for (std::thread& thread : threads) thread.join();
  return first;
}

}  // namespace distill
