// Absolute difference of feature maps (or logits): loss = mean |s - t|, or the sums that the knob `reduction` names.
#include <torch/torch.h>

#include "student_worker/losses/elementwise.h"

namespace distill::loss_internal {

LossOrStatus MakeL1(const LossPlan& plan, uint64_t) {
  return std::make_unique<ElementwiseLoss>(
      plan.knobs, [](const torch::Tensor& s, const torch::Tensor& t) { return (s - t).abs(); });
}

}  // namespace distill::loss_internal
