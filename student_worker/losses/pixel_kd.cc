// Pixel-wise distillation: soft targets at every position. Source: Liu et al., "Structured Knowledge Distillation for
// Semantic Segmentation", CVPR 2019, arXiv:1903.04197, the pixel-wise part. With p, q the softmaxes over channels at T:
//     loss = T^2 / (N*H*W) * sum over positions of KL(p || q)
// Equal to CWD with the channel and position axes exchanged.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/kernel_view.h"
#include "student_worker/losses/loss_internal.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill::loss_internal {
namespace {

class PixelKdLoss : public Loss {
 public:
  explicit PixelKdLoss(const Knobs& knobs) : matcher_(knobs), temperature_(NumberKnob(knobs, "temperature")) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_ASSIGN_OR_RETURN(const MapPair maps, matcher_.Match(inputs, /*teacher_as_it_is=*/true));
    DISTILL_RETURN_IF_ERROR(CheckPair({maps.student, maps.teacher, {}}, 4));
    const auto rows = [](const torch::Tensor& map) { return map.permute({0, 2, 3, 1}).flatten(0, 2); };  // (N*H*W, C)
    const torch::Tensor s = rows(maps.student);
    const double scale = temperature_ * temperature_ / static_cast<double>(std::max<int64_t>(s.size(0), 1));
    const torch::Tensor t = rows(InLayout(maps.teacher, torch::MemoryFormat::ChannelsLast));
    return RowSoftmaxKl(s, t, {.temperature = temperature_, .scale = scale, .weight = inputs.weight});
  }

 private:
  const SpatialMatcher matcher_;
  const double temperature_;
};

}  // namespace

LossOrStatus MakePixelKd(const LossPlan& plan, uint64_t) { return std::make_unique<PixelKdLoss>(plan.knobs); }

}  // namespace distill::loss_internal
