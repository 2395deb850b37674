// Knowledge distillation on logits [Hinton, Vinyals, Dean 2015], mean over the batch:
//     loss = T^2 / N * sum over n of KL(softmax(t_n / T) || softmax(s_n / T))
// T^2 keeps the gradient's size when T changes, as the paper advises. T is the knob `temperature`; with
// `temperature_end` it moves over the stage. With an answer for every pixel n runs over all pixels of the batch.
#include <torch/torch.h>

#include "common/plan/loss_schema.h"
#include "student_worker/losses/loss_internal.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill::loss_internal {
namespace {

class KdLoss : public Loss {
 public:
  explicit KdLoss(const Knobs& knobs) : temperature_(knobs) {}

  StatusOr<torch::Tensor> Compute(const LossInputs& inputs) const override {
    DISTILL_RETURN_IF_ERROR(CheckPair(inputs, inputs.student.defined() ? inputs.student.dim() : 2));
    DISTILL_ASSIGN_OR_RETURN(const LogitRows rows, RowsOfLogits(inputs, ""));
    const int64_t n = std::max<int64_t>(rows.student.size(0), 1);
    const double temperature = temperature_.At(inputs.progress);
    return RowSoftmaxKl(rows.student, rows.teacher,
                        {.temperature = temperature,
                         .scale = temperature * temperature / static_cast<double>(n),
                         .weight = inputs.weight});
  }

 private:
  const TemperatureSchedule temperature_;
};

}  // namespace

LossOrStatus MakeKd(const LossPlan& plan, uint64_t) { return std::make_unique<KdLoss>(plan.knobs); }

}  // namespace distill::loss_internal
