#include "coordinator/core/job_feed.h"

#include <vector>

namespace distill {

uint64_t JobFeed::Subscribe(const std::string& job_id, Callback callback) {
  absl::MutexLock lock(&mutex_);
  watchers_[next_] = {job_id, std::move(callback)};
  return next_++;
}

void JobFeed::Unsubscribe(uint64_t ticket) {
  absl::MutexLock lock(&mutex_);
  watchers_.erase(ticket);
}

void JobFeed::Notify(const std::string& job_id) {
  std::vector<Callback> callbacks;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& [ticket, watcher] : watchers_) {
      if (watcher.job_id == job_id) callbacks.push_back(watcher.callback);
    }
  }
  for (const Callback& callback : callbacks) callback();
}

size_t JobFeed::watchers() const {
  absl::MutexLock lock(&mutex_);
  return watchers_.size();
}

}  // namespace distill
