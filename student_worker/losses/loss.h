// A term of a stage's objective: what the student's tensor is compared with, and how.
//
// One file per loss, named as its type. Which losses exist and which knobs they have is said once, in
// common/plan/loss_schema.h; MakeLoss builds from a plan whose knobs that schema has completed.
//
// All arithmetic is float32 (float64 when the student's tensor is float64, for checks by finite differences);
// half-precision inputs are converted first, or read as they are by a fused kernel that computes in float32. Maps may
// lie in memory channels first or last; the teacher's comes as its network made it, and where that is the student's
// layout too, as with networks that run channels last, nothing is transposed. The teacher's tensor is detached:
// gradient flows to the student and the loss's own parameters only.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_
#define DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_

#include <torch/nn/module.h>
#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

inline constexpr int64_t kIgnoredLabel = -100;  // of a pixel that has none

struct LossInputs {
  torch::Tensor student;  // logits [N, K] or [N, K, H, W], or a map [N, C, H, W] (after its adapter); floating point
  torch::Tensor teacher;  // what it is compared with; undefined for losses that read no teacher
  // int64 [N], classes in [0, K); or [N, H, W], a class for every pixel or kIgnoredLabel. Undefined for losses that
  // read none.
  torch::Tensor labels;
  // float32 [N, 4]: top, left, bottom, right of the part of each image that is no padding, as shares of its height and
  // width; undefined: all of it.
  torch::Tensor visible;
  double progress = 0;  // share of the stage's steps that are done, in [0, 1): for knobs with a schedule
  uint64_t draw = 0;    // differs between steps: with a sample's place in the batch it seeds what is drawn at random
  int64_t first_image = 0;  // place of this rank's first sample in the batch of all ranks
  // What the term is going to be multiplied with before backward; not 0. Changes no result: a fused kernel scales its
  // gradient with it while it writes it, and any other factor costs one more pass over the gradient.
  double weight = 1;
  int64_t labelled = -1;  // of label maps: how many pixels have a label, where it is known; -1: to be found
};

// How the terms of several ranks, each computed on a rank's part of the batch, make the term of the whole batch. A job
// learns the same at any number of ranks (batch norms apart, which see a rank's part
// unless JobPlan.sync_batch_norm is set).
enum class AcrossRanks {
  kMean,        // their mean, each weighted with Loss::Count
  kSum,         // their sum
  kWholeBatch,  // nothing: the loss compares samples with each other and has to be given those of all ranks
};

// Immutable but for its parameters and the details of the last call; one thread at a time.
class Loss {
 public:
  virtual ~Loss() = default;
  // The unweighted term, a scalar of float32 (float64 for float64 students), differentiable in `student` and in the
  // parameters of module(). Not checked for NaN: that costs a device synchronisation and is done once for all terms
  // (train/objective.h). kInvalidArgument: an input is missing, has the wrong rank, or the shapes do not fit; the
  // message names both shapes. An empty batch (N = 0) gives 0 and keeps the graph, so that gradient synchronisation
  // still runs.
  virtual StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const = 0;

  virtual AcrossRanks across_ranks() const { return AcrossRanks::kMean; }
  // For kMean: what the term of these inputs is a mean over: samples, or labelled pixels. 0: the term is 0 and says
  // nothing. REQUIRES: inputs that Compute accepts.
  virtual double Count(const LossInputs& inputs) const;

  // The layers that train with the student and are dropped after the stage; null when the loss has none.
  virtual torch::nn::Module* module() const { return nullptr; }

  // Numbers beside the term that tell whether it works, such as the entropy of an attention: their names, and scalars
  // of the last Compute in the same order.
  virtual std::vector<std::string> detail_names() const { return {}; }
  virtual std::vector<torch::Tensor> details() const { return {}; }
};

// `seed`: for the initial values of the loss's own parameters. kInvalidArgument: unknown type (with the nearest), bad
// knobs, or channels of 0 where layers need them. Missing knobs take their defaults; knobs may not be "auto"
// (common/plan/loss_shapes.h).
StatusOr<std::unique_ptr<Loss>> MakeLoss(const LossPlan& plan, uint64_t seed = 0);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_LOSSES_LOSS_H_
