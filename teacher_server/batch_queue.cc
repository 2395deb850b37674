#include "teacher_server/batch_queue.h"

#include <algorithm>
#include <utility>

namespace distill {
namespace {

bool MayJoin(const TeacherRequest& lead, const TeacherRequest& other) {
  const ImageBatch& a = lead.images;
  const ImageBatch& b = other.images;
  return !other.exclusive && a.c == b.c && a.h == b.h && a.w == b.w &&
         (lead.taps == other.taps || *lead.taps == *other.taps);
}

}  // namespace

bool BatchQueue::Push(QueuedRequest&& item) {
  absl::MutexLock lock(&mutex_);
  if (closed_) return false;
  std::deque<QueuedRequest>& mine = waiting_[item.request.client];
  if (mine.empty()) turns_.push_back(item.request.client);
  mine.push_back(std::move(item));
  ++size_;
  return true;
}

std::vector<QueuedRequest> BatchQueue::PopBatch() {
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(this, &BatchQueue::ReadyLocked));
  std::vector<QueuedRequest> batch;
  if (size_ == 0) return batch;

  uint64_t images = 0;
  auto take = [&](std::deque<QueuedRequest>& from) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    images += from.front().request.images.n;
    batch.push_back(std::move(from.front()));
    from.pop_front();
    --size_;
  };
  take(waiting_[turns_.front()]);
  for (bool joined = !batch.front().request.exclusive; joined;) {
    joined = false;
    // The leader comes last in each round: it already has its share of this one.
    for (size_t i = 1; i <= turns_.size(); ++i) {
      std::deque<QueuedRequest>& from = waiting_[turns_[i % turns_.size()]];
      if (from.empty() || !MayJoin(batch.front().request, from.front().request)) continue;
      if (images + from.front().request.images.n > max_images_) continue;
      take(from);
      joined = true;
    }
  }
  std::rotate(turns_.begin(), turns_.begin() + 1, turns_.end());
  std::erase_if(turns_, [&](uint64_t client) { return waiting_[client].empty(); });
  std::erase_if(waiting_, [](const auto& entry) { return entry.second.empty(); });
  return batch;
}

std::vector<QueuedRequest> BatchQueue::Remove(uint64_t client, std::optional<uint64_t> tag) {
  absl::MutexLock lock(&mutex_);
  std::vector<QueuedRequest> removed;
  auto entry = waiting_.find(client);
  if (entry == waiting_.end()) return removed;
  std::deque<QueuedRequest> kept;
  for (QueuedRequest& item : entry->second) {
    if (!tag || item.request.tag == *tag) {
      removed.push_back(std::move(item));
    } else {
      kept.push_back(std::move(item));
    }
  }
  size_ -= removed.size();
  entry->second = std::move(kept);
  if (entry->second.empty()) {
    waiting_.erase(entry);
    std::erase(turns_, client);
  }
  return removed;
}

void BatchQueue::Close() {
  absl::MutexLock lock(&mutex_);
  closed_ = true;
}

std::vector<QueuedRequest> BatchQueue::Clear() {
  absl::MutexLock lock(&mutex_);
  std::vector<QueuedRequest> removed;
  for (auto& [client, items] : waiting_) {
    for (QueuedRequest& item : items) removed.push_back(std::move(item));
  }
  waiting_.clear();
  turns_.clear();
  size_ = 0;
  return removed;
}

size_t BatchQueue::size() const {
  absl::MutexLock lock(&mutex_);
  return size_;
}

}  // namespace distill
