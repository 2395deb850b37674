#include "student_worker/train/stage_loop.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/log.h"
#include "common/str_cat.h"
#include "common/zoo/weights.h"
#include "student_worker/train/evaluate.h"
#include "student_worker/train/objective.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

// A report of progress goes out this often, whatever log_every says.
constexpr double kReportSeconds = 5;

std::vector<std::pair<std::string, double>> Parts(const StepSeconds& s) {
  return {{"data", s.data}, {"wait_features", s.wait_features}, {"forward", s.forward},    {"loss", s.loss},
          {"sync", s.sync}, {"backward", s.backward},           {"optimizer", s.optimizer}};
}

// Inputs from the pipeline, following changes of the list of teachers while it waits.
class PipelineSource : public StepSource {
 public:
  PipelineSource(StepPipeline* pipeline, TeacherPool* pool, const JobControl* control)
      : pipeline_(pipeline), pool_(pool), control_(control) {}

  StatusOr<StepInput> Next(std::chrono::milliseconds timeout) override {
    const auto deadline = Clock::now() + timeout;
    while (true) {
      if (control_->revoked()) return absl::CancelledError("the assignment was revoked");
      FollowTeachers();
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
      const auto slice = std::clamp(left, std::chrono::milliseconds(1), std::chrono::milliseconds(200));
      auto input = pipeline_->Next(slice);
      if (input.status().code() != StatusCode::kDeadlineExceeded || left <= slice) return input;
    }
  }

 private:
  void FollowTeachers() {
    std::vector<TeacherEndpoint> teachers;
    if (pool_ != nullptr && control_->TeachersChanged(&teachers_version_, &teachers))
      pool_->SetTeachers(std::move(teachers));
  }

  StepPipeline* const pipeline_;  // not owned: the stage owns all three and outlives this
  TeacherPool* const pool_;       // null: no teacher
  const JobControl* const control_;
  uint64_t teachers_version_ = 0;
};

bool IsPowerOfTen(uint64_t n) {
  while (n >= 10 && n % 10 == 0) n /= 10;
  return n == 1;
}

}  // namespace

StatusOr<std::unique_ptr<TeacherPool>> ConnectTeachers(const JobContext& job, const std::vector<TapRequest>& taps) {
  const JobPlan& plan = job.plan;
  if (plan.teachers.empty()) return absl::InvalidArgumentError("the stage reads a teacher, but the plan names none");
  const TeacherRef& teacher = plan.teachers[0];
  TeacherPool::Options options;
  options.model = teacher.model;
  options.digest = teacher.digest;
  options.taps = taps;
  // Known shapes let the pool grant credit exactly from the first request on.
  if (auto architecture = Architecture::Create(teacher.spec); architecture.ok()) {
    for (const TapRequest& tap : taps) {
      const TapInfo* info = architecture->FindTap(tap.tap);
      if (info != nullptr) options.tap_shapes.push_back(info->shape);
    }
    if (options.tap_shapes.size() != taps.size()) options.tap_shapes.clear();
  }
  options.exclusive_batches = plan.deterministic;
  options.security = job.environment.security;
  options.shared_memory = job.environment.shared_memory;
  options.client = StrCat(job.assignment.job_id, "/", job.environment.worker_id);
  options.window_bytes = plan.prefetch_bytes;
  options.metrics = job.environment.registry;
  options.on_event = [&job](EventLevel level, const std::string& text) {
    job.reporter.Event(level, EventType::kTeacher, StrCat("rank ", job.assignment.rank, ": ", text));
  };
  return TeacherPool::Create(std::move(options));
}

StatusOr<bool> MeasureStudent(JobContext* job) {
  job->reporter.Phase("evaluating");
  DISTILL_RETURN_IF_ERROR(BroadcastNet(job->group.get(), job->net.get(), /*buffers_only=*/true));
  DISTILL_ASSIGN_OR_RETURN(const std::optional<Score> score, Evaluate(job->net.get(), *job->test, job->plan,
                                                                      job->lockstep.get(), *job->control, job->device));
  if (!score.has_value()) return false;
  job->position.score = *score;
  job->reporter.SetScores(job->position.score, job->position.teacher_score);
  job->environment.metrics->SetScore(*score);
  if (job->leader()) {
    LogInfo("evaluated", {{"job", job->assignment.job_id},
                          {"stage", job->position.stage},
                          {"step", job->position.step},
                          {"score", DescribeScore(*score)}});
  }
  job->reporter.Phase("training");
  return true;
}

