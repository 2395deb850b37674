#include "student_worker/train/objective.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "absl/strings/cord.h"
#include "common/plan/teacher_requests.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string TapName(const std::string& tap) { return tap.empty() ? "output" : tap; }

torch::Tensor Add(const torch::Tensor& a, const torch::Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : a + b;
}

// 0, with a gradient of 0, whatever the tensor holds: the sum over none of its elements. REQUIRES: it has an axis.
torch::Tensor Zero(const torch::Tensor& tensor) { return tensor.narrow(0, 0, 0).sum().to(torch::kFloat32); }

// The tensors of all ranks, one after the other along the first axis, equal in shape on each. No gradient.
StatusOr<torch::Tensor> Gather(const torch::Tensor& own, CollectiveGroup* group) {
  std::vector<int64_t> shape = own.sizes().vec();
  shape[0] *= group->world_size();
  // As float32: a teacher's map may have come in 16 bits, which not every way to reduce knows.
  const torch::ScalarType type = own.element_size() < 4 ? torch::kFloat32 : own.scalar_type();
  const torch::Tensor all = torch::zeros(shape, own.options().dtype(type));
  all.narrow(0, group->rank() * own.size(0), own.size(0)).copy_(own.detach());
  std::vector<torch::Tensor> tensors = {all};
  DISTILL_RETURN_IF_ERROR(group->AllReduceSum(tensors));
  return all;
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
  const TeacherRequests requests = TeacherRequestsOf(stage, wire_dtype);
  objective.teacher_taps_ = requests.taps;
  objective.teacher_input_ = requests.input;
  for (size_t i = 0; i < stage.losses.size(); ++i) {
    const LossPlan& loss = stage.losses[i];
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
    term.teacher_index = requests.of_loss[i];
    objective.names_.push_back(loss.name);
    objective.terms_.push_back(std::move(term));
  }
  for (const Term& term : objective.terms_) {
    for (const std::string& detail : term.loss->detail_names()) {
      objective.names_.push_back(StrCat(term.name, "/", detail));
    }
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

void Objective::SetNormRanks(NormRanks* ranks) {
  for (Term& term : terms_) {
    if (term.adapter != nullptr) term.adapter->SetNormRanks(ranks);
    if (term.loss->module() == nullptr) continue;
    for (const auto& module : term.loss->module()->modules()) {
      if (auto* block = dynamic_cast<ConvBlock*>(module.get())) block->SetNormRanks(ranks);
    }
  }
}

torch::Tensor Objective::TouchTerm(const Term& term, const torch::Tensor& student) {
  torch::Tensor zero = Zero(student);
  for (const NamedTensor& parameter : OwnOf(term)) zero = zero + Zero(parameter.tensor);
  return zero;
}

Status Objective::CheckFinite(const Term& term, double value) {
  if (std::isfinite(value)) return OkStatus();
  Status status = absl::FailedPreconditionError(
      StrCat(term.description, " is ", value,
             "; lower the learning rate or the loss's weight, or check the student's initial weights"));
  status.SetPayload(kNotFinite, absl::Cord(term.name));
  return status;
}

StatusOr<Objective::Part> Objective::Compute(const Inputs& given) const {
  Part part;
  std::vector<torch::Tensor> values, details;  // scalars
  const auto zero = [&] { return torch::zeros({}, given.student[0].options().dtype(torch::kFloat32)); };
  for (const Term& term : terms_) {
    LossInputs inputs;
    inputs.student = given.student[term.student_index];
    part.weights.push_back(term.weight * WeightFactor(term.schedule, given.progress));
    part.losses.emplace_back();
    part.counts.push_back(0);
    part.inputs.emplace_back();
    if (part.weights.back() == 0) {
      // The ranks wait for a gradient of every parameter, so those of a sleeping loss get one of 0.
      part.asleep = Add(part.asleep, TouchTerm(term, inputs.student));
      values.push_back(zero());
      details.insert(details.end(), term.loss->detail_names().size(), zero());
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
    if (term.teacher_index.has_value()) inputs.teacher = given.teacher[*term.teacher_index];
    inputs.weight = part.weights.back();
    if (term.loss->across_ranks() == AcrossRanks::kWholeBatch) {
      part.inputs.back() = std::move(inputs);
      values.push_back(zero());
      details.insert(details.end(), term.loss->detail_names().size(), zero());
      continue;
    }
    inputs.labels = given.labels;
    inputs.labelled = given.labelled;
    inputs.visible = given.visible;
    inputs.progress = given.progress;
    inputs.draw = given.draw;
    inputs.first_image = given.first_image;
    auto loss = term.loss->Compute(inputs);
    if (!loss.ok()) return Annotate(loss.status(), term.description);
    part.losses.back() = *loss;
    part.counts.back() = term.loss->Count(inputs);
    values.push_back(loss->detach().to(torch::kFloat32));
    for (const torch::Tensor& detail : term.loss->details()) details.push_back(detail.to(values.back().options()));
  }
  values.insert(values.end(), details.begin(), details.end());
  const torch::Tensor on_cpu =
      torch::stack(values).to(torch::TensorOptions().device(torch::kCPU).dtype(torch::kFloat64));
  const double* numbers = on_cpu.const_data_ptr<double>();
  for (size_t i = 0; i < terms_.size(); ++i) {
    DISTILL_RETURN_IF_ERROR(CheckFinite(terms_[i], numbers[i]));
    const bool mean = terms_[i].loss->across_ranks() == AcrossRanks::kMean;
    part.report.push_back(mean ? numbers[i] * part.counts[i] : numbers[i]);
    part.report.push_back(part.counts[i]);
  }
  part.report.insert(part.report.end(), numbers + terms_.size(), numbers + values.size());
  return part;
}

StatusOr<Objective::Value> Objective::Combine(const Part& part, const std::vector<double>& sums,
                                              CollectiveGroup* group) const {
  const double ranks = group == nullptr ? 1 : group->world_size();
  Value value;
  value.total = part.asleep;
  for (size_t i = 0; i < terms_.size(); ++i) {
    const double sum = sums[2 * i], count = sums[2 * i + 1];
    torch::Tensor loss = part.losses[i];
    double factor = 1;  // what makes the mean over ranks of the gradients that of the whole batch's term
    value.terms.push_back(0);
    if (part.weights[i] == 0) continue;
    switch (terms_[i].loss->across_ranks()) {
      case AcrossRanks::kMean:
        if (count > 0) {
          value.terms.back() = sum / count;
          factor = part.counts[i] * ranks / count;
        }
        break;
      case AcrossRanks::kSum:
        value.terms.back() = sum;
        factor = ranks;
        break;
      case AcrossRanks::kWholeBatch: {
        LossInputs inputs = part.inputs[i];
        if (ranks > 1) {
          // Every rank computes the whole term; gradient flows to its own samples alone.
          const int64_t own = inputs.student.size(0), first = group->rank() * own;
          DISTILL_ASSIGN_OR_RETURN(const torch::Tensor all, Gather(inputs.student, group));
          const int64_t after = all.size(0) - first - own;
          inputs.student = torch::cat({all.narrow(0, 0, first), inputs.student, all.narrow(0, first + own, after)});
          DISTILL_ASSIGN_OR_RETURN(inputs.teacher, Gather(inputs.teacher, group));
        }
        auto whole = terms_[i].loss->Compute(inputs);
        if (!whole.ok()) return Annotate(whole.status(), terms_[i].description);
        loss = *whole;
        value.terms.back() = loss.item<double>();
        if (ranks > 1) DISTILL_RETURN_IF_ERROR(group->Check());  // before the number decides anything
        DISTILL_RETURN_IF_ERROR(CheckFinite(terms_[i], value.terms.back()));
        factor = ranks;
        break;
      }
    }
    value.weighted += part.weights[i] * value.terms.back();
    value.total = Add(value.total, loss * (part.weights[i] * factor));
  }
  for (size_t i = 2 * terms_.size(); i < sums.size(); ++i) value.terms.push_back(sums[i] / ranks);
  return value;
}

Objective::MapFaults Objective::LookAt(const std::vector<TapRequest>& taps, const std::vector<WireTensor>& maps) {
  MapFaults faults;
  for (size_t i = 0; i < maps.size(); ++i) {
    const double largest = maps[i].largest;
    const std::string tap = TapName(taps[i].tap);
    const bool less_maximum = taps[i].encoding.less_row_max;
    constexpr double kSmallestNormalHalf = 0x1p-14;
    if (!std::isfinite(largest)) {
      if (faults.not_finite.empty()) faults.not_finite = tap;
    } else if (maps[i].bytes.size == 0) {
      continue;
    } else if (taps[i].encoding.dtype == WireDtype::kF16 && largest < kSmallestNormalHalf) {
      faults.vanished.push_back(StrCat("the teacher's map at tap '", tap, "'",
                                       less_maximum ? ", less its maximum," : "", " has no value above ", largest,
                                       "; f16 is coarse below 6e-5 and 0 below 3e-8; set wire_dtype to bf16 "
                                       "or f32"));
    } else if (largest == 0) {
      faults.vanished.push_back(StrCat("the teacher's map at tap '", tap, "' is ",
                                       less_maximum ? "constant in each channel" : "0 everywhere",
                                       " in a whole batch; look at the teacher's weights, or choose another tap"));
    }
  }
  return faults;
}

torch::Tensor Objective::Touch(const std::vector<torch::Tensor>& student) const {
  torch::Tensor sum;
  for (const Term& term : terms_) sum = Add(sum, TouchTerm(term, student[term.student_index]));
  return sum;
}

}  // namespace distill
