// The learning rate of a step, as a factor on the optimizer's base rate: a pure function of the step, so that a resumed
// stage goes on exactly where it was and needs no schedule state. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_LR_SCHEDULE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_LR_SCHEDULE_H_

#include <cstdint>
#include <memory>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Immutable; any thread.
class LrSchedule {
 public:
  // `steps`: optimizer steps of the stage. kInvalidArgument: unknown type, warm-up outside [0, 1), milestones not
  // ascending in (0, 1), gamma <= 0, power <= 0, min_factor outside [0, 1), pct_start outside (0, 1), a divisor
  // below 1, one_cycle with warm-up.
  static StatusOr<LrSchedule> Create(const SchedulePlan& plan, uint64_t steps);

  // Factor for step 0 <= step < steps (later steps: that of the last). Where the stage is a part of a longer schedule
  // (begin, end), step and steps below are that schedule's.
  //   warm-up:   the first W = round(warmup * steps) steps rise linearly from 0: (step + 1) / (W + 1)
  //   constant:  1
  //   cosine:    (1 + cos(pi * d)) / 2 with d = (step - W) / (steps - W): 1 right after the warm-up, 0 when the last
  //              step is done (the last step itself still moves)
  //   poly:      (1 - d)^power, likewise
  //   both:      between 1 and min_factor instead: min_factor + (1 - min_factor) * that
  //   one_cycle: torch's OneCycleLR with cosine annealing, relative to its largest rate and without its cycle of the
  //              momentum: from 1 / div_factor at step 0 up to 1 at step pct_start * steps - 1, then down to
  //              1 / (div_factor * final_div_factor) at the last step, along half a cosine each. No warm-up.
  //   step:      gamma once for each milestone m with step >= m * steps; counts from the start, during warm-up as well
  double Factor(uint64_t step) const;

 private:
  LrSchedule(SchedulePlan plan, uint64_t steps);
  double OneCycleFactor(uint64_t step) const;
  SchedulePlan plan_;
  uint64_t stage_steps_;
  uint64_t steps_;   // of the whole schedule, of which the stage is the part from `begin` to `end`
  uint64_t offset_;  // of the stage in it
  uint64_t warmup_steps_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_LR_SCHEDULE_H_
