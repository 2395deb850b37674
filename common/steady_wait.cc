#include "common/steady_wait.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

// How soon a mutex that was held when a wait's time was up is tried again: at first, and at most.
constexpr auto kFirstRetry = std::chrono::milliseconds(1);
constexpr auto kLongestRetry = std::chrono::milliseconds(32);

// One thread, "steady-timer", ends the waits whose time is up: it takes the wait's mutex, sets `expired` and releases
// the mutex, by which Abseil looks at the conditions of all that wait there. (The alternative, a
// std::condition_variable beside each mutex, would need a signal at every place that changes what somebody waits for.)
//
// It only ever *tries* a mutex, so that one that is held for long (by a thread whose disk hangs, say) delays nobody but
// those who wait for that mutex anyway.
//
// One a process, made with the first wait that has to block, and never destroyed: threads may wait until the process
// ends.
class SteadyTimer {
 public:
  // On the stack of the thread that waits.
  struct Wait {
    absl::Mutex* mutex;
    bool expired = false;      // guarded by *mutex
    Clock::duration retry{0};  // guarded by mutex_, as all below
    bool firing = false;       // the timer's thread is at `mutex`, with mutex_ released
    bool queued = false;
    std::multimap<Clock::time_point, Wait*>::iterator place;
  };

  static SteadyTimer& Get() {
    static SteadyTimer* const timer = new SteadyTimer;
    return *timer;
  }

  void Add(Wait* wait, Clock::time_point deadline) {
    std::lock_guard lock(mutex_);
    Queue(wait, deadline);
    if (wait->place == queue_.begin()) earlier_.notify_one();
  }

  // Afterwards the timer knows nothing of the wait. The caller may hold wait->mutex: while a wait fires, the timer's
  // thread blocks on nothing.
  void Remove(Wait* wait) {
    std::unique_lock lock(mutex_);
    fired_.wait(lock, [&] { return !wait->firing; });
    if (wait->queued) queue_.erase(wait->place);
  }

 private:
  SteadyTimer() {
    std::thread([this] { Loop(); }).detach();
  }

  void Queue(Wait* wait, Clock::time_point deadline) {
    wait->place = queue_.emplace(deadline, wait);
    wait->queued = true;
  }

  void Loop() {
    pthread_setname_np(pthread_self(), "steady-timer");
    std::unique_lock lock(mutex_);
    while (true) {
      if (queue_.empty()) {
        earlier_.wait(lock);
        continue;
      }
      const Clock::time_point first = queue_.begin()->first;
      if (Clock::now() < first) {
        earlier_.wait_until(lock, first);
        continue;
      }
      Wait* const wait = queue_.begin()->second;
      queue_.erase(queue_.begin());
      wait->queued = false;
      wait->firing = true;
      lock.unlock();
      const bool done = Expire(wait);
      lock.lock();
      wait->firing = false;
      if (!done) {
        wait->retry = std::clamp<Clock::duration>(2 * wait->retry, kFirstRetry, kLongestRetry);
        Queue(wait, Clock::now() + wait->retry);
      }
      fired_.notify_all();
    }
  }

  static bool Expire(Wait* wait) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (!wait->mutex->TryLock()) return false;
    wait->expired = true;
    wait->mutex->Unlock();
    return true;
  }

  std::mutex mutex_;
  std::multimap<Clock::time_point, Wait*> queue_;  // guarded by mutex_
  std::condition_variable earlier_;                // the queue has a new first wait
  std::condition_variable fired_;                  // a wait's `firing` is over
};

}  // namespace

bool AwaitFor(absl::Mutex* mutex, const absl::Condition& condition, absl::Duration timeout) {
  if (condition.Eval()) return true;
  if (timeout <= absl::ZeroDuration()) return false;
  // Beyond a year it is for ever; it also keeps the sum below from overflowing.
  if (timeout > absl::Hours(24 * 365)) {
    mutex->Await(condition);
    return true;
  }
  SteadyTimer::Wait wait{mutex};
  SteadyTimer::Get().Add(&wait, Clock::now() + absl::ToChronoNanoseconds(timeout));
  const auto over = [&] { return wait.expired || condition.Eval(); };
  mutex->Await(absl::Condition(&over));
  SteadyTimer::Get().Remove(&wait);
  return condition.Eval();
}

absl::Duration SteadyNow() { return absl::FromChrono(Clock::now().time_since_epoch()); }

}  // namespace distill
