// Squared difference near zero, absolute difference beyond [Girshick 2015, arXiv:1504.08083]: with d = |s - t|,
//     d^2 / (2 beta) for d < beta,   d - beta / 2 otherwise.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/elementwise.h"

namespace distill::loss_internal {

LossOrStatus MakeSmoothL1(const LossPlan& plan, uint64_t) {
  const double beta = NumberKnob(plan.knobs, "beta");
  return std::make_unique<ElementwiseLoss>(plan.knobs, [beta](const torch::Tensor& s, const torch::Tensor& t) {
    return torch::smooth_l1_loss(s, t, at::Reduction::None, beta);
  });
}

}  // namespace distill::loss_internal
