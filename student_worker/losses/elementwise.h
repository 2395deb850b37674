// Private to losses/: losses that compare position by position and reduce: l1, l2, smooth_l1.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_ELEMENTWISE_H_
#define DISTILL_STUDENT_WORKER_LOSSES_ELEMENTWISE_H_

#include <functional>

#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {

// loss = reduce over elements of term(s, t). Maps [N, C, H, W], or [N, K] for logits.
class ElementwiseLoss : public Loss {
 public:
  using Term = std::function<torch::Tensor(const torch::Tensor& student, const torch::Tensor& teacher)>;
  ElementwiseLoss(const Knobs& knobs, Term term);
  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override;
  AcrossRanks across_ranks() const override { return AcrossRanksOf(reduction_); }

 private:
  const SpatialMatcher matcher_;
  const Reduction reduction_;
  const Term term_;
};

}  // namespace distill::loss_internal

#endif  // DISTILL_STUDENT_WORKER_LOSSES_ELEMENTWISE_H_
