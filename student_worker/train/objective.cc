#include "student_worker/train/objective.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/cord.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string TapName(const std::string& tap) { return tap.empty() ? "output" : tap; }

// A scalar that depends on all parameters of a module, null included.
torch::Tensor SumOfParameters(torch::nn::Module* module) {
  torch::Tensor sum;
  if (module == nullptr) return sum;
  for (const torch::Tensor& parameter : module->parameters()) {
    sum = sum.defined() ? sum + parameter.sum() : parameter.sum();
  }
  return sum;
}

torch::Tensor Add(const torch::Tensor& a, const torch::Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : a + b;
}

// Marks the one error that a metric counts.
constexpr char kNotFinite[] = "distillery/loss-not-finite";

}  // namespace

bool IsNotFinite(const Status& status) { return status.GetPayload(kNotFinite).has_value(); }

double WeightFactor(const WeightSchedulePlan& schedule, double progress) {
  if (progress < schedule.start || progress >= schedule.stop) return 0;
  const double u = (progress - schedule.start) / (schedule.stop - schedule.start);
  if (u < schedule.warmup) return u / schedule.warmup;
  const double v = schedule.warmup < 1 ? (u - schedule.warmup) / (1 - schedule.warmup) : 0;
  if (schedule.type == "linear") return 1 - v;
  if (schedule.type == "cosine") return (1 + std::cos(std::numbers::pi * v)) / 2;
  return 1;
}

