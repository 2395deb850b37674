// Attention transfer. Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017,
// arXiv:1612.03928, equation 2, with the power p of the knob `power`:
//     A(F) = mean over c of |F_c|^p   [N, H*W],      Q(F) = A(F) / ||A(F)||_2 per sample
//     loss = reduce over samples and positions of (Q(S) - Q(T))^2
// The paper takes the norm of the difference; like its released code we take the mean of squares, for which weights
// near 1000 are usual. Channels are averaged away, so they need not agree.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

class AtLoss : public Loss {
 public:
  explicit AtLoss(const Knobs& knobs)
      : matcher_(knobs), power_(NumberKnob(knobs, "power")), reduction_(ParseReduction(TextKnob(knobs, "reduction"))) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_ASSIGN_OR_RETURN(const MapPair maps, matcher_.Match(inputs));
    if (maps.student.numel() == 0) return maps.student.sum();
    return Reduce((Attention(maps.student) - Attention(maps.teacher)).square(), reduction_);
  }
  AcrossRanks across_ranks() const override { return AcrossRanksOf(reduction_); }

 private:
  // [N, C, H, W] -> [N, H*W], unit vectors.
  torch::Tensor Attention(const torch::Tensor& map) const {
    const torch::Tensor energy = power_ == 2 ? map.square() : map.abs().pow(power_);
    return torch::nn::functional::normalize(energy.mean(1).flatten(1),
                                            torch::nn::functional::NormalizeFuncOptions().p(2).dim(1));
  }

  const SpatialMatcher matcher_;
  const double power_;
  const Reduction reduction_;
};

}  // namespace

LossOrStatus MakeAt(const LossPlan& plan, uint64_t) { return std::make_unique<AtLoss>(plan.knobs); }

}  // namespace distill::loss_internal
