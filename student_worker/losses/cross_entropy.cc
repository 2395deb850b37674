// Task cross-entropy on the student's logits, mean over the batch:
//     loss = -1/N * sum over n of sum over k of w_nk log softmax(s_n)_k,   w_nk = (1 - e) [k = label_n] + e / K
// e is the knob `label_smoothing` in [0, 1). [Szegedy et al. 2016 for the smoothing]
// With an answer for every pixel n runs over the pixels of the batch that have a label, those of all ranks alike;
// without any the loss is 0.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

class CrossEntropyLoss : public Loss {
 public:
  explicit CrossEntropyLoss(double label_smoothing) : label_smoothing_(label_smoothing) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& given) const override {
    return MeanCrossEntropy(given, label_smoothing_, "cross_entropy");
  }
  double Count(const LossInputs& inputs) const override { return CountLabels(inputs); }

 private:
  const double label_smoothing_;
};

}  // namespace

StatusOr<torch::Tensor> MeanCrossEntropy(const LossInputs& inputs, double label_smoothing, std::string_view loss) {
  DISTILL_RETURN_IF_ERROR(CheckLogits(inputs, loss));
  const torch::Tensor logits = ToComputeType(inputs.student, inputs.student);
  if (logits.numel() == 0) return logits.sum();
  // By pixel, 0 where there is no label, rather than of a selection of pixels, for whose number one would wait. Summed
  // here, because torch's own mean over pixels adds up in any order on a GPU.
  const torch::Tensor each = torch::cross_entropy_loss(logits, inputs.labels, /*weight=*/{}, at::Reduction::None,
                                                       kIgnoredLabel, label_smoothing);
  if (logits.dim() == 2) return each.mean();
  return each.sum() / inputs.labels.ne(kIgnoredLabel).sum().clamp_min(1);
}

LossOrStatus MakeCrossEntropy(const LossPlan& plan, uint64_t) {
  return std::make_unique<CrossEntropyLoss>(NumberKnob(plan.knobs, "label_smoothing"));
}

}  // namespace distill::loss_internal
