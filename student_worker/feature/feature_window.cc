#include "student_worker/feature/feature_window.h"

#include <cstdlib>
#include <utility>
#include <vector>

namespace distill {
namespace {

constexpr size_t kTensorAlignment = 64;  // a cache line, and what vectorised kernels like best

uint64_t RoundUp(uint64_t bytes) { return (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment; }

}  // namespace

uint64_t FeatureWindow::used() const {
  absl::MutexLock lock(&mutex_);
  return granted_ + held_;
}

void FeatureWindow::Grant(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  granted_ += bytes;
}

void FeatureWindow::Recall(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  granted_ -= bytes;
}

FeatureWindow::~FeatureWindow() {
  for (const auto& [size, memory] : spare_) std::free(memory);
}

uint64_t FeatureWindow::kept() const {
  absl::MutexLock lock(&mutex_);
  return spare_bytes_;
}

FillableBuffer FeatureWindow::Receive(uint64_t bytes) {
  struct Held {
    Held(std::shared_ptr<FeatureWindow> held_window, uint64_t held_size, uint8_t* held_bytes)
        : window(std::move(held_window)), size(held_size), bytes(held_bytes) {}
    Held(const Held&) = delete;
    ~Held() { window->Release(bytes, size); }
    const std::shared_ptr<FeatureWindow> window;  // shared: the tensor may outlive the pool
    const uint64_t size;
    uint8_t* const bytes;
  };
  const uint64_t size = RoundUp(bytes);
  uint8_t* memory = nullptr;
  std::vector<uint8_t*> too_much;
  {
    absl::MutexLock lock(&mutex_);
    if (const auto fitting = spare_.find(size); fitting != spare_.end()) {
      memory = fitting->second;
      spare_bytes_ -= size;
      spare_.erase(fitting);
    }
    while (memory == nullptr && !spare_.empty() && held_ + spare_bytes_ + size > bytes_) {
      too_much.push_back(spare_.begin()->second);
      spare_bytes_ -= spare_.begin()->first;
      spare_.erase(spare_.begin());
    }
  }
  for (uint8_t* block : too_much) std::free(block);
  if (memory == nullptr) memory = static_cast<uint8_t*>(std::aligned_alloc(kTensorAlignment, size));
  if (memory == nullptr) return {};
  {
    absl::MutexLock lock(&mutex_);
    granted_ -= bytes;
    held_ += bytes;
  }
  return FillableBuffer{Buffer{memory, bytes, std::make_shared<Held>(shared_from_this(), bytes, memory)}, memory};
}

void FeatureWindow::Release(uint8_t* memory, uint64_t bytes) {
  const uint64_t size = RoundUp(bytes);
  {
    absl::MutexLock lock(&mutex_);
    held_ -= bytes;
    if (held_ + spare_bytes_ + size <= bytes_) {
      spare_.emplace(size, std::exchange(memory, nullptr));
      spare_bytes_ += size;
    }
  }
  std::free(memory);
  released_();
}

}  // namespace distill
