// The time of day, for what people and other machines read. Waits and leases use common/steady_wait.h.
#ifndef DISTILL_COMMON_WALL_CLOCK_H_
#define DISTILL_COMMON_WALL_CLOCK_H_

#include <chrono>

namespace distill {

// Seconds since 1970.
inline double WallClock() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace distill

#endif  // DISTILL_COMMON_WALL_CLOCK_H_