StageLoop::StageLoop(JobContext* job, JobCheckpoints* checkpoints)
    : job_(job),
      checkpoints_(checkpoints),
      stage_(job->plan.stages[job->position.stage]),
      measures_held_out_(job->images.held_out != nullptr && (stage_.select == "best" || stage_.patience > 0)),
      measure_every_(job->plan.evaluate_every > 0 ? job->plan.evaluate_every
                                                  : std::max<uint64_t>(1, stage_.steps / 10)) {}

Status StageLoop::SetUpAlone() {
  JobContext& job = *job_;
  const Position& position = job.position;
  DISTILL_ASSIGN_OR_RETURN(runner_, StageRunner::Create({.plan = &job.plan,
                                                         .stage = position.stage,
                                                         .net = job.net.get(),
                                                         .lockstep = job.lockstep.get(),
                                                         .device = job.device}));
  if (position.step > 0 && job.leader()) DISTILL_RETURN_IF_ERROR(checkpoints_->LoadInto(runner_.get(), &best_));
  if (!runner_->teacher_taps().empty()) {
    DISTILL_ASSIGN_OR_RETURN(pool_, ConnectTeachers(job, runner_->teacher_taps()));
  }
  StepPipeline::Options options;
  DISTILL_ASSIGN_OR_RETURN(auto images, ImagesOfStage(job.images, stage_, job.plan.batch_size));
  DISTILL_ASSIGN_OR_RETURN(options.samples, job.readers.ForTraining(std::move(images)));
  options.sampler.seed = job.plan.seed;
  options.sampler.batch_size = job.plan.batch_size;
  options.sampler.world_size = job.assignment.world_size;
  options.sampler.rank = job.assignment.rank;
  options.sampler.parts = job.plan.accumulate;
  options.pool = pool_.get();
  // Steps are counted over the whole job, so that a new stage goes on through the data instead of starting over.
  const uint64_t parts = job.plan.accumulate;
  options.first_step = (job.StepsBefore(position.stage) + position.step) * parts;
  options.end_step = (job.StepsBefore(position.stage) + stage_.steps) * parts;
  DISTILL_ASSIGN_OR_RETURN(pipeline_, StepPipeline::Create(std::move(options)));
  return OkStatus();
}

Status StageLoop::SetUp() {
  // It may fail on one rank alone, for want of memory; all ranks learn of it together.
  DISTILL_RETURN_IF_ERROR(job_->lockstep->Together("stage-set-up", [this] {
    at::set_num_threads(std::max<int>(1, static_cast<int>(job_->plan.threads)));  // this may be a thread of its own
    return SetUpAlone();
  }));
  DISTILL_RETURN_IF_ERROR(runner_->JoinRanks());
  return job_->position.step > 0 ? runner_->BroadcastState() : OkStatus();
}

StatusOr<std::optional<JobEnd>> StageLoop::Run() {
  JobContext& job = *job_;
  Position& position = job.position;
  job.environment.metrics->SetPosition(job.assignment.generation, position.stage);
  const uint64_t steps_before = job.StepsBefore(position.stage);
  job.reporter.BeginStage(position.stage, position.step, steps_before + position.step, position.skipped_steps, {});
  job.reporter.Phase("loading");
  DISTILL_RETURN_IF_ERROR(SetUp());
  job.reporter.BeginStage(position.stage, position.step, steps_before + position.step, position.skipped_steps,
                          runner_->names());
  job.reporter.Phase("training");

  PipelineSource source(pipeline_.get(), pool_.get(), job.control);
  const bool evaluates = job.plan.evaluate_every > 0 && job.TrainsHead(position.stage);
  const auto due = [&](uint64_t every) { return every > 0 && position.step % every == 0; };
  while (position.step < stage_.steps) {
    const StatusOr<StepResult> stepped = runner_->Step(&source, position.step);
    if (IsNotFinite(stepped.status())) job.environment.metrics->CountNotFiniteLoss();
    DISTILL_RETURN_IF_ERROR(stepped.status());
    for (const std::string& warning : runner_->TakeWarnings()) {
      // Other ranks' maps are of the same teachers.
      if (job.leader()) job.reporter.Event(EventLevel::kWarning, EventType::kTeacher, warning);
    }
    // Each rank meets pictures of its own.
    for (const std::string& news : job.readers.bad_images()->TakeNews()) {
      job.reporter.Event(EventLevel::kWarning, EventType::kData, news);
    }
    if (stepped->stepped) CountStep(*stepped);
    const bool done = position.step == stage_.steps;
    if (done || due(job.plan.log_every) || job.reporter.SecondsSinceReport() > kReportSeconds) {
      job.reporter.ReportSteps(position.step, steps_before + position.step, position.skipped_steps,
                               job.plan.batch_size);
    }
    if (measures_held_out_ && stepped->stepped && (done || due(measure_every_))) {
      DISTILL_ASSIGN_OR_RETURN(const bool ends_early, MeasureHeldOut());
      job.reporter.RestartClock();
      if (ends_early) break;
    }
    if (done) break;
    if (stepped->cancel || stepped->terminate) {
      DISTILL_ASSIGN_OR_RETURN(const JobEnd end, Stop(*stepped));
      return std::optional<JobEnd>(end);
    }
    if (evaluates && due(job.plan.evaluate_every)) {
      // Asked to stop meanwhile: the next step finds the ranks' common end.
      const AveragedWeightsGuard averaged(runner_->average());
      DISTILL_RETURN_IF_ERROR(MeasureStudent(job_).status());
      job.reporter.RestartClock();
    }
    if (due(job.plan.checkpoint_every)) {
      DISTILL_RETURN_IF_ERROR(checkpoints_->WriteInStage(runner_.get(), &best_));
      job.reporter.Phase("training");
      job.reporter.RestartClock();
    }
  }
  DISTILL_RETURN_IF_ERROR(Finish());
  return std::optional<JobEnd>();
}

