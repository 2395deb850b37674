#include "student_worker/losses/loss.h"

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/loss_internal.h"

namespace distill {
namespace loss_internal {

std::string ShapeText(const torch::Tensor& tensor) {
  if (!tensor.defined()) return "none";
  return StrCat("[", absl::StrJoin(tensor.sizes().vec(), ", "), "]");
}

Status CheckPair(const LossInputs& inputs, int64_t rank) {
  if (!inputs.student.defined() || !inputs.teacher.defined()) {
    return absl::InvalidArgumentError(StrCat("the loss compares two tensors, but the student's is ",
                                             ShapeText(inputs.student), " and the teacher's is ",
                                             ShapeText(inputs.teacher)));
  }
  if (inputs.student.dim() != rank || inputs.teacher.dim() != rank ||
      inputs.student.sizes() != inputs.teacher.sizes()) {
    return absl::InvalidArgumentError(StrCat(
        "student ", ShapeText(inputs.student), " and teacher ", ShapeText(inputs.teacher), " must be equal shapes of ",
        rank,
        " axes; choose taps of equal height and width, and set `adapter: conv1x1` where only the channels differ"));
  }
  if (!inputs.student.is_floating_point() || !inputs.teacher.is_floating_point()) {
    return absl::InvalidArgumentError("student and teacher tensors must be floating point");
  }
  if (inputs.student.device() != inputs.teacher.device()) {
    return absl::InvalidArgumentError(
        StrCat("student is on ", inputs.student.device().str(), ", teacher on ", inputs.teacher.device().str()));
  }
  return OkStatus();
}

torch::Tensor ToComputeType(const torch::Tensor& tensor, const torch::Tensor& student) {
  return tensor.to(student.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32);
}

}  // namespace loss_internal

StatusOr<std::unique_ptr<Loss>> MakeLoss(const LossPlan& plan) {
  const LossSchema* schema = FindLossSchema(plan.type);
  using Maker = std::unique_ptr<Loss> (*)(const Knobs&);
  static constexpr std::pair<std::string_view, Maker> kMakers[] = {
      {"cross_entropy", loss_internal::MakeCrossEntropy},
      {"kd", loss_internal::MakeKd},
      {"l2", loss_internal::MakeL2},
      {"cwd", loss_internal::MakeCwd},
  };
  std::vector<std::string> names;
  for (const auto& [type, maker] : kMakers) {
    names.emplace_back(type);
    if (schema == nullptr || type != plan.type) continue;
    auto knobs = CompleteKnobs(*schema, plan.knobs);
    if (!knobs.ok()) return Annotate(knobs.status(), StrCat("loss '", plan.name, "'"));
    return maker(*knobs);
  }
  return absl::InvalidArgumentError(StrCat("loss '", plan.name, "' has the unknown type '", plan.type, "'",
                                           DidYouMean(plan.type, names), "; this student knows ",
                                           absl::StrJoin(names, ", ")));
}

}  // namespace distill
