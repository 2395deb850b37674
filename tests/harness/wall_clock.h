// A wall clock that tests can set, for programs that link this library: gettimeofday() and clock_gettime() of the
// process (and of the shared libraries that it uses, Abseil among them) answer with the kernel's time plus an offset.
// The kernel itself knows nothing of it. So to somebody who reads the clock and lets the kernel wait for a time of the
// clock, an offset of 30 s looks as if the clock had been set back by 30 s between the two; to somebody who reads the
// clock twice, a change of the offset looks as if the clock had been set meanwhile.
#ifndef DISTILL_TESTS_HARNESS_WALL_CLOCK_H_
#define DISTILL_TESTS_HARNESS_WALL_CLOCK_H_

#include <chrono>

namespace distill {

// Sets the offset for this process; the destructor takes it back. One at a time.
class WallClockAhead {
 public:
  explicit WallClockAhead(std::chrono::seconds offset);
  ~WallClockAhead();
  WallClockAhead(const WallClockAhead&) = delete;
  WallClockAhead& operator=(const WallClockAhead&) = delete;
};

}  // namespace distill

#endif  // DISTILL_TESTS_HARNESS_WALL_CLOCK_H_
