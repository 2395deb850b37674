#include "student_worker/train/stage_runner.h"

#include <ATen/autocast_mode.h>
#include <torch/torch.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "common/log.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/wire/copy_count.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/train/trainable_set.h"

namespace distill {
namespace {

constexpr char kStepCountKey[] = "step_count";
constexpr char kAverageUpdatesKey[] = "ema_updates";

// Seconds since the last call.
class Stopwatch {
 public:
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - last_).count();
    last_ = now;
    return seconds;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// The teacher's broken maps are skipped, but not for ever.
constexpr uint32_t kMaxSkippedInARow = 20;

const StagePlan& StageOf(const StageRunner::Options& options) { return options.plan->stages[options.stage]; }

// The taps for one image of zeros, or for a map of zeros where the stage starts at one.
StatusOr<std::vector<torch::Tensor>> ForwardOfZeros(const StageRunner::Options& options,
                                                    const std::vector<std::string>& taps) {
  const Architecture& architecture = options.net->architecture();
  const std::string& start = StageOf(options).student_input;
  if (!start.empty()) {
    const TapInfo* tap = architecture.FindTap(start);
    if (tap == nullptr || tap->shape.size() != 3) {
      return absl::InvalidArgumentError(StrCat("student_input '", start, "' is no map of the student"));
    }
    return options.net->ForwardAfter(
        start, torch::zeros({1, tap->shape[0], tap->shape[1], tap->shape[2]}, options.device), taps);
  }
  const ModelSpec& spec = architecture.spec();
  return options.net->Forward(torch::zeros({1, spec.in_channels, spec.image_height, spec.image_width}, options.device),
                              taps);
}

// Freezes those of the trainable parameters that the objective's taps do not depend on, such as the head in a stage
// that imitates maps: the gradient reducer waits for every parameter it was given. Found by a backward pass of one
// black image in eval mode.
Status DropUnreached(const StageRunner::Options& options, const Objective& objective,
                     std::vector<NamedTensor>* parameters) {
  if (parameters->empty()) return OkStatus();
  const EvalModeGuard eval_mode(options.net);
  DISTILL_ASSIGN_OR_RETURN(const std::vector<torch::Tensor> taps, ForwardOfZeros(options, objective.student_taps()));
  const torch::Tensor sum = objective.Touch(taps);
  std::vector<torch::Tensor> inputs;
  for (const NamedTensor& parameter : *parameters) inputs.push_back(parameter.tensor);
  torch::autograd::variable_list gradients(inputs.size());
  if (sum.requires_grad()) {
    gradients =
        torch::autograd::grad({sum}, inputs, /*grad_outputs=*/{}, /*retain_graph=*/std::nullopt, /*create_graph=*/false,
                              /*allow_unused=*/true);
  }
  std::vector<NamedTensor> reached;
  std::string first_dropped;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (gradients[i].defined()) {
      reached.push_back((*parameters)[i]);
    } else {
      if (first_dropped.empty()) first_dropped = (*parameters)[i].name;
      inputs[i].requires_grad_(false);
    }
  }
  if (!first_dropped.empty()) {
    LogWarning("no loss of the stage reaches some trainable parameters; they stay as they are",
               {{"count", inputs.size() - reached.size()}, {"first", first_dropped}});
  }
  *parameters = std::move(reached);
  return OkStatus();
}

// The parameters by their modules' factors on the learning rate, in the order in which the factors come up.
StatusOr<std::vector<ParameterGroup>> GroupsByRate(const StageRunner::Options& options,
                                                   const std::vector<NamedTensor>& parameters) {
  const OptimizerPlan& optimizer = StageOf(options).optimizer;
  const std::vector<std::string> paths = options.net->architecture().ModulePaths();
  for (const LrMultPlan& mult : optimizer.lr_mult) {
    for (const std::string& module : mult.modules) {
      if (std::find(paths.begin(), paths.end(), module) != paths.end()) continue;
      return absl::InvalidArgumentError(StrCat("optimizer lr_mult: the student has no module '", module, "'"));
    }
    if (!(std::isfinite(mult.factor) && mult.factor >= 0)) {
      return absl::InvalidArgumentError(
          StrCat("optimizer lr_mult is ", mult.factor, "; it must be a number of at least 0"));
    }
  }
  std::vector<ParameterGroup> groups;
  for (const NamedTensor& parameter : parameters) {
    double factor = 1;
    for (const LrMultPlan& mult : optimizer.lr_mult) {
      if (std::any_of(mult.modules.begin(), mult.modules.end(),
                      [&](const std::string& module) { return IsUnder(parameter.name, module); })) {
        factor = mult.factor;  // the last one holds
      }
    }
    auto group = std::find_if(groups.begin(), groups.end(),
                              [factor](const ParameterGroup& one) { return one.lr_mult == factor; });
    if (group == groups.end()) {
      groups.push_back({.parameters = {}, .lr_mult = factor, .constant_lr = false, .weight_decay = {}});
      group = std::prev(groups.end());
    }
    group->parameters.push_back(parameter);
  }
  return groups;
}

// torch's automatic mixed precision for what runs while it lives: convolutions and products in bfloat16, sums,
// statistics and parameters in float32.
class AutocastGuard {
 public:
  AutocastGuard(c10::DeviceType device, bool on)
      : device_(device), before_(at::autocast::is_autocast_enabled(device)), on_(on) {
    if (!on_) return;
    at::autocast::increment_nesting();
    at::autocast::set_autocast_enabled(device_, true);
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
  }
  ~AutocastGuard() {
    if (!on_) return;
    at::autocast::set_autocast_enabled(device_, before_);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
  AutocastGuard(const AutocastGuard&) = delete;
  AutocastGuard& operator=(const AutocastGuard&) = delete;

 private:
  const c10::DeviceType device_;
  const bool before_;
  const bool on_;
};

// A group's ranks, as batch norms see them.
class RanksOfGroup : public NormRanks {
 public:
  explicit RanksOfGroup(CollectiveGroup* group) : group_(group) {}
  uint32_t rank() const override { return group_->rank(); }
  uint32_t size() const override { return group_->world_size(); }
  void Sum(const torch::Tensor& tensor) override {
    std::vector<torch::Tensor> tensors = {tensor};
    const Status status = group_->AllReduceSum(tensors);
    if (!status.ok()) C10_THROW_ERROR(DistBackendError, StrCat("batch norm over all ranks: ", status.message()));
  }

