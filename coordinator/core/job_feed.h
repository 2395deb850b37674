// Tells watchers that a job has changed: state, progress, stages or events. What changed, they read from the store.
//
// Thread-safe. Callbacks run on the thread that made the change, without any lock; they must be quick.
#ifndef DISTILL_COORDINATOR_CORE_JOB_FEED_H_
#define DISTILL_COORDINATOR_CORE_JOB_FEED_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {

class JobFeed {
 public:
  using Callback = std::function<void()>;
  // Returns a ticket for Unsubscribe.
  uint64_t Subscribe(const std::string& job_id, Callback callback);
  void Unsubscribe(uint64_t ticket);
  // Calls the job's callbacks. A callback may still run once after its Unsubscribe returned: it must hold what it
  // needs.
  void Notify(const std::string& job_id);
  size_t watchers() const;

 private:
  struct Watcher {
    std::string job_id;
    Callback callback;
  };
  mutable absl::Mutex mutex_;
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<uint64_t, Watcher> watchers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_JOB_FEED_H_
