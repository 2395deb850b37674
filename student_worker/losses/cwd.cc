// Channel-wise distillation (CWD): the student learns where each of the teacher's channels looks.
//
// Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256. Each row
// r = (n, c) of a map becomes a distribution over its H*W positions, p = softmax(t_r / T), q = softmax(s_r / T), and
//     loss = T^2 / (N*C) * sum over r of KL(p_r || q_r)
// Scaling is that of the authors' released code (class CriterionCWD: sum over positions, divided by N*C, times T^2),
// with two departures: log-softmax instead of softmax then log, which underflows to NaN; and C is the width of the map
// that is compared, after the student's adapter, hence the teacher's.
//
// Knobs: temperature T > 0; scale_t2 (false: without T^2); reduction mean (1/(N*C)), sum_over_channels (1/N), sum (1);
// divergence
//     kl_t_s  KL(p || q), the paper's
//     ce      H(p, q): the same gradient, but it does not go to 0
//     kl_s_t  KL(q || p)
//     js      Jensen-Shannon: (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2
//     mse     sum over positions of (p - q)^2
// The first two run through RowSoftmaxKl (closed-form gradient dS = T / (N*C) * (q - p)), the others through autograd.
// A map of one position has p = q = 1: loss and gradient are 0.
#include <torch/torch.h>

#include <cmath>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill::loss_internal {
namespace {

enum class Divergence { kTeacherToStudent, kCrossEntropy, kStudentToTeacher, kJensenShannon, kSquaredDifference };
enum class Reduction { kMean, kSumOverChannels, kSum };

Divergence ParseDivergence(std::string_view text) {
  if (text == "ce") return Divergence::kCrossEntropy;
  if (text == "kl_s_t") return Divergence::kStudentToTeacher;
  if (text == "js") return Divergence::kJensenShannon;
  if (text == "mse") return Divergence::kSquaredDifference;
  return Divergence::kTeacherToStudent;
}

Reduction ParseReduction(std::string_view text) {
  if (text == "sum_over_channels") return Reduction::kSumOverChannels;
  if (text == "sum") return Reduction::kSum;
  return Reduction::kMean;
}

class CwdLoss : public Loss {
 public:
  CwdLoss(double temperature, bool scale_t2, Divergence divergence, Reduction reduction)
      : temperature_(temperature), scale_t2_(scale_t2), divergence_(divergence), reduction_(reduction) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_RETURN_IF_ERROR(CheckPair(inputs, 4));
    const int64_t n = inputs.student.size(0), c = inputs.student.size(1);
    // (N, C, H, W) -> (N*C, H*W). A copy for channels_last maps, a view otherwise.
    const torch::Tensor s = ToComputeType(inputs.student, inputs.student).flatten(0, 1).flatten(1);
    const torch::Tensor t = ToComputeType(inputs.teacher, inputs.student).detach().flatten(0, 1).flatten(1);
    double scale = scale_t2_ ? temperature_ * temperature_ : 1;
    if (reduction_ == Reduction::kMean) scale /= static_cast<double>(std::max<int64_t>(n * c, 1));
    if (reduction_ == Reduction::kSumOverChannels) scale /= static_cast<double>(std::max<int64_t>(n, 1));
    if (divergence_ == Divergence::kTeacherToStudent) return RowSoftmaxKl(s, t, temperature_, scale);
    if (divergence_ == Divergence::kCrossEntropy)
      return RowSoftmaxKl(s, t, temperature_, scale, /*cross_entropy=*/true);

    const torch::Tensor log_p = LogSoftmaxAtTemperature(t, temperature_);  // (N*C, H*W)
    const torch::Tensor log_q = LogSoftmaxAtTemperature(s, temperature_);  // (N*C, H*W)
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

 private:
  const double temperature_;
  const bool scale_t2_;
  const Divergence divergence_;
  const Reduction reduction_;
};

}  // namespace

std::unique_ptr<Loss> MakeCwd(const Knobs& knobs) {
  return std::make_unique<CwdLoss>(NumberKnob(knobs, "temperature"), FlagKnob(knobs, "scale_t2"),
                                   ParseDivergence(TextKnob(knobs, "divergence")),
                                   ParseReduction(TextKnob(knobs, "reduction")));
}

}  // namespace distill::loss_internal