 private:
  CollectiveGroup* const group_;  // not owned: the lock-step's, which outlives the runner
};

// A label for each image (n), or for each pixel (n, H, W).
torch::Tensor Labels(const StepInput& input) {
  if (input.label_maps.empty()) return torch::tensor(input.labels, torch::kInt64);
  const int64_t n = input.images.n, h = input.images.h, w = input.images.w;
  const torch::Tensor classes =
      torch::from_blob(const_cast<uint8_t*>(input.label_maps.data()), {n, h, w}, torch::kUInt8);
  return classes.to(torch::kInt64).masked_fill_(classes.eq(kIgnoredPixel), kIgnoredLabel);
}

}  // namespace

// This rank's part of a step up to the losses.
struct StageRunner::Forwarded {
  Objective::Part part;
  std::string broken_tap;  // see BrokenTap: the step is to be skipped, and part is empty
};

StageRunner::~StageRunner() {
  if (norm_ranks_ != nullptr) (void)options_.net->SetNormRanks(nullptr);  // which cannot fail
}

StatusOr<std::unique_ptr<StageRunner>> StageRunner::Create(const Options& options) {
  const StagePlan& stage = options.plan->stages[options.stage];
  const std::string where = StrCat("stage '", stage.name, "'");
  auto objective = Objective::Create(*options.plan, stage);
  if (!objective.ok()) return Annotate(objective.status(), where);
  objective->MoveTo(options.device);
  auto schedule = LrSchedule::Create(stage.schedule, stage.steps);
  if (!schedule.ok()) return Annotate(schedule.status(), where);
  auto parameters = ApplyTrainable(options.net, stage.trainable, stage.frozen_bn == "train");
  if (!parameters.ok()) return Annotate(parameters.status(), where);
  try {
    DISTILL_RETURN_IF_ERROR(Annotate(DropUnreached(options, *objective, &*parameters), where));
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat(where, ": a pass from the student's taps through the adapters"));
  }
  auto grouped = GroupsByRate(options, *parameters);
  if (!grouped.ok()) return Annotate(grouped.status(), where);
  std::vector<ParameterGroup> groups = *std::move(grouped);
  const size_t net_groups = groups.size();
  for (ParameterGroup& own : objective->OwnParameters()) groups.push_back(std::move(own));
  std::vector<torch::Tensor> tensors;
  for (const ParameterGroup& group : groups) {
    for (const NamedTensor& parameter : group.parameters) tensors.push_back(parameter.tensor);
  }
  auto optimizer = StageOptimizer::Create(stage.optimizer, std::move(groups));
  if (!optimizer.ok()) return Annotate(optimizer.status(), where);

