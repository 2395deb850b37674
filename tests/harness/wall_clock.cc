#include "tests/harness/wall_clock.h"

#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace {

std::atomic<int64_t> offset_seconds = 0;

}  // namespace

// Found before the C library's, by the executable and by every shared library. glibc declares both as never throwing.
extern "C" int gettimeofday(struct timeval* time, void* zone) noexcept {
  const int result = static_cast<int>(syscall(SYS_gettimeofday, time, zone));
  time->tv_sec += offset_seconds.load();
  return result;
}
extern "C" int clock_gettime(clockid_t clock, struct timespec* time) noexcept {
  const int result = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (clock == CLOCK_REALTIME) time->tv_sec += offset_seconds.load();
  return result;
}

namespace distill {

WallClockAhead::WallClockAhead(std::chrono::seconds offset) { offset_seconds = offset.count(); }
WallClockAhead::~WallClockAhead() { offset_seconds = 0; }

}  // namespace distill
