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
    const LossInputs inputs{given.student, {}, given.labels};
    DISTILL_ASSIGN_OR_RETURN(const LogitRows rows, RowsOfLogits(inputs, "cross_entropy"));
    const torch::Tensor log_q = torch::log_softmax(rows.student, 1);  // (R, K)
    if (log_q.size(0) == 0) return log_q.sum();
    torch::Tensor per_row = -(1 - label_smoothing_) * log_q.gather(1, rows.labels.unsqueeze(1)).squeeze(1);  // (R)
    if (label_smoothing_ > 0) per_row = per_row - label_smoothing_ * log_q.mean(1);
    return per_row.mean();
  }
  double Count(const LossInputs& inputs) const override { return CountLabels(inputs); }

 private:
  const double label_smoothing_;
};

}  // namespace

LossOrStatus MakeCrossEntropy(const LossPlan& plan, uint64_t) {
  return std::make_unique<CrossEntropyLoss>(NumberKnob(plan.knobs, "label_smoothing"));
}

}  // namespace distill::loss_internal
