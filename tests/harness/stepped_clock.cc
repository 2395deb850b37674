// A wall clock that a test sets while programs run, for LD_PRELOAD: what they read, and what they wait for, is the
// kernel's time plus the seconds that stand (as text) in the file named by DISTILL_TEST_CLOCK. Nothing there: the
// kernel's time.
//
// As with a clock that is really set: who waits for a time of the wall clock sleeps longer when the clock is set back
// meanwhile. That holds for waits on condition variables and semaphores, and on futexes through syscall(), which is how
// Abseil and gRPC wait. Clocks that nobody can set are left alone.
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>

namespace {

// Times before that are none of the wall clock: a condition variable does not say which clock it goes by.
constexpr time_t kSomeWallTime = 1'000'000'000;
// A wait looks this often whether the clock was set.
constexpr long kSliceNanoseconds = 50'000'000;

// The C library's own function. No guarded static: those wait by syscall() themselves.
template <typename Function>
Function Own(std::atomic<void*>* known, const char* name, const char* version) {
  void* found = known->load();
  if (found == nullptr) {
    found = dlvsym(RTLD_NEXT, name, version);
    if (found == nullptr) found = dlsym(RTLD_NEXT, name);
    known->store(found);
  }
  return reinterpret_cast<Function>(found);
}
std::atomic<void*> own_clock_gettime, own_gettimeofday, own_cond_timedwait, own_sem_timedwait, own_syscall;

int OwnClock(clockid_t clock, timespec* time) {
  return Own<decltype(&clock_gettime)>(&own_clock_gettime, "clock_gettime", "GLIBC_2.17")(clock, time);
}
timespec KernelTime() {
  timespec now{};
  (void)OwnClock(CLOCK_REALTIME, &now);
  return now;
}

std::atomic<time_t> offset{0};
std::atomic<int64_t> looked_at{0};

// Seconds to add. The file is read at most every 10 ms.
time_t Offset() {
  timespec now{};
  (void)OwnClock(CLOCK_MONOTONIC, &now);
  const int64_t hundredths = int64_t{now.tv_sec} * 100 + now.tv_nsec / 10'000'000;
  if (looked_at.exchange(hundredths) == hundredths) return offset;
  const char* const path = getenv("DISTILL_TEST_CLOCK");
  if (path == nullptr) return 0;
  const int saved_errno = errno;
  if (const int file = open(path, O_RDONLY | O_CLOEXEC); file >= 0) {
    char text[32] = {};
    if (read(file, text, sizeof text - 1) > 0) offset = atol(text);
    (void)close(file);
  }
  errno = saved_errno;
  return offset;
}

bool Before(const timespec& a, const timespec& b) {
  return a.tv_sec != b.tv_sec ? a.tv_sec < b.tv_sec : a.tv_nsec < b.tv_nsec;
}

// Waits by wait(time of the kernel's clock), which says whether that time came before anything else, until `deadline`
// of the set clock. Returns what the last wait did.
template <typename Wait>
auto WaitUntil(const timespec& deadline, const Wait& wait, const auto& timed_out) {
  while (true) {
    timespec until = deadline;
    until.tv_sec -= Offset();
    timespec slice = KernelTime();
    slice.tv_nsec += kSliceNanoseconds;
    if (slice.tv_nsec >= 1'000'000'000) {
      slice.tv_nsec -= 1'000'000'000;
      ++slice.tv_sec;
    }
    const bool last = !Before(slice, until);
    const auto result = wait(last ? until : slice);
    if (!timed_out(result)) return result;
    timespec now = KernelTime();
    now.tv_sec += Offset();
    if (!Before(now, deadline)) return result;
  }
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, struct timespec* time) noexcept {
  const int result = OwnClock(clock, time);
  if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) time->tv_sec += Offset();
  return result;
}
extern "C" int gettimeofday(struct timeval* time, void* zone) noexcept {
  const auto own = Own<decltype(&gettimeofday)>(&own_gettimeofday, "gettimeofday", "GLIBC_2.2.5");
  const int result = own(time, zone);
  if (result == 0) time->tv_sec += Offset();
  return result;
}
extern "C" time_t time(time_t* out) noexcept {
  const time_t now = KernelTime().tv_sec + Offset();
  if (out != nullptr) *out = now;
  return now;
}
extern "C" int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex,
                                      const struct timespec* deadline) {
  const auto own = Own<decltype(&pthread_cond_timedwait)>(&own_cond_timedwait, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (deadline->tv_sec < kSomeWallTime) return own(condition, mutex, deadline);
  return WaitUntil(
      *deadline, [&](const timespec& until) { return own(condition, mutex, &until); },
      [](int result) { return result == ETIMEDOUT; });
}
extern "C" int sem_timedwait(sem_t* semaphore, const struct timespec* deadline) {
  const auto own = Own<decltype(&sem_timedwait)>(&own_sem_timedwait, "sem_timedwait", "GLIBC_2.34");
  return WaitUntil(
      *deadline, [&](const timespec& until) { return own(semaphore, &until); },
      [](int result) { return result != 0 && errno == ETIMEDOUT; });
}
extern "C" long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (long& argument : arguments) argument = va_arg(list, long);
  va_end(list);
  const auto own = Own<decltype(&syscall)>(&own_syscall, "syscall", "GLIBC_2.2.5");
  const auto call = [&](long deadline) {
    return own(number, arguments[0], arguments[1], arguments[2], deadline, arguments[4], arguments[5]);
  };
  const bool waits_by_the_wall_clock = number == SYS_futex && (arguments[1] & FUTEX_CLOCK_REALTIME) != 0 &&
                                       (arguments[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && arguments[3] != 0;
  if (!waits_by_the_wall_clock) return call(arguments[3]);
  return WaitUntil(
      *reinterpret_cast<const timespec*>(arguments[3]),
      [&](const timespec& until) { return call(reinterpret_cast<long>(&until)); },
      [](long result) { return result != 0 && errno == ETIMEDOUT; });
}
