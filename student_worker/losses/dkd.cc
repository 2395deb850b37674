// Decoupled knowledge distillation on logits. Source: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022,
// arXiv:2203.08679, equations 5 to 7. With the labels y, p = softmax(t / T), q = softmax(s / T):
//     b(p)  = (p_y, 1 - p_y)                       target class against all others
//     p^    = softmax of t / T over the classes k != y
//     TCKD  = KL(b(p) || b(q)),   NCKD = KL(p^ || q^)
//     loss  = T^2 / N * sum over n of (alpha TCKD_n + beta NCKD_n)
// With two classes there is one other class: NCKD is 0, and so is beta's part.
// KL(p || q) itself is TCKD + (1 - p_y) NCKD: with alpha = 1 and beta = 1 - p_y this is Hinton's loss. The paper raises
// the term's weight linearly over the first 20 epochs: `weight_schedule: {warmup: ...}`.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

// sum over the last axis of p (log p - log q); where p is 0 the term is 0.
torch::Tensor Kl(const torch::Tensor& log_p, const torch::Tensor& log_q) {
  return (log_p.exp() * (log_p - log_q)).sum(-1);
}

class DkdLoss : public Loss {
 public:
  explicit DkdLoss(const Knobs& knobs)
      : alpha_(NumberKnob(knobs, "alpha")),
        beta_(NumberKnob(knobs, "beta")),
        temperature_(NumberKnob(knobs, "temperature")) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_RETURN_IF_ERROR(CheckPair(inputs, inputs.student.defined() ? inputs.student.dim() : 2));
    DISTILL_ASSIGN_OR_RETURN(const LogitRows rows, RowsOfLogits(inputs, "dkd"));
    const torch::Tensor& labels = rows.labels;                         // (N)
    const int64_t n = rows.student.size(0), k = rows.student.size(1);  // N: samples, or pixels
    if (k < 2) return absl::InvalidArgumentError("dkd needs at least two classes");
    const torch::Tensor s = rows.student / temperature_, t = rows.teacher / temperature_;  // (N, K)
    if (n == 0) return s.sum();
    const torch::Tensor target = torch::zeros({n, k}, torch::TensorOptions().dtype(torch::kBool).device(s.device()))
                                     .scatter_(1, labels.unsqueeze(1), true);  // (N, K)
    // log of the target's probability and of the others' together, as two log-sum-exps: 1 - p_y would cancel.
    const auto binary = [&](const torch::Tensor& z) {
      const torch::Tensor all = torch::logsumexp(z, 1);                                           // (N)
      const torch::Tensor others = torch::logsumexp(z.masked_fill(target, -kInfinite), 1);        // (N)
      return torch::stack({z.gather(1, labels.unsqueeze(1)).squeeze(1) - all, others - all}, 1);  // (N, 2)
    };
    // The other classes alone: (N, K), with 0 for the target, which adds nothing to the divergence.
    const auto others = [&](const torch::Tensor& z) {
      return torch::log_softmax(z.masked_fill(target, -kInfinite), 1).masked_fill(target, 0);
    };
    const torch::Tensor target_part = Kl(binary(t), binary(s));
    const torch::Tensor other_part = Kl(others(t), others(s));
    return MeanOverLabelled(alpha_ * target_part + beta_ * other_part, rows) * (temperature_ * temperature_);
  }
  double Count(const LossInputs& inputs) const override { return CountLabels(inputs); }

 private:
  static constexpr double kInfinite = std::numeric_limits<double>::infinity();
  const double alpha_, beta_, temperature_;
};

}  // namespace

LossOrStatus MakeDkd(const LossPlan& plan, uint64_t) { return std::make_unique<DkdLoss>(plan.knobs); }

}  // namespace distill::loss_internal
