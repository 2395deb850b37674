// Threads for handlers that may wait for the disk, so that gRPC's own few threads never do: with those stuck,
// heartbeats, rendezvous and probes would stop too.
//
// Thread-safe. The destructor runs what is queued, then joins.
#ifndef DISTILL_COORDINATOR_SERVICES_WORKER_POOL_H_
#define DISTILL_COORDINATOR_SERVICES_WORKER_POOL_H_

#include <deque>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {

class WorkerPool {
 public:
  // Threads are named NAME-0, NAME-1, ...: at most 15 letters.
  WorkerPool(const std::string& name, int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Runs `task` soon, on one of the threads. It must not throw.
  void Post(std::function<void()> task);

 private:
  void Loop();

  absl::Mutex mutex_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;  // constant after construction
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_WORKER_POOL_H_
