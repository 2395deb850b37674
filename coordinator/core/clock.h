// Time as an argument: the coordinator reads it here, tests set it.
#ifndef DISTILL_COORDINATOR_CORE_CLOCK_H_
#define DISTILL_COORDINATOR_CORE_CLOCK_H_

namespace distill {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  // Seconds that never go back; the origin means nothing.
  virtual double Monotonic() const = 0;
  // Seconds since 1970.
  virtual double Wall() const = 0;
};

// The machine's clocks. Lives as long as the process.
const Clock& SystemClock();

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_CLOCK_H_
