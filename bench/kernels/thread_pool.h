// A ParallelFor over threads that stay: what torch's pool is to the service, without torch.
#ifndef DISTILL_BENCH_KERNELS_THREAD_POOL_H_
#define DISTILL_BENCH_KERNELS_THREAD_POOL_H_

#include <pthread.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/kernels/parallel_for.h"

namespace distill {

// Splits each range evenly over `threads` threads, the caller being one of them. Run() is called by one thread at a
// time.
class ThreadPool {
 public:
  explicit ThreadPool(int threads) : threads_(threads) {
    for (int i = 1; i < threads; ++i) {
      workers_.emplace_back([this, i] {
        pthread_setname_np(pthread_self(), "bench-pool");
        Work(i);
      });
    }
  }
  ~ThreadPool() {
    {
      absl::MutexLock lock(&mutex_);
      stop_ = true;
    }
    for (std::thread& worker : workers_) worker.join();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  void Run(int64_t begin, int64_t end, int64_t grain, const ParallelBody& body) {
    const int64_t parts = std::clamp<int64_t>((end - begin) / std::max<int64_t>(1, grain), 1, threads_);
    if (begin >= end) return;
    if (parts == 1) return body(begin, end);
    {
      absl::MutexLock lock(&mutex_);
      job_ = {begin, end, parts, &body};
      running_ = static_cast<int>(parts) - 1;
      ++round_;
    }
    body(Edge(0, begin, end, parts), Edge(1, begin, end, parts));
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](int* running) { return *running == 0; }, &running_));
  }
  ParallelFor parallel_for() {
    return
        [this](int64_t begin, int64_t end, int64_t grain, const ParallelBody& body) { Run(begin, end, grain, body); };
  }

 private:
  struct Job {
    int64_t begin = 0, end = 0, parts = 0;
    const ParallelBody* body = nullptr;
  };
  static int64_t Edge(int64_t part, int64_t begin, int64_t end, int64_t parts) {
    return begin + (end - begin) * part / parts;
  }

  void Work(int index) {
    int64_t seen = 0;
    while (true) {
      Job job;
      {
        absl::MutexLock lock(&mutex_);
        auto due = [this, &seen]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || round_ != seen; };
        mutex_.Await(absl::Condition(&due));
        if (stop_) return;
        seen = round_;
        job = job_;
      }
      if (index >= job.parts) continue;
      (*job.body)(Edge(index, job.begin, job.end, job.parts), Edge(index + 1, job.begin, job.end, job.parts));
      absl::MutexLock lock(&mutex_);
      --running_;
    }
  }

  const int threads_;
  std::vector<std::thread> workers_;
  absl::Mutex mutex_;
  Job job_ ABSL_GUARDED_BY(mutex_);
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace distill

#endif  // DISTILL_BENCH_KERNELS_THREAD_POOL_H_
