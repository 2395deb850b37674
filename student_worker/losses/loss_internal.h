// Private to losses/: the constructors that MakeLoss chooses from, and what they share.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_
#define DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_

#include <string_view>

#include "common/plan/loss_shapes.h"
#include "student_worker/losses/loss.h"

namespace distill::loss_internal {

// REQUIRES (all): plan.knobs completed by CompleteKnobs for the loss's schema, none of them "auto".
using LossOrStatus = StatusOr<std::unique_ptr<Loss>>;
LossOrStatus MakeAt(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeAuxClassifier(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeChannelTransform(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeCrossEntropy(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeCwd(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeDkd(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeKd(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeL1(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeL2(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeMgd(const LossPlan& plan, uint64_t seed);
LossOrStatus MakePixelKd(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeSmoothL1(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeSp(const LossPlan& plan, uint64_t seed);
LossOrStatus MakeTat(const LossPlan& plan, uint64_t seed);

// "[128, 16, 28, 28]", or "none" for an undefined tensor.
std::string ShapeText(const torch::Tensor& tensor);

// Both there, `rank` axes, equal batch, floating point, same device.
Status CheckInputs(const LossInputs& inputs, int64_t rank);
// That, and equal shapes.
Status CheckPair(const LossInputs& inputs, int64_t rank);

// kInvalidArgument: the student's logits are neither [N, K] nor [N, K, H, W], the teacher's, where defined, have
// another shape, or labels do not fit. `labels_of`: the loss that reads labels, for messages; empty: none does.
Status CheckLogits(const LossInputs& inputs, std::string_view labels_of);

// Logits as rows [R, K], and their labels: one row a sample, or one a pixel.
struct LogitRows {
  torch::Tensor student;  // in the compute dtype, with gradient
  torch::Tensor teacher;  // in the compute dtype, detached; undefined when the loss reads none
  // Undefined when `labels_of` was empty:
  torch::Tensor labels;    // int64 [R], in [0, K); 0 where there is none
  torch::Tensor labelled;  // bool [R]; undefined: all are
};
// `labels_of`: the loss that reads labels, for messages; empty: all rows are taken, whatever their labels.
// kInvalidArgument as CheckLogits.
StatusOr<LogitRows> RowsOfLogits(const LossInputs& inputs, std::string_view labels_of);

// The mean of a value [R] for each row, over those that have a label; 0 without any.
torch::Tensor MeanOverLabelled(const torch::Tensor& values, const LogitRows& rows);

// How many rows have a label. Waits for the device where LossInputs::labelled does
// not say it.
double CountLabels(const LossInputs& inputs);

// Cross-entropy of inputs.student against inputs.labels, mean over the samples or the labelled pixels; 0 without any.
// kInvalidArgument as RowsOfLogits; `loss` is for the message. Does not wait for the device.
StatusOr<torch::Tensor> MeanCrossEntropy(const LossInputs& inputs, double label_smoothing, std::string_view loss);

// The dtype losses compute in: float64 stays, everything else becomes float32. Conversions are counted
// (common/wire/copy_count.h): it is teachers' maps that come in 16 bits.
torch::Tensor ToComputeType(const torch::Tensor& tensor, const torch::Tensor& student);

// The two maps in the compute dtype (but see SpatialMatcher), the teacher's detached.
struct MapPair {
  torch::Tensor student;  // [N, C, H, W]
  torch::Tensor teacher;  // [N, C', H, W]
};

// The knobs spatial_mismatch and align_corners at work.
class SpatialMatcher {
 public:
  // REQUIRES: both knobs are there.
  explicit SpatialMatcher(const Knobs& knobs);
  // Brings both maps to the same height and width, the student's with gradient. `teacher_as_it_is`: the teacher's map
  // keeps its dtype if it need not be resized; for kernels that read 16 bits themselves. kInvalidArgument: they differ
  // and nothing may be resized; or CheckInputs.
  StatusOr<MapPair> Match(const LossInputs& inputs, bool teacher_as_it_is = false) const;
  // As Match; sizes may differ afterwards.
  StatusOr<MapPair> Resize(const LossInputs& inputs, bool teacher_as_it_is = false) const;

 private:
  torch::Tensor To(const torch::Tensor& map, MapSize size) const;

  std::string mismatch_;
  bool align_corners_;
};

// The knob `reduction`: mean over all elements, sum over each sample's elements and mean over samples, plain sum.
// `elementwise`: the unreduced terms [N, ...]. An empty batch gives 0.
enum class Reduction { kMean, kSumOverBatch, kSum };
Reduction ParseReduction(std::string_view text);
torch::Tensor Reduce(const torch::Tensor& elementwise, Reduction reduction);
// Means over samples are means over ranks too, since ranks have equally many; sums add up.
inline AcrossRanks AcrossRanksOf(Reduction reduction) {
  return reduction == Reduction::kSum ? AcrossRanks::kSum : AcrossRanks::kMean;
}

// The temperature at `progress` by the knobs temperature, temperature_end and temperature_schedule.
class TemperatureSchedule {
 public:
  explicit TemperatureSchedule(const Knobs& knobs);
  double At(double progress) const;

 private:
  double start_, end_;  // end_ 0: constant
  bool cosine_;
};

}  // namespace distill::loss_internal

#endif  // DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_
