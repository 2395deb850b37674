// What a loss needs of the teacher's tap that it reads, and what it is invariant to, as its schema says
// (loss_schema.h): that decides how the tap may travel (teacher_requests.h).
#ifndef DISTILL_COMMON_PLAN_LOSS_NEEDS_H_
#define DISTILL_COMMON_PLAN_LOSS_NEEDS_H_

#include "common/plan/plan.h"

namespace distill {

struct LossNeeds {
  // Every bit of it: logits, which are few.
  bool exact = false;
  // The level of each channel of a sample's map; see LossSchema::ignores_row_offsets.
  bool row_offsets = true;
};

// Of the loss with its knobs, which need not be completed. A loss or knobs that are not known need the level.
LossNeeds NeedsOf(const LossPlan& loss);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_LOSS_NEEDS_H_
