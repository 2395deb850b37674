// A feature loss against the shapes of the two maps it compares: which adapter it needs, what its "auto" knobs mean,
// and whether it can compare them at all. The coordinator asks at submit time, so that an impossible loss is refused
// before anything runs.
#ifndef DISTILL_COMMON_PLAN_LOSS_SHAPES_H_
#define DISTILL_COMMON_PLAN_LOSS_SHAPES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/plan/tat_geometry.h"
#include "common/status.h"

namespace distill {

struct MapShape {
  uint32_t channels = 0;
  MapSize size;
};

struct ResizedMaps {
  MapSize student;
  MapSize teacher;
};

// The sizes after `spatial_mismatch`, the value of the knob of that name; equal sizes stay. "pool_larger" averages the
// larger map down to the smaller, "teacher_to_student" and "student_to_teacher" resize one of them; "none", "auto" and
// "error" leave both.
ResizedMaps ResizeTo(const std::string& spatial_mismatch, MapSize student, MapSize teacher);

// Fills channels and sizes, resolves adapter "auto" and knobs that are "auto", and checks. REQUIRES: loss->type is a
// known feature loss and loss->knobs are completed. kInvalidArgument: the loss cannot compare these maps; the message
// names the values and a remedy, but not the taps. `warnings` gets what is allowed but useless or surprising.
Status ResolveLoss(const MapShape& student, const MapShape& teacher, LossPlan* loss,
                   std::vector<std::string>* warnings);

// What is allowed but useless or surprising about a loss on logits. REQUIRES: loss.student_channels, the classes, and
// all knobs are filled in.
void WarnOfLogits(const LossPlan& loss, std::vector<std::string>* warnings);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_LOSS_SHAPES_H_
