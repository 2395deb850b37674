// A term of a stage's objective: what the student's tensor is compared with, and how.
//
// One file per loss: cross_entropy.cc, kd.cc, l2.cc, cwd.cc. Which losses exist and which knobs they have is said once,
// in common/plan/loss_schema.h; MakeLoss builds from a plan whose knobs that schema has completed.
//
// All arithmetic is float32 (float64 when the student's tensor is float64, for checks by finite differences);
// half-precision inputs are converted first. The teacher's tensor is detached: gradient flows to the student only.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_
#define DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_

#include <torch/types.h>

#include <memory>
#include <string>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

struct LossInputs {
  torch::Tensor student;  // logits [N, K] or a map [N, C, H, W] (after its adapter), floating point
  torch::Tensor teacher;  // the same shape; undefined for losses that read no teacher
  torch::Tensor labels;   // int64 [N], classes in [0, K); undefined for losses that read none
};

// Immutable; any thread.
class Loss {
 public:
  virtual ~Loss() = default;
  // The unweighted term, a scalar of float32 (float64 for float64 students), differentiable in `student`. Not checked
  // for NaN: that costs a device synchronisation and is done once for all terms (train/objective.h). kInvalidArgument:
  // an input is missing, has the wrong rank, or the shapes differ; the message names both shapes. An empty batch (N =
  // 0) gives 0 and keeps the graph, so that gradient synchronisation still runs.
  virtual StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const = 0;
};

// kInvalidArgument: unknown type (with the nearest), bad knobs. Missing knobs take their defaults.
StatusOr<std::unique_ptr<Loss>> MakeLoss(const LossPlan& plan);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_
