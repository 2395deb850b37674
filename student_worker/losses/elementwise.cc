#include "student_worker/losses/elementwise.h"

#include <torch/torch.h>

#include "common/plan/loss_schema.h"

namespace distill::loss_internal {

ElementwiseLoss::ElementwiseLoss(const Knobs& knobs, Term term)
    : matcher_(knobs), reduction_(ParseReduction(TextKnob(knobs, "reduction"))), term_(std::move(term)) {}

StatusOr<torch::Tensor> ElementwiseLoss::Compute(const LossInputs& inputs) const {
  if (inputs.student.defined() && inputs.student.dim() == 2) {
    DISTILL_RETURN_IF_ERROR(CheckPair(inputs, 2));
    return Reduce(
        term_(ToComputeType(inputs.student, inputs.student), ToComputeType(inputs.teacher.detach(), inputs.student)),
        reduction_);
  }
  DISTILL_ASSIGN_OR_RETURN(const MapPair maps, matcher_.Match(inputs));
  DISTILL_RETURN_IF_ERROR(CheckPair({maps.student, maps.teacher, {}}, 4));
  return Reduce(term_(maps.student, maps.teacher), reduction_);
}

}  // namespace distill::loss_internal