StatusOr<Objective> Objective::Create(const JobPlan& plan, const StagePlan& stage) {
  DISTILL_ASSIGN_OR_RETURN(const WireDtype wire_dtype, ParseWireDtype(plan.wire_dtype));
  Objective objective;
  std::vector<bool> only_cwd;  // per teacher tap
  for (const LossPlan& loss : stage.losses) {
    if (loss.weight == 0) continue;
    Term term;
    term.name = loss.name;
    term.weight = loss.weight;
    term.schedule = loss.weight_schedule;
    term.own = loss.own;
    term.description =
        StrCat("loss '", loss.name, "' (student tap ", TapName(loss.student_tap),
               loss.needs_teacher ? StrCat(", teacher tap ", TapName(loss.teacher_tap)) : std::string(), ")");
    const std::string& schedule = loss.weight_schedule.type;
    if (schedule != "constant" && schedule != "linear" && schedule != "cosine") {
      return absl::InvalidArgumentError(StrCat(term.description, ": unknown weight schedule '", schedule,
                                               "'; this student knows constant, linear and cosine"));
    }
    // Two losses of a job differ in their layers' initial values.
    const uint64_t seed = SeedFor(StrCat(stage.name, "/", loss.name), plan.seed);
    DISTILL_ASSIGN_OR_RETURN(term.loss, MakeLoss(loss, seed));
    DISTILL_ASSIGN_OR_RETURN(term.adapter, MakeAdapter(loss, seed));
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
  for (const Term& term : objective.terms_) {
    for (const std::string& detail : term.loss->detail_names()) {
      objective.names_.push_back(StrCat(term.name, "/", detail));
    }
  }
  if (!stage.teacher_input.empty()) {
    objective.teacher_feeds_student_ = true;
    objective.teacher_taps_.push_back({stage.teacher_input, wire_dtype, false});
  }
  if (objective.terms_.empty()) {
    return absl::InvalidArgumentError(StrCat("stage '", stage.name, "' has no loss of non-zero weight; give it one"));
  }
  return objective;
}

std::vector<NamedTensor> Objective::OwnOf(const Term& term) {
  std::vector<NamedTensor> parameters;
  for (const auto& [kind, module] :
       {std::pair<std::string, torch::nn::Module*>{"adapter", term.adapter.get()}, {"loss", term.loss->module()}}) {
    if (module == nullptr) continue;
    for (const auto& item : module->named_parameters()) {
      parameters.push_back({StrCat(kind, ".", term.name, ".", item.key()), item.value()});
    }
  }
  return parameters;
}

std::vector<ParameterGroup> Objective::OwnParameters() const {
  std::vector<ParameterGroup> groups;
  for (const Term& term : terms_) {
    ParameterGroup group;
    group.parameters = OwnOf(term);
    group.lr_mult = term.own.lr_mult;
    group.constant_lr = term.own.constant_lr;
    if (term.own.weight_decay >= 0) group.weight_decay = term.own.weight_decay;
    if (!group.parameters.empty()) groups.push_back(std::move(group));
  }
  return groups;
}

std::vector<size_t> Objective::Asleep(double progress) const {
  std::vector<size_t> asleep;
  size_t group = 0;
  for (const Term& term : terms_) {
    if (OwnOf(term).empty()) continue;
    if (WeightFactor(term.schedule, progress) == 0) asleep.push_back(group);
    ++group;
  }
  return asleep;
}

void Objective::MoveTo(torch::Device device) {
  for (Term& term : terms_) {
    if (term.adapter != nullptr) term.adapter->to(device);
    if (term.loss->module() != nullptr) term.loss->module()->to(device);
  }
}

StatusOr<Objective::Value> Objective::Compute(const Inputs& given) const {
  Value value;
  std::vector<torch::Tensor> terms, details;
  std::vector<double> weights;
  for (const Term& term : terms_) {
    LossInputs inputs;
    inputs.student = given.student[term.student_index];
    const double weight = term.weight * WeightFactor(term.schedule, given.progress);
    weights.push_back(weight);
    if (weight == 0) {
      // The ranks wait for a gradient of every parameter, so those of a sleeping loss get one of 0.
      const torch::Tensor own = Add(SumOfParameters(term.adapter.get()), SumOfParameters(term.loss->module()));
      const torch::Tensor graph = Add(own, inputs.student.sum().to(torch::kFloat32));
      value.total = Add(value.total, graph * 0);
      terms.push_back(torch::zeros({}, graph.options()).detach());
      details.insert(details.end(), term.loss->detail_names().size(), terms.back());
      continue;
    }
    if (term.adapter != nullptr) {
      const int64_t in = term.adapter->options().in;
      if (inputs.student.dim() != 4 || inputs.student.size(1) != in) {
        return absl::InvalidArgumentError(
            StrCat(term.description, ": the adapter takes ", in, " channels, the student's tap does not give them"));
      }
      inputs.student = term.adapter->forward(inputs.student);
    }
    if (term.teacher_index != kNone) inputs.teacher = given.teacher[term.teacher_index];
    inputs.labels = given.labels;
    inputs.visible = given.visible;
    inputs.progress = given.progress;
    inputs.draw = given.draw;
    auto loss = term.loss->Compute(inputs);
    if (!loss.ok()) return Annotate(loss.status(), term.description);
    terms.push_back(loss->detach());
    for (const torch::Tensor& detail : term.loss->details()) details.push_back(detail.to(loss->options()));
    value.total = Add(value.total, *loss * weight);
  }
  terms.insert(terms.end(), details.begin(), details.end());
  const torch::Tensor on_cpu =
      torch::stack(terms).to(torch::TensorOptions().device(torch::kCPU).dtype(torch::kFloat64));
  for (size_t i = 0; i < terms.size(); ++i) value.terms.push_back(on_cpu[i].item<double>());
  for (size_t i = 0; i < terms_.size(); ++i) {
    value.weighted += weights[i] * value.terms[i];
    if (!std::isfinite(value.terms[i])) {
      Status status = absl::FailedPreconditionError(
          StrCat(terms_[i].description, " is ", value.terms[i],
                 "; lower the learning rate or the loss's weight, or check the student's initial weights"));
      status.SetPayload(kNotFinite, absl::Cord(terms_[i].name));
      return status;
    }
  }
  return value;
}

std::string Objective::FindNotFinite(const std::vector<TapRequest>& taps, const std::vector<torch::Tensor>& maps) {
  for (size_t i = 0; i < maps.size(); ++i) {
    // A sum of finite numbers in double is finite, and one NaN or infinity makes it not so.
    if (!std::isfinite(maps[i].sum(torch::kFloat64).item<double>())) return TapName(taps[i].tap);
  }
  return "";
}

torch::Tensor Objective::Touch(const std::vector<torch::Tensor>& student) const {
  torch::Tensor sum;
  for (const Term& term : terms_) {
    sum = Add(sum, student[term.student_index].sum());
    sum = Add(sum, Add(SumOfParameters(term.adapter.get()), SumOfParameters(term.loss->module())));
  }
  return sum;
}

}  // namespace distill
