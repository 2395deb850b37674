#include "coordinator/core/ticker.h"

#include <pthread.h>

#include "common/steady_wait.h"

namespace distill {

Ticker::Ticker(const std::string& name, absl::Duration interval, std::function<void()> tick)
    : thread_([this, interval, tick = std::move(tick)] { Loop(interval, tick); }) {
  pthread_setname_np(thread_.native_handle(), name.c_str());
}

Ticker::~Ticker() { Stop(); }

void Ticker::Stop() {
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void Ticker::Poke() {
  absl::MutexLock lock(&mutex_);
  poked_ = true;
}

void Ticker::Loop(absl::Duration interval, const std::function<void()>& tick) {
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      const auto due = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || poked_; };
      AwaitFor(&mutex_, absl::Condition(&due), interval);
      if (stop_) return;
      poked_ = false;
    }
    tick();
  }
}

}  // namespace distill
