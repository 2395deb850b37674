// Channel-wise distillation (CWD): the student learns where each of the teacher's channels looks.
//
// Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256. Each row
// r = (n, c) of a map becomes a distribution over its H*W positions, p = softmax(t_r / T), q = softmax(s_r / T), and
//     loss = T^2 / (N*C) * sum over r of KL(p_r || q_r)
// Scaling is that of the authors' released code (class CriterionCWD: sum over positions, divided by N*C, times T^2),
// with two departures: log-softmax instead of softmax then log, which underflows to NaN; and C is the width of the map
// that is compared, after the student's adapter, hence the teacher's.
//
// Knobs: temperature T > 0, with `temperature_end` moving over the stage; scale_t2 (false: without T^2); reduction mean
// (1/(N*C)), sum_over_channels (1/N), sum (1);
// mask (norm_axis spatial only)
//     padding       positions whose centre lies in the padding of a random crop leave both distributions
//     valid_labels  so do those whose nearest pixel has no label (in padding there is none)
// norm_axis
//     spatial       softmax over positions, as above
//     channel       softmax over channels at every position, rows r = (n, position): pixel-wise distillation; the mean
//                   reduction divides by N*H*W, the sum over "channels" is one over positions
//     channel_mean  no softmax: loss = mean over (n, c) of (mean over positions of s - of t)^2 (the authors' ablation)
// divergence
//     kl_t_s  KL(p || q), the paper's
//     ce      H(p, q): the same gradient, but it does not go to 0
//     kl_s_t  KL(q || p)
//     js      Jensen-Shannon: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2
//     mse     sum over positions of (p - q)^2
// With `impl` fused the first two run through a fused kernel where there is one (row_softmax_kl.h; closed-form gradient
// dS = T / (N*C) * (q - p)); with dense through torch's operators, and the others through autograd. A map of one
// position has p = q = 1: loss and gradient are 0.
#include <torch/torch.h>