void StageLoop::CountStep(const StepResult& result) {
  JobContext& job = *job_;
  ++job.position.step;
  if (result.skipped) {
    ++job.position.skipped_steps;
    ++job.position.total_skipped_steps;
    job.environment.metrics->CountSkippedStep();
    ReportSkipped(result);
    return;
  }
  job.position.loss = result.loss;
  std::vector<std::pair<std::string, double>> named_terms;
  for (size_t i = 0; i < result.terms.size(); ++i) named_terms.emplace_back(runner_->names()[i], result.terms[i]);
  job.reporter.AddStep(result.loss, result.learning_rate, result.terms, Parts(result.seconds));
  job.environment.metrics->ObserveStep(job.plan.batch_size / job.assignment.world_size, result.loss,
                                       result.learning_rate, Parts(result.seconds), named_terms);
}

void StageLoop::ReportSkipped(const StepResult& result) {
  const Position& position = job_->position;
  if (!result.skipped_tap.empty() && !told_bad_tap_) {
    told_bad_tap_ = true;
    job_->reporter.Event(
        EventLevel::kWarning, EventType::kSteps,
        StrCat("stage '", stage_.name, "' step ", position.step, " is skipped: the teacher's map at tap '",
               result.skipped_tap, "' holds NaN or infinity; such steps are counted and teach nothing"));
  }
  if (job_->leader() && position.skipped_steps >= 10 && IsPowerOfTen(position.skipped_steps)) {
    job_->reporter.Event(EventLevel::kWarning, EventType::kSteps,
                         StrCat("stage '", stage_.name, "': ", position.skipped_steps, " of ", position.step,
                                " steps were skipped so far"));
  }
}

StatusOr<JobEnd> StageLoop::Stop(const StepResult& result) {
  DISTILL_RETURN_IF_ERROR(checkpoints_->WriteAtStop(
      runner_.get(), &best_, result.cancel ? "cancelled" : "stopped for a rank that is shutting down"));
  return result.cancel ? JobEnd::kCancelled : JobEnd::kTerminated;
}

Status StageLoop::MeasureHeldOutAlone() {
  JobContext& job = *job_;
  at::set_num_threads(std::max<int>(1, static_cast<int>(job.plan.threads)));  // this may be a thread of its own
  std::unique_ptr<TeacherPool> pool;
  if (!runner_->teacher_taps().empty()) {
    DISTILL_ASSIGN_OR_RETURN(pool, ConnectTeachers(job, runner_->teacher_taps()));
  }
  StepPipeline::Options options;
  DISTILL_ASSIGN_OR_RETURN(options.samples, job.readers.ForMeasuring(job.images.held_out));
  options.sampler.seed = job.plan.seed;
  options.sampler.batch_size = job.plan.batch_size / (job.assignment.world_size * job.plan.accumulate);
  options.pool = pool.get();
  options.end_step = job.images.held_out->size() / options.sampler.batch_size;
  const uint64_t batches = options.end_step;
  DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<StepPipeline> pipeline, StepPipeline::Create(std::move(options)));
  PipelineSource source(pipeline.get(), pool.get(), job.control);
  const AveragedWeightsGuard averaged(runner_->average());
  const StatusOr<double> loss =
      runner_->Measure(&source, batches, job.position.step, [&job] { return !job.lockstep->stopping(); });
  // Asked to stop: the next step finds the ranks' common end.
  if (loss.status().code() == StatusCode::kCancelled && !job.control->revoked()) return OkStatus();
  DISTILL_RETURN_IF_ERROR(loss.status());
  Judge("objective", *loss, *loss);
  return OkStatus();
}

