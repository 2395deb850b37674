#include "student_worker/train/objective.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string TapName(const std::string& tap) { return tap.empty() ? "output" : tap; }

}  // namespace

StatusOr<Objective> Objective::Create(const JobPlan& plan, const StagePlan& stage) {
  DISTILL_ASSIGN_OR_RETURN(const WireDtype wire_dtype, ParseWireDtype(plan.wire_dtype));
  Objective objective;
  std::vector<bool> only_cwd;  // per teacher tap
  for (const LossPlan& loss : stage.losses) {
    if (loss.weight == 0) continue;
    Term term;
    term.weight = loss.weight;
    term.description =
        StrCat("loss '", loss.name, "' (student tap ", TapName(loss.student_tap),
               loss.needs_teacher ? StrCat(", teacher tap ", TapName(loss.teacher_tap)) : std::string(), ")");
    DISTILL_ASSIGN_OR_RETURN(term.loss, MakeLoss(loss));
    DISTILL_ASSIGN_OR_RETURN(term.adapter, MakeAdapter(loss, stage.name, plan.seed));
    auto& taps = objective.student_taps_;
    term.student_index = std::find(taps.begin(), taps.end(), loss.student_tap) - taps.begin();
    if (term.student_index == taps.size()) taps.push_back(loss.student_tap);
    term.teacher_index = kNone;
    if (loss.needs_teacher) {
      auto& requests = objective.teacher_taps_;
      const auto found = std::find_if(requests.begin(), requests.end(),
                                      [&](const TapRequest& request) { return request.tap == loss.teacher_tap; });
      term.teacher_index = found - requests.begin();
      if (found == requests.end()) {
        const bool logits = FindLossSchema(loss.type)->input == LossInput::kLogits;  // not null: MakeLoss knew it
        requests.push_back({loss.teacher_tap, logits ? WireDtype::kF32 : wire_dtype, false});
        only_cwd.push_back(true);
      }
      if (loss.type != "cwd") only_cwd[term.teacher_index] = false;
    }
    objective.names_.push_back(loss.name);
    objective.terms_.push_back(std::move(term));
  }
  for (size_t i = 0; i < only_cwd.size(); ++i) {
    TapRequest& request = objective.teacher_taps_[i];
    request.subtract_row_max = only_cwd[i] && request.dtype != WireDtype::kF32;
  }
  if (objective.terms_.empty()) {
    return absl::InvalidArgumentError(StrCat("stage '", stage.name, "' has no loss of non-zero weight; give it one"));
  }
  return objective;
}

std::vector<NamedTensor> Objective::AdapterParameters() const {
  std::vector<NamedTensor> parameters;
  for (size_t i = 0; i < terms_.size(); ++i) {
    if (terms_[i].adapter != nullptr)
      parameters.push_back({StrCat("adapter.", names_[i], ".weight"), terms_[i].adapter->weight});
  }
  return parameters;
}

void Objective::MoveTo(torch::Device device) {
  for (Term& term : terms_) {
    if (term.adapter != nullptr) term.adapter->to(device);
  }
}

StatusOr<Objective::Value> Objective::Compute(const std::vector<torch::Tensor>& student,
                                              const std::vector<torch::Tensor>& teacher,
                                              const torch::Tensor& labels) const {
  Value value;
  std::vector<torch::Tensor> terms;
  for (const Term& term : terms_) {
    LossInputs inputs;
    inputs.student = student[term.student_index];
    if (term.adapter != nullptr) {
      if (inputs.student.dim() != 4 || inputs.student.size(1) != term.adapter->weight.size(1)) {
        return absl::InvalidArgumentError(StrCat(term.description, ": the adapter takes ", term.adapter->weight.size(1),
                                                 " channels, the student's tap does not give them"));
      }
      inputs.student = term.adapter->forward(inputs.student);
    }
    if (term.teacher_index != kNone) inputs.teacher = teacher[term.teacher_index];
    inputs.labels = labels;
    auto loss = term.loss->Compute(inputs);
    if (!loss.ok()) return Annotate(loss.status(), term.description);
    terms.push_back(loss->detach());
    const torch::Tensor weighted = *loss * term.weight;
    value.total = value.total.defined() ? value.total + weighted : weighted;
  }
  const torch::Tensor on_cpu =
      torch::stack(terms).to(torch::TensorOptions().device(torch::kCPU).dtype(torch::kFloat64));
  for (size_t i = 0; i < terms_.size(); ++i) {
    value.terms.push_back(on_cpu[i].item<double>());
    if (!std::isfinite(value.terms[i])) {
      return absl::FailedPreconditionError(
          StrCat(terms_[i].description, " is ", value.terms[i],
                 "; lower the learning rate or the loss's weight, or check the teacher's weights"));
    }
  }
  return value;
}

torch::Tensor Objective::Touch(const std::vector<torch::Tensor>& student) const {
  torch::Tensor sum;
  for (const Term& term : terms_) {
    const torch::Tensor& tap = student[term.student_index];
    const torch::Tensor part = (term.adapter == nullptr ? tap : term.adapter->forward(tap)).sum();
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

double Objective::Total(const std::vector<double>& terms) const {
  double total = 0;
  for (size_t i = 0; i < terms_.size(); ++i) total += terms_[i].weight * terms[i];
  return total;
}

}  // namespace distill
