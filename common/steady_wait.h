// Waiting by duration on the steady clock.
//
// The timed waits of Abseil as Debian 12 ships it (20220623: Mutex::AwaitWithTimeout, CondVar::WaitWithTimeout,
// Notification::WaitForNotificationWithTimeout) read the wall clock and let the kernel wait for a time of the wall
// clock. When that clock is set back by 30 s, a wait of one second lasts 31; when it is set forward, the wait ends at
// once. Heartbeats, leases and rendezvous need durations, so every timed wait of the programs goes through here. Waits
// without a limit (Mutex::Await) and absl::SleepFor read no clock and are fine.
#ifndef DISTILL_COMMON_STEADY_WAIT_H_
#define DISTILL_COMMON_STEADY_WAIT_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace distill {

// What Mutex::AwaitWithTimeout does, on the steady clock: gives `mutex` back until `condition` holds or `timeout` has
// passed, takes it again and returns whether the condition holds then. A timeout of zero or less only looks;
// absl::InfiniteDuration() waits without limit. As with Abseil, the condition may be evaluated by any thread that
// releases the mutex; nobody has to signal.
//
// A wait whose time is up ends within a millisecond, or when the mutex is free again, if later.
//
// Thread-safe. REQUIRES: the caller holds `mutex` exclusively.
bool AwaitFor(absl::Mutex* mutex, const absl::Condition& condition, absl::Duration timeout)
    ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex);

// The steady clock: time since an arbitrary point in the past. For deadlines that are kept for a while.
absl::Duration SteadyNow();

}  // namespace distill

#endif  // DISTILL_COMMON_STEADY_WAIT_H_
