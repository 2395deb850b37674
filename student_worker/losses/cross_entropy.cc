// Task cross-entropy on the student's logits, mean over the batch:
//     loss = -1/N * sum over n of sum over k of w_nk log softmax(s_n)_k,   w_nk = (1 - e) [k = label_n] + e / K
// e is the knob `label_smoothing` in [0, 1). [Szegedy et al. 2016 for the smoothing]
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

class CrossEntropyLoss : public Loss {
 public:
  explicit CrossEntropyLoss(double label_smoothing) : label_smoothing_(label_smoothing) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    const torch::Tensor& logits = inputs.student;  // (N, K)
    const torch::Tensor& labels = inputs.labels;   // (N)
    if (!logits.defined() || logits.dim() != 2 || !labels.defined() || labels.dim() != 1 ||
        labels.size(0) != logits.size(0) || labels.scalar_type() != torch::kInt64) {
      return absl::InvalidArgumentError(StrCat("cross_entropy needs logits [N, K] and int64 labels [N]; got ",
                                               ShapeText(logits), " and ", ShapeText(labels)));
    }
    const torch::Tensor log_q = torch::log_softmax(ToComputeType(logits, logits), 1);  // (N, K)
    if (logits.size(0) == 0) return log_q.sum();
    torch::Tensor per_sample = -(1 - label_smoothing_) * log_q.gather(1, labels.unsqueeze(1)).squeeze(1);  // (N)
    if (label_smoothing_ > 0) per_sample = per_sample - label_smoothing_ * log_q.mean(1);
    return per_sample.mean();
  }

 private:
  const double label_smoothing_;
};

}  // namespace

LossOrStatus MakeCrossEntropy(const LossPlan& plan, uint64_t) {
  return std::make_unique<CrossEntropyLoss>(NumberKnob(plan.knobs, "label_smoothing"));
}

}  // namespace distill::loss_internal