  std::unique_ptr<StageRunner> runner(new StageRunner(options, std::move(*objective), std::move(*schedule)));
  runner->optimizer_ = std::move(*optimizer);
  runner->net_groups_ = net_groups;
  runner->parameters_ = std::move(tensors);
  if (CollectiveGroup* const group = options.lockstep->group();
      options.plan->sync_batch_norm && group->world_size() > 1) {
    auto ranks = std::make_unique<RanksOfGroup>(group);
    DISTILL_RETURN_IF_ERROR(Annotate(options.net->SetNormRanks(ranks.get()), where));
    runner->objective_.SetNormRanks(ranks.get());
    runner->norm_ranks_ = std::move(ranks);
  }
  if (stage.optimizer.ema_decay > 0) {
    std::vector<NamedTensor> weights;
    for (const StudentNet::StateTensor& one : options.net->State()) weights.push_back({one.name, one.tensor});
    runner->average_ = std::make_unique<WeightAverage>(weights, stage.optimizer.ema_decay);
  }
  return runner;
}

Status StageRunner::JoinRanks() {
  DISTILL_ASSIGN_OR_RETURN(reducer_, options_.lockstep->group()->MakeReducer(parameters_));
  return Annotate(LayOutBuckets(), StrCat("stage '", stage_.name, "'"));
}

Status StageRunner::LayOutBuckets() {
  if (options_.lockstep->group()->world_size() == 1) return OkStatus();
  try {
    const EvalModeGuard eval_mode(options_.net);
    DISTILL_RETURN_IF_ERROR(reducer_->PrepareForForward());
    DISTILL_ASSIGN_OR_RETURN(const std::vector<torch::Tensor> taps,
                             ForwardOfZeros(options_, objective_.student_taps()));
    const torch::Tensor sum = objective_.Touch(taps);
    DISTILL_RETURN_IF_ERROR(reducer_->PrepareForBackward({sum}));
    sum.backward();
  } catch (const std::exception& error) {
    return TorchStatus(error, "first backward");
  }
  optimizer_->ZeroGrad();
  return reducer_->PrepareForForward();
}

double StageRunner::Progress(uint64_t step) const {
  return static_cast<double>(step) / static_cast<double>(std::max<uint64_t>(1, stage_.steps));
}

std::vector<size_t> StageRunner::AsleepAt(uint64_t step) const {
  std::vector<size_t> groups = objective_.Asleep(Progress(step));
  for (size_t& group : groups) group += net_groups_;
  return groups;
}