void StageLoop::Judge(const std::string& what, double value, double lowest) {
  const JobContext& job = *job_;
  const bool better = lowest < best_.loss;
  LogInfo("measured on held-out images", {{"stage", stage_.name},
                                          {"step", job.position.step},
                                          {what, value},
                                          {"best", better},
                                          {"training_loss", job.position.loss},
                                          {"learning_rate", job.reporter.learning_rate()}});
  best_.since = better ? 0 : best_.since + 1;
  if (better) {
    best_.loss = lowest;
    best_.model = SaveWeights(*job.net);
  }
}

Status StageLoop::MeasureHeldOutMetric() {
  JobContext& job = *job_;
  DISTILL_ASSIGN_OR_RETURN(const std::shared_ptr<const SampleReader> held_out,
                           job.readers.ForMeasuring(job.images.held_out));
  DISTILL_ASSIGN_OR_RETURN(const std::optional<Score> score,
                           Evaluate(job.net.get(), *held_out, job.plan, job.lockstep.get(), *job.control, job.device));
  if (!score.has_value()) return OkStatus();  // asked to stop: the next step finds the ranks' common end
  const double* value = score->Find(stage_.select_by);
  if (value == nullptr) {
    return absl::InvalidArgumentError(StrCat("stage '", stage_.name, "': select_by is '", stage_.select_by,
                                             "', which is not measured here: ", DescribeScore(*score)));
  }
  if (job.leader()) Judge(stage_.select_by, *value, -*value);
  return OkStatus();
}

StatusOr<bool> StageLoop::MeasureHeldOut() {
  JobContext& job = *job_;
  job.reporter.Phase("measuring");
  if (stage_.select_by == "objective") {
    DISTILL_RETURN_IF_ERROR(BroadcastNet(job.group.get(), job.net.get(), /*buffers_only=*/true));
    DISTILL_RETURN_IF_ERROR(job.LeaderDoes("held-out", [this] { return MeasureHeldOutAlone(); }));
  } else {
    const AveragedWeightsGuard averaged(runner_->average());
    DISTILL_RETURN_IF_ERROR(BroadcastNet(job.group.get(), job.net.get(), /*buffers_only=*/true));
    DISTILL_RETURN_IF_ERROR(MeasureHeldOutMetric());
  }
  const bool wanted = job.leader() && stage_.patience > 0 && best_.since >= stage_.patience;
  DISTILL_ASSIGN_OR_RETURN(const Lockstep::Round round,
                           job.lockstep->Meet({.failed = false, .waiting = false, .values = {wanted ? 1.0 : 0.0}}));
  if (wanted && job.position.step < stage_.steps) {
    job.reporter.Event(EventLevel::kInfo, EventType::kSteps,
                       StrCat("stage '", stage_.name, "' ends at step ", job.position.step, " of ", stage_.steps,
                              ": nothing better on held-out images in ", best_.since, " measurements"));
  }
  job.reporter.Phase("training");
  return round.sums[0] > 0;
}

Status StageLoop::Finish() {
  JobContext& job = *job_;
  Position& position = job.position;
  if (job.leader()) {
    LogInfo("stage trained", {{"stage", stage_.name},
                              {"steps", position.step},
                              {"skipped", position.skipped_steps},
                              {"loss", position.loss},
                              {"learning_rate", job.reporter.learning_rate()}});
    if (position.skipped_steps > 0) {
      job.reporter.Event(EventLevel::kWarning, EventType::kSteps,
                         StrCat("stage '", stage_.name, "': ", position.skipped_steps, " of ", position.step,
                                " steps were skipped, because a teacher's map held NaN or infinity"));
    }
  }
  if (position.step > 0 && position.skipped_steps == position.step) {
    return absl::FailedPreconditionError(StrCat(
        "stage '", stage_.name, "': none of its ", position.step,
        " steps was completed, because a teacher's map held NaN or infinity in each of them; check the teacher's "
        "weights, and the range of a half-precision wire_dtype"));
  }
  // Teachers are let go before the evaluation: nothing more is read from them in this stage.
  pipeline_.reset();
  pool_.reset();
  if (runner_->average() != nullptr) runner_->average()->Swap();  // for good: this is what the stage leaves
  runner_.reset();
  if (stage_.select == "best") {
    DISTILL_RETURN_IF_ERROR(job.LeaderDoes("take-best", [this]() -> Status {
      if (best_.model.tensors.empty()) return OkStatus();  // nothing finite was measured
      return LoadWeights(best_.model, job_->net.get());
    }));
    DISTILL_RETURN_IF_ERROR(BroadcastNet(job.group.get(), job.net.get(), /*buffers_only=*/false));
  }
  position.step = stage_.steps;
  position.trained = true;
  return OkStatus();
}

}  // namespace distill
