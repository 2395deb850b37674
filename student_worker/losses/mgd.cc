// Masked generative distillation. Source: Yang et al., "Masked Generative Distillation", ECCV 2022, arXiv:2205.01529,
// equations 2 to 4. A random part of the student's map is set to 0 and a small generator has to make the teacher's map
// from the rest:
//     loss = reduce of (G(mask * S) - T)^2,      G = conv3x3(C_t, C_t), ReLU, conv3x3(C_t, C_t), with biases
// `mask` spatial: positions, in all channels at once (the paper's detection and segmentation runs); channel: whole
// channels (its classification runs). `mask_ratio`: the share that is hidden. S is the student's map after its adapter.
// A sample's mask is drawn anew in every step, from the seed, the step and its place in the batch of all ranks alone: a
// resumed stage draws the same ones, and so does any number of ranks.
#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/conv_block.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

struct Generator : torch::nn::Module {
  Generator(int64_t channels, uint64_t seed) {
    ConvBlock::Options options{.in = channels, .out = channels, .kernel = 3, .bias = true};
    options.activation = ConvBlock::Activation::kRelu;
    first = register_module("first", std::make_shared<ConvBlock>(options, SeedFor("first", seed)));
    options.activation = ConvBlock::Activation::kNone;
    second = register_module("second", std::make_shared<ConvBlock>(options, SeedFor("second", seed)));
  }
  std::shared_ptr<ConvBlock> first, second;
};

class MgdLoss : public Loss {
 public:
  MgdLoss(const LossPlan& plan, uint64_t seed)
      : matcher_(plan.knobs),
        reduction_(ParseReduction(TextKnob(plan.knobs, "reduction"))),
        by_channel_(TextKnob(plan.knobs, "mask") == "channel"),
        mask_ratio_(NumberKnob(plan.knobs, "mask_ratio")),
        seed_(seed),
        generator_(std::make_shared<Generator>(plan.teacher_channels, seed)) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_ASSIGN_OR_RETURN(const MapPair maps, matcher_.Match(inputs));
    DISTILL_RETURN_IF_ERROR(CheckPair({maps.student, maps.teacher, {}}, 4));
    const torch::Tensor& s = maps.student;
    if (s.size(1) != generator_->first->options().in) {
      return absl::InvalidArgumentError(StrCat("the generator takes ", generator_->first->options().in,
                                               " channels, but got student ", ShapeText(inputs.student),
                                               " and teacher ", ShapeText(inputs.teacher)));
    }
    const std::vector<int64_t> shape = by_channel_ ? std::vector<int64_t>{s.size(0), s.size(1), 1, 1}
                                                   : std::vector<int64_t>{s.size(0), 1, s.size(2), s.size(3)};
    const torch::Tensor seen = torch::empty(shape, torch::kFloat32);
    for (int64_t n = 0; n < s.size(0); ++n) {
      const uint64_t place = static_cast<uint64_t>(inputs.first_image + n);
      at::Generator random = at::detail::createCPUGenerator(SeedFor(StrCat("mgd/", place), inputs.draw ^ seed_));
      seen[n].uniform_(0, 1, random);
    }
    seen.ge_(mask_ratio_);
    const torch::Tensor masked = s * seen.to(s.options());
    const torch::Tensor made = generator_->second->forward(generator_->first->forward(masked));
    return Reduce((made - maps.teacher).square(), reduction_);
  }
  AcrossRanks across_ranks() const override { return AcrossRanksOf(reduction_); }
  torch::nn::Module* module() const override { return generator_.get(); }

 private:
  const SpatialMatcher matcher_;
  const Reduction reduction_;
  const bool by_channel_;
  const double mask_ratio_;
  const uint64_t seed_;                         // so that two losses of a stage hide different parts
  const std::shared_ptr<Generator> generator_;  // shared as torch modules are
};

}  // namespace

LossOrStatus MakeMgd(const LossPlan& plan, uint64_t seed) {
  if (plan.teacher_channels == 0) return absl::InvalidArgumentError("mgd needs the teacher's channel count");
  return std::make_unique<MgdLoss>(plan, seed);
}

}  // namespace distill::loss_internal