StatusOr<std::vector<torch::Tensor>> StageRunner::ForwardStudent(const torch::Tensor& pixels,
                                                                 const std::vector<torch::Tensor>& teacher) {
  // Measured is in float32, as the student will be used.
  const AutocastGuard autocast(options_.device.type(),
                               options_.plan->autocast == "bf16" && torch::GradMode::is_enabled());
  StatusOr<std::vector<torch::Tensor>> taps;
  if (objective_.teacher_input().has_value()) {
    const torch::Tensor& given = teacher[*objective_.teacher_input()];
    const torch::Tensor single =
        given.to(torch::kFloat32, /*non_blocking=*/false, /*copy=*/false, torch::MemoryFormat::ChannelsLast);
    if (!single.is_same(given)) CountFeatureCopy(single.nbytes());
    taps = options_.net->ForwardAfter(stage_.student_input, single, objective_.student_taps());
  } else {
    // The parallel convolutions of this size are two to four times faster with channels last.
    const torch::Tensor x =
        NormalizePixels(pixels.to(options_.device), options_.plan->student, /*channels_last=*/true);  // (n, C, H, W)
    taps = options_.net->Forward(x, objective_.student_taps());
  }
  if (taps.ok()) {
    for (torch::Tensor& tap : *taps) {
      if (tap.scalar_type() == torch::kBFloat16) tap = tap.to(torch::kFloat32);
    }
  }
  return taps;
}

StatusOr<std::string> StageRunner::BrokenTap(const StepInput& input) const {
  if (input.features.taps.size() != teacher_taps().size()) {
    return absl::InvalidArgumentError(
        StrCat("the teacher delivered ", input.features.taps.size(), " taps, the stage reads ", teacher_taps().size()));
  }
  return Objective::LookAt(teacher_taps(), input.features.taps).not_finite;
}

StatusOr<Objective::Part> StageRunner::Forward(StepInput input, uint64_t step, uint32_t part, StepSeconds* seconds) {
  Stopwatch watch;
  DISTILL_ASSIGN_OR_RETURN(const torch::Tensor pixels, FromImages(input.images));
  Objective::Inputs inputs;
  inputs.labels = Labels(input).to(options_.device);
  inputs.labelled = static_cast<int64_t>(input.label_maps.size()) -
                    std::count(input.label_maps.begin(), input.label_maps.end(), kIgnoredPixel);
  inputs.progress = Progress(step);
  inputs.draw = (options_.plan->seed * 0x9e3779b97f4a7c15ull + options_.stage) * 0x9e3779b97f4a7c15ull + step;
  const CollectiveGroup& group = *options_.lockstep->group();
  // What a net draws itself (dropout of an archive) is a function of step, part and rank too.
  torch::manual_seed(inputs.draw * 0x9e3779b97f4a7c15ull + uint64_t{part} * group.world_size() + group.rank());
  inputs.first_image = (int64_t{part} * group.world_size() + group.rank()) * input.images.n;
  if (!input.visible.empty()) {
    std::vector<float> shares;
    for (const VisibleRect& rect : input.visible) {
      const auto h = static_cast<float>(input.images.h), w = static_cast<float>(input.images.w);
      shares.insert(shares.end(), {rect.top / h, rect.left / w, rect.bottom / h, rect.right / w});
    }
    inputs.visible = torch::tensor(shares).view({-1, 4}).to(options_.device);
  }
  for (const WireTensor& tap : input.features.taps) {
    DISTILL_ASSIGN_OR_RETURN(torch::Tensor tensor, FromWireTensor(tap));
    inputs.teacher.push_back(tensor.to(options_.device));
  }
  const Objective::MapFaults faults = Objective::LookAt(teacher_taps(), input.features.taps);
  if (!told_vanished_ && !faults.vanished.empty()) {
    told_vanished_ = true;
    for (const std::string& fault : faults.vanished) {
      warnings_.push_back(StrCat("stage '", stage_.name, "' step ", step, ": ", fault));
    }
  }
  DISTILL_ASSIGN_OR_RETURN(inputs.student, ForwardStudent(pixels, inputs.teacher));
  seconds->forward += watch.Lap();
  DISTILL_ASSIGN_OR_RETURN(Objective::Part computed, objective_.Compute(inputs));
  seconds->loss += watch.Lap();
  return computed;
}

void StageRunner::KeepBuffers() {
  const std::vector<torch::Tensor> buffers = Buffers(*options_.net);
  const torch::NoGradGuard no_grad;
  if (kept_buffers_.empty()) {
    for (const torch::Tensor& buffer : buffers) kept_buffers_.push_back(buffer.clone());
  } else if (!buffers.empty()) {
    at::_foreach_copy_(kept_buffers_, buffers);
  }
}

