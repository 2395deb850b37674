#include "common/steady_wait.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/harness/wall_clock.h"

namespace distill {
namespace {

constexpr absl::Duration kShort = absl::Milliseconds(20);

// Something to wait for.
struct Flag {
  absl::Mutex mutex;
  bool set = false;
  bool AwaitSet(absl::Duration timeout) {
    absl::MutexLock lock(&mutex);
    return AwaitFor(&mutex, absl::Condition(&set), timeout);
  }
  void Set() {
    absl::MutexLock lock(&mutex);
    set = true;
  }
};

TEST(AwaitForTest, TheConditionEndsIt) {
  for (const absl::Duration timeout : {absl::InfiniteDuration(), absl::Hours(24 * 365 * 200), absl::Hours(1)}) {
    Flag flag;
    std::thread set([&] { flag.Set(); });
    EXPECT_TRUE(flag.AwaitSet(timeout)) << timeout;
    set.join();
    EXPECT_TRUE(flag.AwaitSet(timeout)) << timeout;
  }
}

TEST(AwaitForTest, TheTimeEndsIt) {
  Flag flag;
  const absl::Duration start = SteadyNow();
  EXPECT_FALSE(flag.AwaitSet(kShort));
  EXPECT_GE(SteadyNow() - start, kShort);
  EXPECT_FALSE(flag.AwaitSet(absl::ZeroDuration()));
  EXPECT_FALSE(flag.AwaitSet(-absl::InfiniteDuration()));
  flag.Set();
  EXPECT_TRUE(flag.AwaitSet(absl::ZeroDuration()));
}

TEST(AwaitForTest, ManyWaitsEndEachAtItsOwnTime) {
  Flag flag;
  std::vector<std::thread> threads;
  std::atomic<int> early = 0, late = 0;
  for (int i = 0; i < 50; ++i) {
    threads.emplace_back([&, i] {
      const absl::Duration timeout = absl::Milliseconds(50 - i), start = SteadyNow();
      if (flag.AwaitSet(timeout)) ++late;
      if (SteadyNow() - start < timeout) ++early;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(early, 0);
  EXPECT_EQ(late, 0);
}

// Waits and mutexes come and go while others fire: nothing may be left behind on a stack that is gone.
TEST(AwaitForTest, WaitsThatEndBothWaysAtOnceAreForgotten) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 300; ++i) {
        Flag flag;
        std::thread set([&] {
          absl::SleepFor(absl::Microseconds(37 * (i % 50)));
          flag.Set();
        });
        flag.AwaitSet(absl::Microseconds(1000 + 10 * t));
        set.join();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(AwaitForTest, AMutexThatIsHeldDelaysOnlyThoseWhoWaitForIt) {
  Flag held, other;
  std::atomic<bool> ended = false, waits = false;
  std::thread waiter([&] {
    absl::MutexLock lock(&held.mutex);
    waits = true;
    AwaitFor(&held.mutex, absl::Condition(&held.set), kShort);
    ended = true;
  });
  while (!waits) std::this_thread::yield();
  held.mutex.Lock();  // once the waiter has let go of it
  EXPECT_FALSE(other.AwaitSet(2 * kShort));
  EXPECT_FALSE(ended);
  held.mutex.Unlock();
  waiter.join();
}

// The wall clock is set back by a year just after each wait has begun.
TEST(AwaitForTest, AWallClockThatIsSetBackDelaysNothing) {
  const WallClockAhead ahead(std::chrono::hours(24 * 365));
  Flag flag;
  EXPECT_FALSE(flag.AwaitSet(kShort));
}

// Shows that the test above tests something, and why AwaitFor() is there: when this one fails, Abseil has become steady
// itself (from 20240116 on it says so), and AwaitFor() may go.
TEST(AwaitForTest, AbseilsOwnWaitIsDelayedByTheWallClock) {
  const WallClockAhead ahead(std::chrono::seconds(1));
  Flag flag;
  const absl::Duration start = SteadyNow();
  absl::MutexLock lock(&flag.mutex);
  EXPECT_FALSE(flag.mutex.AwaitWithTimeout(absl::Condition(&flag.set), kShort));
  EXPECT_GE(SteadyNow() - start, absl::Seconds(1));
}

}  // namespace
}  // namespace distill
