#include "student_worker/feature/feature_window.h"

#include <cstdlib>
#include <utility>

namespace distill {
namespace {

constexpr size_t kTensorAlignment = 64;  // a cache line, and what vectorised kernels like best

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

FillableBuffer FeatureWindow::Receive(uint64_t bytes) {
  struct Held {
    Held(std::shared_ptr<FeatureWindow> held_window, uint64_t held_size, uint8_t* held_bytes)
        : window(std::move(held_window)), size(held_size), bytes(held_bytes) {}
    Held(const Held&) = delete;
    ~Held() {
      std::free(bytes);
      window->Release(size);
    }
    const std::shared_ptr<FeatureWindow> window;  // shared: the tensor may outlive the pool
    const uint64_t size;
    uint8_t* const bytes;
  };
  auto* memory = static_cast<uint8_t*>(
      std::aligned_alloc(kTensorAlignment, (bytes + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment));
  if (memory == nullptr) return {};
  {
    absl::MutexLock lock(&mutex_);
    granted_ -= bytes;
    held_ += bytes;
  }
  return FillableBuffer{Buffer{memory, bytes, std::make_shared<Held>(shared_from_this(), bytes, memory)}, memory};
}

void FeatureWindow::Release(uint64_t bytes) {
  {
    absl::MutexLock lock(&mutex_);
    held_ -= bytes;
  }
  released_();
}

}  // namespace distill