void StageRunner::RestoreBuffers() {
  const std::vector<torch::Tensor> buffers = Buffers(*options_.net);
  const torch::NoGradGuard no_grad;
  if (!buffers.empty()) at::_foreach_copy_(buffers, kept_buffers_);
}

StatusOr<bool> StageRunner::MeetOverPart(StepSource* source, uint64_t step, uint32_t part, StepResult* result,
                                         Forwarded* forwarded, std::vector<double>* sums) {
  Stopwatch watch;
  const bool together = norm_ranks_ != nullptr;  // the forward pass begins when all ranks have their input
  bool all_ready = false;
  std::optional<StepInput> input;
  bool came = false, computed = false;
  Status own;
  while (true) {
    bool waiting = false;
    if (own.ok() && !came) {
      auto next = source->Next(options_.lockstep->beat());
      watch.Lap();
      if (next.ok()) {
        // Over all calls for this input, if the first ones gave up.
        result->seconds.data += next->data_seconds;
        result->seconds.wait_features += next->feature_seconds;
        own = Receive(*next, part, forwarded);
        input = *std::move(next);
        came = true;
      } else if (next.status().code() == StatusCode::kDeadlineExceeded) {
        waiting = true;
      } else {
        own = next.status();
      }
    }
    if (own.ok() && came && !computed && (all_ready || !together)) {
      own = ComputePart(*std::move(input), step, part, &result->seconds, forwarded);
      computed = own.ok();
      // A loss that is no number was computed to its end, as on the other ranks.
      if (together && !own.ok() && !IsNotFinite(own)) {
        options_.lockstep->group()->Abort();
        return own;
      }
      watch.Lap();
    }
    Lockstep::Report report{.failed = !own.ok(), .waiting = waiting, .values = {}};
    // The objective's report, and whether this rank's teacher maps are of no use.
    report.values.assign(objective_.report_size() + 1, 0.0);
    std::copy(forwarded->part.report.begin(), forwarded->part.report.end(), report.values.begin());
    if (!forwarded->broken_tap.empty()) report.values.back() = 1;
    DISTILL_ASSIGN_OR_RETURN(Lockstep::Round round, options_.lockstep->Meet(report));
    result->seconds.sync += watch.Lap();
    if (!own.ok()) return own;
    if (round.failed > 0) return absl::AbortedError("another rank failed; it reports why");
    result->cancel = round.cancel;
    result->terminate = round.terminate;
    if (round.waiting == 0) {
      if (together && !all_ready && round.sums.back() == 0) {
        all_ready = true;
        continue;
      }
      *sums = std::move(round.sums);
      return true;
    }
    // Somebody waits for a teacher, perhaps for long: stop here rather than then.
    if (round.cancel || round.terminate) {
      if (computed || part > 0) RestoreBuffers();
      return false;
    }
  }
}

Status StageRunner::Receive(const StepInput& input, uint32_t part, Forwarded* forwarded) {
  DISTILL_ASSIGN_OR_RETURN(forwarded->broken_tap, BrokenTap(input));
  try {
    if (part == 0) KeepBuffers();
  } catch (const std::exception& error) {
    return TorchStatus(error, "keeping the student's buffers");
  }
  return OkStatus();
}

Status StageRunner::ComputePart(StepInput input, uint64_t step, uint32_t part, StepSeconds* seconds,
                                Forwarded* forwarded) {
  try {
    // Gradients are averaged with those of the last part; the reducer is not told of the others.
    if (part + 1 == parts_) DISTILL_RETURN_IF_ERROR(reducer_->PrepareForForward());
    if (!forwarded->broken_tap.empty()) return OkStatus();
    DISTILL_ASSIGN_OR_RETURN(forwarded->part, Forward(std::move(input), step, part, seconds));
    return OkStatus();
  } catch (const std::exception& error) {
    return TorchStatus(error, "forward");
  }
}

