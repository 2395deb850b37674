// Private to losses/: the constructors that MakeLoss chooses from, and what they share.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_
#define DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_

#include "student_worker/losses/loss.h"

namespace distill::loss_internal {

// REQUIRES (all four): `knobs` completed by CompleteKnobs for the loss's schema.
std::unique_ptr<Loss> MakeCrossEntropy(const Knobs& knobs);
std::unique_ptr<Loss> MakeKd(const Knobs& knobs);
std::unique_ptr<Loss> MakeL2(const Knobs& knobs);
std::unique_ptr<Loss> MakeCwd(const Knobs& knobs);

// "[128, 16, 28, 28]", or "none" for an undefined tensor.
std::string ShapeText(const torch::Tensor& tensor);

// Both there, `rank` axes, equal shapes, floating point, same device.
Status CheckPair(const LossInputs& inputs, int64_t rank);

// The dtype losses compute in: float64 stays, everything else becomes float32.
torch::Tensor ToComputeType(const torch::Tensor& tensor, const torch::Tensor& student);

}  // namespace distill::loss_internal

#endif  // DISTILL_STUDENT_WORKER_LOSSES_LOSS_INTERNAL_H_