#include <cmath>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/loss_internal.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill::loss_internal {
namespace {

enum class Divergence { kTeacherToStudent, kCrossEntropy, kStudentToTeacher, kJensenShannon, kSquaredDifference };
enum class RowReduction { kMean, kSumOverChannels, kSum };
enum class NormAxis { kSpatial, kChannel, kChannelMean };
enum class Mask { kNone, kPadding, kValidLabels };

Divergence ParseDivergence(std::string_view text) {
  if (text == "ce") return Divergence::kCrossEntropy;
  if (text == "kl_s_t") return Divergence::kStudentToTeacher;
  if (text == "js") return Divergence::kJensenShannon;
  if (text == "mse") return Divergence::kSquaredDifference;
  return Divergence::kTeacherToStudent;
}

RowReduction ParseRowReduction(std::string_view text) {
  if (text == "sum_over_channels") return RowReduction::kSumOverChannels;
  if (text == "sum") return RowReduction::kSum;
  return RowReduction::kMean;
}

NormAxis ParseNormAxis(std::string_view text) {
  if (text == "channel") return NormAxis::kChannel;
  if (text == "channel_mean") return NormAxis::kChannelMean;
  return NormAxis::kSpatial;
}

Mask ParseMask(std::string_view text) {
  if (text == "padding") return Mask::kPadding;
  if (text == "valid_labels") return Mask::kValidLabels;
  return Mask::kNone;
}

// bool [N, H, W]: the map's positions whose nearest pixel has a label in `labels` [N, H', W'].
torch::Tensor LabelledPositions(const torch::Tensor& labels, const torch::Tensor& map) {
  const auto nearest = [&](int64_t count, int64_t pixels) {  // the pixel at a position's centre
    return ((2 * torch::arange(count, labels.options()) + 1) * pixels).floor_divide(2 * count);  // (count)
  };
  return labels.index_select(1, nearest(map.size(2), labels.size(1)))
      .index_select(2, nearest(map.size(3), labels.size(2)))
      .ne(kIgnoredLabel);
}

// bool [N, H, W]: the map's positions whose centre is in the visible part [N, 4] of the image; undefined for all.
torch::Tensor VisiblePositions(const torch::Tensor& visible, const torch::Tensor& map) {
  if (!visible.defined()) return {};
  const auto centres = [&](int64_t count) {
    return (torch::arange(count, visible.options()) + 0.5) / static_cast<double>(count);  // (count)
  };
  const auto inside = [&](int64_t from, int64_t to, const torch::Tensor& at) {
    return at.ge(visible.slice(1, from, from + 1)).logical_and(at.lt(visible.slice(1, to, to + 1)));  // (N, count)
  };
  return inside(0, 2, centres(map.size(2))).unsqueeze(2).logical_and(inside(1, 3, centres(map.size(3))).unsqueeze(1));
}

class CwdLoss : public Loss {
 public:
  explicit CwdLoss(const Knobs& knobs)
      : matcher_(knobs),
        temperature_(knobs),
        scale_t2_(FlagKnob(knobs, "scale_t2")),
        divergence_(ParseDivergence(TextKnob(knobs, "divergence"))),
        reduction_(ParseRowReduction(TextKnob(knobs, "reduction"))),
        norm_axis_(ParseNormAxis(TextKnob(knobs, "norm_axis"))),
        mask_(ParseMask(TextKnob(knobs, "mask"))),
        fused_(TextKnob(knobs, "impl") == "fused") {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    MapPair maps{inputs.student, inputs.teacher};
    if (inputs.student.defined() && inputs.teacher.defined() && inputs.student.sizes() == inputs.teacher.sizes()) {
      // As they are: the fused kernel reads half precision itself.
      DISTILL_RETURN_IF_ERROR(CheckPair(inputs, 4));
      maps.teacher = inputs.teacher.detach();
    } else {
      DISTILL_ASSIGN_OR_RETURN(maps, matcher_.Match(inputs));
    }
    DISTILL_RETURN_IF_ERROR(CheckPair({maps.student, maps.teacher, {}}, 4));
    if (norm_axis_ == NormAxis::kChannelMean) return OfMeans(maps);
    if (norm_axis_ == NormAxis::kChannel) {
      // Positions become channels and channels positions.
      maps.student = maps.student.flatten(2).transpose(1, 2).unsqueeze(2);  // (N, H*W, 1, C)
      maps.teacher = maps.teacher.flatten(2).transpose(1, 2).unsqueeze(2);
    }
    const int64_t n = maps.student.size(0), c = maps.student.size(1);
    const double temperature = temperature_.At(inputs.progress);
    double scale = scale_t2_ ? temperature * temperature : 1;
    if (reduction_ == RowReduction::kMean) scale /= static_cast<double>(std::max<int64_t>(n * c, 1));
    if (reduction_ == RowReduction::kSumOverChannels) scale /= static_cast<double>(std::max<int64_t>(n, 1));
    DISTILL_ASSIGN_OR_RETURN(const torch::Tensor mask, Masked(inputs, maps.student));
    if (divergence_ == Divergence::kTeacherToStudent || divergence_ == Divergence::kCrossEntropy) {
      return MapSoftmaxKl(maps.student, maps.teacher,
                          {.temperature = temperature,
                           .scale = scale,
                           .cross_entropy = divergence_ == Divergence::kCrossEntropy,
                           .fused = fused_,
                           .weight = inputs.weight},
                          mask);
    }
    // (N, C, H, W) -> (N*C, H*W)
    const auto rows = [&](const torch::Tensor& map) {
      const torch::Tensor all = ToComputeType(map, inputs.student).flatten(0, 1).flatten(1);
      if (!mask.defined()) return all;
      return MaskRows(all, mask.flatten(1).unsqueeze(1).expand({n, c, all.size(1)}).flatten(0, 1));
    };
    const torch::Tensor log_p = LogSoftmaxAtTemperature(rows(maps.teacher), temperature);  // (N*C, H*W)
    const torch::Tensor log_q = LogSoftmaxAtTemperature(rows(maps.student), temperature);  // (N*C, H*W)
    switch (divergence_) {
      case Divergence::kStudentToTeacher:
        return scale * (log_q.exp() * (log_q - log_p)).sum();
      case Divergence::kJensenShannon: {
        const torch::Tensor log_m = torch::logaddexp(log_p, log_q) - std::log(2.0);
        return 0.5 * scale * (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum();
      }
      default:
        return scale * (log_p.exp() - log_q.exp()).square().sum();
    }
  }
  AcrossRanks across_ranks() const override {
    return reduction_ == RowReduction::kSum ? AcrossRanks::kSum : AcrossRanks::kMean;
  }

 private:
  // bool [N, H, W], the positions that count; undefined: all.
  StatusOr<torch::Tensor> Masked(const LossInputs& inputs, const torch::Tensor& map) const {
    if (mask_ == Mask::kNone) return torch::Tensor();
    if (mask_ == Mask::kPadding) return VisiblePositions(inputs.visible, map);
    const torch::Tensor& labels = inputs.labels;
    if (!labels.defined() || labels.dim() != 3 || labels.size(0) != map.size(0) ||
        labels.scalar_type() != torch::kInt64) {
      return absl::InvalidArgumentError(StrCat("cwd with mask: valid_labels needs int64 labels [N, H, W] with the map ",
                                               ShapeText(map), "; got ", ShapeText(labels)));
    }
    return LabelledPositions(labels, map);
  }

  torch::Tensor OfMeans(const MapPair& maps) const {
    const torch::Tensor s = ToComputeType(maps.student, maps.student).mean({2, 3});  // (N, C)
    const torch::Tensor t = ToComputeType(maps.teacher, maps.student).mean({2, 3});
    const torch::Tensor squares = (s - t).square();
    if (reduction_ == RowReduction::kSum || squares.numel() == 0) return squares.sum();
    return reduction_ == RowReduction::kMean ? squares.mean() : squares.sum() / static_cast<double>(s.size(0));
  }

  const SpatialMatcher matcher_;
  const TemperatureSchedule temperature_;
  const bool scale_t2_;
  const Divergence divergence_;
  const RowReduction reduction_;
  const NormAxis norm_axis_;
  const Mask mask_;
  const bool fused_;
};

}  // namespace

LossOrStatus MakeCwd(const LossPlan& plan, uint64_t) { return std::make_unique<CwdLoss>(plan.knobs); }

}  // namespace distill::loss_internal
