// Squared distance of feature maps (or logits), as in FitNets [Romero et al. 2015] and SSKD:
//     mean:            loss = 1/(N*C*H*W) * ||s - t||^2
//     sum_over_batch:  loss = 1/N * ||s - t||^2, i.e. C*H*W times the mean
// The reduction (knob `reduction`) changes the effective learning rate, not the optimum.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

class L2Loss : public Loss {
 public:
  explicit L2Loss(bool mean) : mean_(mean) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    // Maps have four axes; two are allowed so that logits can be matched too.
    DISTILL_RETURN_IF_ERROR(CheckPair(inputs, inputs.student.defined() && inputs.student.dim() == 2 ? 2 : 4));
    const torch::Tensor s = ToComputeType(inputs.student, inputs.student);
    const torch::Tensor t = ToComputeType(inputs.teacher, inputs.student).detach();
    const torch::Tensor sum = (s - t).square().sum();
    const int64_t count = mean_ ? s.numel() : s.size(0);
    return sum / static_cast<double>(std::max<int64_t>(count, 1));
  }

 private:
  const bool mean_;
};

}  // namespace

std::unique_ptr<Loss> MakeL2(const Knobs& knobs) {
  return std::make_unique<L2Loss>(TextKnob(knobs, "reduction") == "mean");
}

}  // namespace distill::loss_internal