Status StageRunner::Backward(const Forwarded& forwarded, const std::vector<double>& sums, bool last,
                             StepResult* result) {
  DISTILL_ASSIGN_OR_RETURN(const Objective::Value value,
                           objective_.Combine(forwarded.part, sums, options_.lockstep->group()));
  const auto share = 1 / static_cast<double>(parts_);
  result->terms.resize(value.terms.size());
  for (size_t i = 0; i < value.terms.size(); ++i) result->terms[i] += value.terms[i] * share;
  result->loss += value.weighted * share;
  const torch::Tensor total = parts_ == 1 ? value.total : value.total * share;
  if (last) DISTILL_RETURN_IF_ERROR(reducer_->PrepareForBackward({total}));
  total.backward();
  return OkStatus();
}

StatusOr<StepResult> StageRunner::Step(StepSource* source, uint64_t step) {
  const std::string where = StrCat("stage '", stage_.name, "' step ", step);
  StepResult result;
  optimizer_->ZeroGrad();
  for (uint32_t part = 0; part < parts_; ++part) {
    Forwarded forwarded;
    std::vector<double> sums;
    const StatusOr<bool> met = MeetOverPart(source, step, part, &result, &forwarded, &sums);
    if (!met.ok()) return Annotate(met.status(), where);
    if (!*met) return result;
    if (result.skipped_tap.empty()) result.skipped_tap = forwarded.broken_tap;
    result.skipped = result.skipped || sums.back() > 0;
    if (result.skipped) continue;  // the other parts' inputs are taken and dropped
    sums.pop_back();
    Stopwatch watch;
    try {
      DISTILL_RETURN_IF_ERROR(Annotate(Backward(forwarded, sums, part + 1 == parts_, &result), where));
    } catch (const std::exception& error) {
      return TorchStatus(error, StrCat(where, ": backward"));
    }
    result.seconds.backward += watch.Lap();
  }

  result.learning_rate = stage_.optimizer.lr * schedule_.Factor(step);
  result.stepped = true;
  if (result.skipped) {
    RestoreBuffers();
    result.terms.clear();
    result.loss = 0;
    DISTILL_RETURN_IF_ERROR(CountSkipped(result.skipped_tap, step));
    return result;
  }
  skipped_in_a_row_ = 0;
  Stopwatch watch;
  try {
    optimizer_->SetScheduleFactor(schedule_.Factor(step), AsleepAt(step));
    optimizer_->Step();
    if (average_ != nullptr) average_->Update();
  } catch (const std::exception& error) {
    return TorchStatus(error, StrCat(where, ": optimizer"));
  }
  result.seconds.optimizer = watch.Lap();
  return result;
}

StatusOr<double> StageRunner::Measure(StepSource* source, uint64_t batches, uint64_t step,
                                      const std::function<bool()>& tick) {
  const EvalModeGuard eval_mode(options_.net);
  const torch::NoGradGuard no_grad;
  step = std::min(step, std::max<uint64_t>(stage_.steps, 1) - 1);  // after the last step: schedules as in the last
  StepSeconds seconds;
  double sum = 0;
  uint64_t count = 0;
  for (uint64_t batch = 0; batch < batches;) {
    if (!tick()) return absl::CancelledError("stopped while measuring on held-out images");
    auto input = source->Next(options_.lockstep->beat());
    if (input.status().code() == StatusCode::kDeadlineExceeded) continue;
    DISTILL_RETURN_IF_ERROR(input.status());
    ++batch;
    try {
      DISTILL_ASSIGN_OR_RETURN(const std::string broken, BrokenTap(*input));
      if (!broken.empty()) continue;
      DISTILL_ASSIGN_OR_RETURN(const Objective::Part part, Forward(*std::move(input), step, /*part=*/0, &seconds));
      DISTILL_ASSIGN_OR_RETURN(const Objective::Value value, objective_.Combine(part, part.report, /*group=*/nullptr));
      sum += value.weighted;
      ++count;
    } catch (const std::exception& error) {
      return TorchStatus(error, StrCat("stage '", stage_.name, "' step ", step, ": measuring on held-out images"));
    }
  }
  return count == 0 ? std::numeric_limits<double>::quiet_NaN() : sum / static_cast<double>(count);
}

