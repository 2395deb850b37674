// What a stage asks of its teacher: which taps, and in which encodings. Decided here once, for the student that asks
// and for the coordinator that sums up the bytes at submit.
//
// A request is identified by tap and encoding: two losses may want one tap in two encodings. Each loss gets the
// smallest encoding that it bears (loss_needs.h):
//     logits    float32, whatever the plan's wire_dtype
//     maps      wire_dtype; less their row maximum where that is narrower than float32 and the loss does not see it
// A tap that somebody reads as float32 travels once: it serves the others as well.
#ifndef DISTILL_COMMON_PLAN_TEACHER_REQUESTS_H_
#define DISTILL_COMMON_PLAN_TEACHER_REQUESTS_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "common/plan/plan.h"
#include "common/wire/feature_batch.h"

namespace distill {

struct TeacherRequests {
  std::vector<TapRequest> taps;  // each tap and encoding once, in the order of the losses; then the stage's input
  // By loss of the stage: index into taps; none for losses of weight 0 and those that read no teacher.
  std::vector<std::optional<size_t>> of_loss;
  // Of stage.teacher_input; none where there is no such input.
  std::optional<size_t> input;
};

// `maps`: the plan's wire_dtype.
TeacherRequests TeacherRequestsOf(const StagePlan& stage, WireDtype maps);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_TEACHER_REQUESTS_H_
