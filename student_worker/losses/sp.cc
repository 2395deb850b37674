// Similarity-preserving distillation. Source: Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019,
// arXiv:1907.09682, equations 1 to 4. With F [N, C*H*W]:
//     G(F) = F F^T  [N, N],  each row scaled to length 1;      loss = 1/N^2 * ||G(S) - G(T)||_F^2
// Every sample is compared with every other of the batch, those of other ranks too (AcrossRanks::kWholeBatch): ranks
// send each other their maps for it. Channels and sizes are summed away, so they need not agree. Weights near 3000 are
// usual.
#include <torch/torch.h>

#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

class SpLoss : public Loss {
 public:
  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_RETURN_IF_ERROR(CheckInputs(inputs, 4));
    const torch::Tensor s = ToComputeType(inputs.student, inputs.student);
    if (s.numel() == 0) return s.sum();
    const torch::Tensor t = ToComputeType(inputs.teacher.detach(), inputs.student);
    return (Similarity(s) - Similarity(t)).square().mean();
  }
  AcrossRanks across_ranks() const override { return AcrossRanks::kWholeBatch; }

 private:
  static torch::Tensor Similarity(const torch::Tensor& map) {
    const torch::Tensor rows = map.flatten(1);  // (N, C*H*W)
    return torch::nn::functional::normalize(rows.matmul(rows.t()),
                                            torch::nn::functional::NormalizeFuncOptions().p(2).dim(1));
  }
};

}  // namespace

LossOrStatus MakeSp(const LossPlan&, uint64_t) { return std::make_unique<SpLoss>(); }

}  // namespace distill::loss_internal
