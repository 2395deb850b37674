// A thread that does something at intervals, and sooner when asked. Owns the thread; Stop() or the destructor joins it.
#ifndef DISTILL_COORDINATOR_CORE_TICKER_H_
#define DISTILL_COORDINATOR_CORE_TICKER_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace distill {

class Ticker {
 public:
  // `name` has at most 15 letters. `tick` must not throw.
  Ticker(const std::string& name, absl::Duration interval, std::function<void()> tick);
  ~Ticker();
  // The next tick comes now, not at the end of its interval. Any thread; never waits.
  void Poke();
  // Waits for a running tick. Idempotent; one thread at a time.
  void Stop();

 private:
  void Loop(absl::Duration interval, const std::function<void()>& tick);

  absl::Mutex mutex_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool poked_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_TICKER_H_
