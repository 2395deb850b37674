// The coordinator's own time: seconds during which it looked at the world.
//
// A lease says "I have not heard of you for so long", which means nothing for a time in which nobody listened: a
// stopped process, a paused machine, a starved host. So time advances by at most `longest_step` from one look to the
// next, whatever the clock says, and a coordinator that wakes up after a minute has not lost its whole fleet.
//
// Thread-compatible.
#ifndef DISTILL_COORDINATOR_CORE_ATTENTION_H_
#define DISTILL_COORDINATOR_CORE_ATTENTION_H_

#include <algorithm>

namespace distill {

class Attention {
 public:
  // `start` and later clock readings: seconds of a monotonic clock. `longest_step` > 0: somewhat more than the time
  // between two looks of a coordinator that is well.
  Attention(double start, double longest_step) : longest_step_(longest_step), clock_(start), now_(start) {}

  struct Look {
    double now = 0;     // seconds of attention
    double missed = 0;  // seconds since the look before that did not count
  };
  // Call it at every chance.
  Look At(double clock) {
    const double passed = std::max(0.0, clock - clock_);
    const double counted = std::min(passed, longest_step_);
    clock_ = std::max(clock, clock_);
    now_ += counted;
    return {now_, passed - counted};
  }

 private:
  const double longest_step_;
  double clock_, now_;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_ATTENTION_H_
