#include "teacher_server/memory_budget.h"

#include <algorithm>

namespace distill {

bool MemoryBudget::TakePixels(uint64_t bytes, Time now) {
  absl::MutexLock lock(&mutex_);
  if (pixels_ > 0 && pixels_ + bytes > bytes_ / 2) {
    if (!refused_since_.has_value()) refused_since_ = now;
    return false;
  }
  refused_since_.reset();
  pixels_ += bytes;
  return true;
}

void MemoryBudget::GivePixels(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  pixels_ -= bytes;
  if (bytes > 0) refused_since_.reset();
}

bool MemoryBudget::TakeFeatures(uint64_t stream, uint64_t bytes, bool covered, Time now) {
  absl::MutexLock lock(&mutex_);
  std::deque<Waiting>& row = covered ? covered_ : uncovered_;
  const bool first = row.empty() || row.front().stream == stream;
  const uint64_t most = bytes_ / 2 - rings_;
  const uint64_t limit = covered ? most : most / 2;
  if (first && (features_ == 0 || features_ + bytes <= limit)) {
    ForgetLocked(stream);
    features_ += bytes;
    return true;
  }
  const auto is_it = [&](const Waiting& waiting) { return waiting.stream == stream; };
  if (std::none_of(row.begin(), row.end(), is_it)) {
    // Credit that came meanwhile moves it to the other row; it has waited since it first asked.
    std::deque<Waiting>& other = covered ? uncovered_ : covered_;
    const auto before = std::find_if(other.begin(), other.end(), is_it);
    row.push_back({stream, before == other.end() ? now : before->since});
    if (before != other.end()) other.erase(before);
  }
  return false;
}

void MemoryBudget::AddFeatures(int64_t bytes) {
  absl::MutexLock lock(&mutex_);
  features_ += static_cast<uint64_t>(bytes);
}

bool MemoryBudget::TakeRing(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (bytes > bytes_ / 8 - rings_) return false;
  rings_ += bytes;
  return true;
}

void MemoryBudget::GiveRing(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  rings_ -= bytes;
}

void MemoryBudget::Forget(uint64_t stream) {
  absl::MutexLock lock(&mutex_);
  ForgetLocked(stream);
}

void MemoryBudget::ForgetLocked(uint64_t stream) {
  for (auto* row : {&covered_, &uncovered_}) {
    std::erase_if(*row, [&](const Waiting& waiting) { return waiting.stream == stream; });
  }
}

std::vector<uint64_t> MemoryBudget::NextWaiting() const {
  absl::MutexLock lock(&mutex_);
  std::vector<uint64_t> next;
  for (const auto* row : {&covered_, &uncovered_}) {
    if (!row->empty()) next.push_back(row->front().stream);
  }
  return next;
}

std::optional<MemoryBudget::Time> MemoryBudget::waiting_since() const {
  absl::MutexLock lock(&mutex_);
  std::optional<Time> since = refused_since_;
  for (const auto* row : {&covered_, &uncovered_}) {
    for (const Waiting& waiting : *row) since = since.has_value() ? std::min(*since, waiting.since) : waiting.since;
  }
  return since;
}

uint64_t MemoryBudget::used() const {
  absl::MutexLock lock(&mutex_);
  return pixels_ + features_ + rings_;
}

}  // namespace distill
