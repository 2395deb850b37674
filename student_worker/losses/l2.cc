// Squared distance of feature maps (or logits), as in FitNets [Romero et al. 2015] and SSKD:
//     mean:            loss = 1/(N*C*H*W) * ||s - t||^2
//     sum_over_batch:  loss = 1/N * ||s - t||^2, i.e. C*H*W times the mean
//     sum:             loss = ||s - t||^2
// The reduction changes the effective learning rate, not the optimum. FitNets' regressor is the adapter (conv1x1, or
// conv3x3).
#include <torch/torch.h>

#include "student_worker/losses/elementwise.h"

namespace distill::loss_internal {

LossOrStatus MakeL2(const LossPlan& plan, uint64_t) {
  return std::make_unique<ElementwiseLoss>(
      plan.knobs, [](const torch::Tensor& s, const torch::Tensor& t) { return (s - t).square(); });
}

}  // namespace distill::loss_internal
