// The auxiliary head of PSPNet and DeepLab: a small FCN head on an inner map of the student, whose answers are compared
// with the labels beside those of the network itself. [Zhao et al. 2017, arXiv:1612.01105, section 3.3; as
// torchvision's FCNHead, without its dropout]
//     loss = cross-entropy of the head's logits, enlarged bilinearly to the size of the label map, with mean over the
//            labelled pixels
//     head = conv3x3(C, C/4) without bias, batch norm, ReLU, conv1x1(C/4, K)
// The layers carry the numbers of torchvision's aux_classifier: 0 (with its batch norm, torchvision's 1) and 4. Like
// all layers of losses they train with the stage and are neither asked in an evaluation nor exported.
#include <torch/torch.h>

#include <algorithm>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/conv_block.h"
#include "student_worker/losses/loss_internal.h"

namespace distill::loss_internal {
namespace {

struct Head : torch::nn::Module {
  Head(int64_t channels, int64_t classes, uint64_t seed) {
    ConvBlock::Options options{.in = channels, .out = std::max<int64_t>(1, channels / 4), .kernel = 3};
    options.norm = ConvBlock::Norm::kBatch;
    options.activation = ConvBlock::Activation::kRelu;
    inner = register_module("0", std::make_shared<ConvBlock>(options, SeedFor("0", seed)));
    options = {.in = options.out, .out = classes, .kernel = 1, .bias = true};
    logits = register_module("4", std::make_shared<ConvBlock>(options, SeedFor("4", seed)));
  }
  std::shared_ptr<ConvBlock> inner, logits;
};

class AuxClassifierLoss : public Loss {
 public:
  AuxClassifierLoss(const LossPlan& plan, uint64_t seed)
      : align_corners_(FlagKnob(plan.knobs, "align_corners")),
        label_smoothing_(NumberKnob(plan.knobs, "label_smoothing")),
        head_(std::make_shared<Head>(plan.student_channels, plan.teacher_channels, seed)) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& given) const override {
    const torch::Tensor &map = given.student, &labels = given.labels;
    const int64_t channels = head_->inner->options().in;
    if (!map.defined() || map.dim() != 4 || map.size(1) != channels || !map.is_floating_point()) {
      return absl::InvalidArgumentError(
          StrCat("the auxiliary head takes a map [N, ", channels, ", H, W]; got ", ShapeText(map)));
    }
    if (!labels.defined() || labels.dim() != 3) {
      return absl::InvalidArgumentError(
          StrCat("the auxiliary head needs a label for every pixel, int64 [N, H, W]; got ", ShapeText(labels)));
    }
    const torch::Tensor coarse =
        head_->logits->forward(head_->inner->forward(ToComputeType(map, map)));  // (N, K, h, w)
    const torch::Tensor fine = torch::upsample_bilinear2d(coarse, {labels.size(1), labels.size(2)}, align_corners_);
    LossInputs inputs = given;
    inputs.student = fine;
    inputs.teacher = torch::Tensor();
    return MeanCrossEntropy(inputs, label_smoothing_, "aux_classifier");
  }
  double Count(const LossInputs& inputs) const override { return CountLabels(inputs); }
  torch::nn::Module* module() const override { return head_.get(); }

 private:
  const bool align_corners_;
  const double label_smoothing_;
  const std::shared_ptr<Head> head_;  // shared as torch modules are
};

}  // namespace

LossOrStatus MakeAuxClassifier(const LossPlan& plan, uint64_t seed) {
  if (plan.student_channels == 0 || plan.teacher_channels == 0) {
    return absl::InvalidArgumentError("aux_classifier needs the map's channel count and the number of classes");
  }
  return std::make_unique<AuxClassifierLoss>(plan, seed);
}

}  // namespace distill::loss_internal