Status StageRunner::CountSkipped(const std::string& tap, uint64_t step) {
  ++skipped_in_a_row_;
  if (!tap.empty()) {
    LogWarning("a teacher map holds NaN or infinity; the step is skipped",
               {{"stage", stage_.name}, {"step", step}, {"tap", tap}, {"in_a_row", skipped_in_a_row_}});
  }
  if (skipped_in_a_row_ < kMaxSkippedInARow) return OkStatus();
  return absl::FailedPreconditionError(StrCat(
      "stage '", stage_.name, "' step ", step, ": the teacher's maps ",
      tap.empty() ? "of another rank" : StrCat("at tap '", tap, "'"), " held NaN or infinity in ", skipped_in_a_row_,
      " steps in a row; check the teacher's weights, and the range of a half-precision "
      "wire_dtype"));
}

std::vector<NamedTensor> StageRunner::StateTensors() {
  std::vector<NamedTensor> tensors = optimizer_->StateTensors();
  for (const ParameterGroup& own : objective_.OwnParameters()) {
    tensors.insert(tensors.end(), own.parameters.begin(), own.parameters.end());
  }
  if (average_ != nullptr) tensors.insert(tensors.end(), average_->State().begin(), average_->State().end());
  return tensors;
}

SafetensorsFile StageRunner::State() {
  SafetensorsFile file;
  file.metadata[kStepCountKey] = StrCat(optimizer_->StepCount());
  if (average_ != nullptr) file.metadata[kAverageUpdatesKey] = StrCat(average_->updates());
  for (const NamedTensor& item : StateTensors()) file.tensors[item.name] = ToSafeTensor(item.tensor);
  return file;
}

Status StageRunner::LoadState(const SafetensorsFile& state) {
  std::vector<NamedTensor> tensors = StateTensors();
  if (tensors.size() != state.tensors.size()) {
    return absl::FailedPreconditionError(
        StrCat("the optimizer state has ", state.tensors.size(), " tensors, the stage needs ", tensors.size()));
  }
  for (NamedTensor& item : tensors) {
    const auto found = state.tensors.find(item.name);
    if (found == state.tensors.end())
      return absl::FailedPreconditionError(StrCat("the optimizer state lacks '", item.name, "'"));
    DISTILL_RETURN_IF_ERROR(CopyInto(found->second, item.name, &item.tensor));
  }
  const auto number = [&state](const char* key) -> int64_t {
    const auto found = state.metadata.find(key);
    return found == state.metadata.end() ? 0 : std::atoll(found->second.c_str());
  };
  optimizer_->SetStepCount(number(kStepCountKey));
  if (average_ != nullptr) average_->set_updates(static_cast<uint64_t>(number(kAverageUpdatesKey)));
  return OkStatus();
}

Status StageRunner::BroadcastState() {
  CollectiveGroup* group = options_.lockstep->group();
  if (group->world_size() == 1) return OkStatus();
  torch::NoGradGuard no_grad;
  const auto updates = static_cast<int64_t>(average_ != nullptr ? average_->updates() : 0);
  torch::Tensor counts = torch::tensor({optimizer_->StepCount(), updates}, torch::kInt64).to(options_.device);
  std::vector<torch::Tensor> tensors = {counts};
  for (const NamedTensor& item : StateTensors()) tensors.push_back(item.tensor.detach());
  DISTILL_RETURN_IF_ERROR(group->Broadcast(tensors, 0));
  optimizer_->SetStepCount(counts[0].item<int64_t>());
  if (average_ != nullptr) average_->set_updates(static_cast<uint64_t>(counts[1].item<int64_t>()));
  return OkStatus();
}

Status BroadcastNet(CollectiveGroup* group, StudentNet* net, bool buffers_only) {
  if (group->world_size() == 1) return OkStatus();
  torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> tensors;
  if (!buffers_only) {
    for (const torch::Tensor& parameter : Parameters(*net)) tensors.push_back(parameter.detach());
  }
  for (const torch::Tensor& buffer : Buffers(*net)) tensors.push_back(buffer);
  return group->Broadcast(tensors, 0);
}

}  // namespace distill
