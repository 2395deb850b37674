// Threads that read and decode pictures.
#ifndef DISTILL_STUDENT_WORKER_DATA_READ_THREADS_H_
#define DISTILL_STUDENT_WORKER_DATA_READ_THREADS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"

namespace distill {

// Thread-safe: several callers share the threads.
class ReadThreads {
 public:
  // `threads` work at a time for one caller, who is one of them: threads - 1 are started (data-1, data-2 ...), none
  // with 0 or 1.
  explicit ReadThreads(uint32_t threads);
  ~ReadThreads();  // REQUIRES: no call is under way
  ReadThreads(const ReadThreads&) = delete;
  ReadThreads& operator=(const ReadThreads&) = delete;

  // Runs fn(i) for i in [0, count) and returns when all have ended. The error of the smallest failing index that was
  // reached; after the first one no further index is begun. An exception, which can only mean that memory ran out,
  // becomes kResourceExhausted.
  Status ForEach(size_t count, const std::function<Status(size_t)>& fn);

 private:
  struct Loop;
  static void Work(Loop* loop);
  void Serve();

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // With indices left. Shared with the threads that are in it.
  std::deque<std::shared_ptr<Loop>> loops_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> threads_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_READ_THREADS_H_
