// Channel-wise transformation: the student's channels go through a small learnable network, pixel by pixel, before they
// are compared with the teacher's.
//
// Source: Liu et al., "A Simple and Generic Framework for Feature Distillation via Channel-wise Transformation",
// arXiv:2303.13212. The full text was not available; the form is that of a published summary:
// clang-format off
//     MLP(F) = W2 relu(W1 F + b1) + b2,  W1 [C_h, C_s, 1, 1], W2 [C_t, C_h, 1, 1]
//     loss   = 1/N * sum over elements of (MLP(F_s) - F_t)^2            reduction sum_over_batch, the default
// clang-format on
// so that a job's weight is the paper's only hyper-parameter, alpha (mean = sum_over_batch / (C_t*H*W)). The MLP is the
// adapter too: it maps C_s to C_t, also where they are equal. Our choices where the text is silent: C_h = C_t
// (`hidden_ratio`, `hidden_width`), biases, torch's default initial values, no normalisation.
//
// Knobs: loss_dtype f64 squares and sums in float64 (sum_over_batch adds up many elements). For ablation: depth (0: one
// linear convolution), activation, norm, kernel 3, and side teacher or both, where both maps can become constant; the
// latter needs allow_collapse.
#include <torch/torch.h>

#include <cmath>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/conv_block.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

// `depth` hidden blocks and a linear one.
struct Mlp : torch::nn::Module {
  Mlp(const Knobs& knobs, int64_t in, int64_t out, uint64_t seed) {
    const int64_t width = static_cast<int64_t>(NumberKnob(knobs, "hidden_width"));
    const int64_t hidden =
        width > 0 ? width
                  : std::max<int64_t>(1, std::llround(NumberKnob(knobs, "hidden_ratio") * static_cast<double>(out)));
    const std::string& activation = TextKnob(knobs, "activation");
    const int64_t depth = static_cast<int64_t>(NumberKnob(knobs, "depth"));
    int64_t channels = in;
    for (int64_t i = 0; i <= depth; ++i) {
      ConvBlock::Options options{.in = channels, .out = i < depth ? hidden : out};
      options.kernel = static_cast<int64_t>(NumberKnob(knobs, "kernel"));
      options.bias = FlagKnob(knobs, "bias");
      if (i < depth) {
        if (TextKnob(knobs, "norm") == "batchnorm") options.norm = ConvBlock::Norm::kBatch;
        if (activation == "relu") options.activation = ConvBlock::Activation::kRelu;
        if (activation == "gelu") options.activation = ConvBlock::Activation::kGelu;
      }
      const std::string name = StrCat("layer", i + 1);
      layers.push_back(register_module(name, std::make_shared<ConvBlock>(options, SeedFor(name, seed))));
      channels = options.out;
    }
  }
  torch::Tensor forward(torch::Tensor x) {
    for (const auto& layer : layers) x = layer->forward(x);
    return x;
  }
  std::vector<std::shared_ptr<ConvBlock>> layers;
};

struct Sides : torch::nn::Module {
  std::shared_ptr<Mlp> student, teacher;  // null: that side is compared as it is
};

class ChannelTransformLoss : public Loss {
 public:
  ChannelTransformLoss(const LossPlan& plan, std::shared_ptr<Sides> sides)
      : matcher_(plan.knobs),
        reduction_(ParseReduction(TextKnob(plan.knobs, "reduction"))),
        in_double_(TextKnob(plan.knobs, "loss_dtype") == "f64"),
        sides_(std::move(sides)) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_ASSIGN_OR_RETURN(MapPair maps, matcher_.Match(inputs));
    for (const auto& [mlp, map, owner] : {std::tuple{sides_->student.get(), &maps.student, "student"},
                                          std::tuple{sides_->teacher.get(), &maps.teacher, "teacher"}}) {
      if (mlp == nullptr) continue;
      const int64_t in = mlp->layers.front()->options().in;
      if (map->size(1) != in) {
        return absl::InvalidArgumentError(StrCat("the ", owner, "'s map ", ShapeText(*map), " has not the ", in,
                                                 " channels that its transformation takes"));
      }
      *map = mlp->forward(*map);
    }
    DISTILL_RETURN_IF_ERROR(CheckPair({maps.student, maps.teacher, {}}, 4));
    torch::Tensor difference = maps.student - maps.teacher;
    if (!in_double_) return Reduce(difference.square(), reduction_);
    return Reduce(difference.to(torch::kFloat64).square(), reduction_).to(difference.scalar_type());
  }
  AcrossRanks across_ranks() const override { return AcrossRanksOf(reduction_); }
  torch::nn::Module* module() const override { return sides_.get(); }

 private:
  const SpatialMatcher matcher_;
  const Reduction reduction_;
  const bool in_double_;
  const std::shared_ptr<Sides> sides_;  // shared as torch modules are
};

}  // namespace

LossOrStatus MakeChannelTransform(const LossPlan& plan, uint64_t seed) {
  const int64_t in = plan.student_channels, out = plan.teacher_channels;
  if (in == 0 || out == 0) {
    return absl::InvalidArgumentError(
        StrCat("channel_transform from ", in, " to ", out, " channels; both must be at least 1"));
  }
  const std::string& side = TextKnob(plan.knobs, "side");
  if (side != "student" && !FlagKnob(plan.knobs, "allow_collapse")) {
    return absl::InvalidArgumentError(StrCat("side ", side, " needs allow_collapse: true"));
  }
  if (side == "teacher" && in != out) {
    return absl::InvalidArgumentError(
        StrCat("side teacher leaves the student's map as it is: its ", in, " channels must be the teacher's ", out));
  }
  auto sides = std::make_shared<Sides>();
  if (side != "teacher") {
    sides->student =
        sides->register_module("student", std::make_shared<Mlp>(plan.knobs, in, out, SeedFor("student", seed)));
  }
  if (side != "student") {
    sides->teacher =
        sides->register_module("teacher", std::make_shared<Mlp>(plan.knobs, out, out, SeedFor("teacher", seed)));
  }
  return std::make_unique<ChannelTransformLoss>(plan, std::move(sides));
}

}  // namespace distill::loss_internal
