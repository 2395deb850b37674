#include "student_worker/train/job_checkpoints.h"

#include <torch/torch.h>

#include <algorithm>
#include <thread>

#include "common/failure_kind.h"
#include "common/log.h"
#include "common/metrics/process_metrics.h"
#include "common/str_cat.h"
#include "common/torch_status.h"
#include "common/zoo/weights.h"
#include "student_worker/train/artifacts.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFirstPause{500}, kLongestPause{15000};
// Below the grace of a process that is asked to exit.
constexpr std::chrono::milliseconds kPatienceAtStop{5000};

// This generation, or its group, is over: nothing may be written any more.
bool IsOver(const Status& status) {
  return status.code() == StatusCode::kCancelled || status.code() == StatusCode::kAborted;
}

// kAborted of the store: another generation has taken the folder, so this one is over.
Status FromStore(const Status& status) {
  return status.code() == StatusCode::kAborted ? absl::CancelledError(status.message()) : status;
}

}  // namespace

Status JobCheckpoints::Open() {
  const std::string root = StrCat(job_->folder(), "/checkpoints");
  return Persist("the folder of checkpoints", job_->environment.write_patience, [&]() -> Status {
    auto opened = CheckpointStore::Open(root);
    if (!opened.ok()) return WithKind(opened.status(), FailureKind::kWorker);
    store_ = std::move(*opened);
    return OkStatus();
  });
}

Status JobCheckpoints::Persist(const std::string& what, std::chrono::milliseconds patience,
                               const std::function<Status()>& write) {
  const auto start = Clock::now();
  auto pause = std::min(kFirstPause, patience / 4);
  bool told = false;
  while (true) {
    if (job_->control->revoked()) return absl::CancelledError("the assignment was revoked");
    Status status;
    try {
      status = write();
    } catch (const std::exception& error) {
      status = TorchStatus(error, what);
    }
    if (status.ok()) {
      if (told) job_->reporter.Event(EventLevel::kInfo, EventType::kCheckpoint, StrCat(what, ": written now"));
      return status;
    }
    if (IsOver(status)) return status;
    job_->environment.metrics->CountCheckpointFailure();
    const auto limit = job_->lockstep->stopping() ? std::min(patience, kPatienceAtStop) : patience;
    // Elsewhere it may be written, whatever the code says.
    if (Clock::now() - start + pause > limit) return WithKind(status, FailureKind::kWorker);
    if (!told) {
      job_->reporter.Phase("waiting for the work folder");
      job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                           StrCat(status.message(), "; tried again for ",
                                  std::chrono::duration_cast<std::chrono::seconds>(limit).count(), " s"));
    }
    told = true;
    for (const auto until = Clock::now() + pause; Clock::now() < until && !job_->control->revoked();) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    pause = std::min(2 * pause, kLongestPause);
  }
}

Status JobCheckpoints::LoadNewest(std::optional<StoredCheckpoint>* newest) {
  std::vector<std::string> skipped;
  DISTILL_ASSIGN_OR_RETURN(*newest, store_->LoadNewest(job_->assignment.job_id, job_->plan_digest, &skipped));
  for (const std::string& reason : skipped) {
    job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint, StrCat("checkpoint not used: ", reason));
  }
  if (!newest->has_value()) return OkStatus();
  const CheckpointState& state = (*newest)->checkpoint.state;
  if (state.stage >= job_->plan.stages.size() || state.step > job_->plan.stages[state.stage].steps) {
    return absl::DataLossError(
        StrCat((*newest)->path, " is at stage ", state.stage, " step ", state.step, ", which the plan does not have"));
  }
  return LoadWeights((*newest)->checkpoint.model, job_->net.get());
}

void JobCheckpoints::CheckCommitted(const std::optional<StoredCheckpoint>& newest) {
  const StudentAssignment& assignment = job_->assignment;
  if (assignment.first_stage == 0) return;
  const std::string& stage = job_->plan.stages[assignment.first_stage - 1].name;
  if (newest.has_value() && (assignment.checkpoint_digest.empty() ||
                             store_->Find(assignment.first_stage - 1, assignment.checkpoint_digest).has_value())) {
    return;
  }
  const std::string committed =
      StrCat("the checkpoint that was committed for stage '", stage, "' (", assignment.checkpoint, ", sha256 ",
             assignment.checkpoint_digest.substr(0, 12), ") is not in ", store_->root());
  if (newest.has_value()) {
    job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                         StrCat(committed, "; what is there is gone on from: ", newest->path));
  } else {
    job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                         StrCat("no usable checkpoint in ", store_->root(), ", although ", assignment.first_stage,
                                " stages are committed; training starts over"));
  }
}

Status JobCheckpoints::Resume() {
  JobContext& job = *job_;
  std::optional<StoredCheckpoint> newest;
  const Status loaded = job.LeaderDoes("ckpt-load", [&]() -> Status {
    DISTILL_RETURN_IF_ERROR(LoadNewest(&newest));
    CheckCommitted(newest);
    Position& position = job.position;
    if (newest.has_value()) {
      const CheckpointState& state = newest->checkpoint.state;
      position = {.stage = state.stage,
                  .step = state.step,
                  .trained = state.step == job.plan.stages[state.stage].steps,
                  .skipped_steps = state.skipped_steps,
                  .total_skipped_steps = state.total_skipped_steps,
                  .loss = state.loss,
                  .score = state.score,
                  .teacher_score = state.teacher_score};
      last_path_ = newest->path;
      last_digest_ = newest->digest;
      resumed_optimizer_ = std::move(newest->checkpoint.optimizer);
      job.reporter.Event(EventLevel::kInfo, EventType::kCheckpoint, StrCat("resuming from ", newest->path));
    }
    DISTILL_RETURN_IF_ERROR(FromCoordinator(job.environment.fleet->ReportResume(
        job.assignment.job_id, job.assignment.generation, position.trained ? position.stage + 1 : position.stage,
        position.trained ? 0 : position.step, last_digest_)));
    // Only now: the coordinator has confirmed that this generation is the newest.
    return Persist("taking over the folder of checkpoints", job.environment.write_patience,
                   [&] { return FromStore(store_->Claim(job.assignment.generation)); });
  });
  DISTILL_RETURN_IF_ERROR(loaded);
  // Rank 0's position and net are everybody's.
  const Position& own = job.position;
  torch::Tensor numbers =
      torch::tensor({static_cast<double>(own.stage), static_cast<double>(own.step), own.trained ? 1.0 : 0.0,
                     static_cast<double>(own.skipped_steps), static_cast<double>(own.total_skipped_steps), own.loss,
                     own.score.measured() ? 1.0 : 0.0, newest.has_value() ? 1.0 : 0.0},
                    torch::kFloat64);
  // The device's memory may not suffice on one rank alone.
  DISTILL_RETURN_IF_ERROR(job.lockstep->Together("to-device", [&]() -> Status {
    job.net->MoveTo(job.device);
    numbers = numbers.to(job.device);
    return OkStatus();
  }));
  if (job.group->world_size() > 1) {
    std::vector<torch::Tensor> tensors = {numbers};
    DISTILL_RETURN_IF_ERROR(job.group->Broadcast(tensors, 0));
  }
  numbers = numbers.to(torch::kCPU);
  DISTILL_RETURN_IF_ERROR(job.group->Check());
  DISTILL_RETURN_IF_ERROR(BroadcastNet(job.group.get(), job.net.get(), /*buffers_only=*/false));
  const double* n = numbers.data_ptr<double>();
  job.position = {.stage = static_cast<uint32_t>(n[0]),
                  .step = static_cast<uint64_t>(n[1]),
                  .trained = n[2] > 0,
                  .skipped_steps = static_cast<uint64_t>(n[3]),
                  .total_skipped_steps = static_cast<uint64_t>(n[4]),
                  .loss = n[5],
                  .score = std::move(job.position.score),
                  .teacher_score = std::move(job.position.teacher_score)};
  job.reporter.SetScores(job.position.score, job.position.teacher_score);
  const bool measured = n[6] > 0, resumed = n[7] > 0;
  if (!resumed) return OkStatus();
  // The coordinator's store may be older than the checkpoint, when it was restored from a copy.
  for (uint32_t stage = job.assignment.first_stage; stage < job.position.stage; ++stage) {
    if (job.leader()) {
      job.reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                         StrCat("the coordinator does not know that stage ", stage + 1,
                                " is done; committing it again with ", last_path_));
    }
    DISTILL_RETURN_IF_ERROR(Commit(stage, 0));
  }
  if (!job.position.trained) return OkStatus();
  resumed_optimizer_ = SafetensorsFile();
  // Stopped before it was measured: the caller goes on there.
  if (job.TrainsHead(job.position.stage) && !measured) return OkStatus();
  // The stage is complete. Its commit may have been lost with whoever was about to send it.
  const uint32_t done = job.position.stage;
  if (done >= job.assignment.first_stage) DISTILL_RETURN_IF_ERROR(Commit(done, 0));
  job.position.stage = done + 1;
  job.position.step = 0;
  job.position.skipped_steps = 0;
  job.position.trained = false;
  return OkStatus();
}

Status JobCheckpoints::LoadInto(StageRunner* runner, BestWeights* best) {
  *best = BestWeights::TakeFrom(&resumed_optimizer_);
  const Status loaded = runner->LoadState(resumed_optimizer_);
  resumed_optimizer_ = SafetensorsFile();
  return Annotate(loaded, last_path_);
}

Checkpoint JobCheckpoints::Snapshot(StageRunner* runner, const BestWeights* best) const {
  const JobContext& job = *job_;
  const Position& position = job.position;
  Checkpoint checkpoint;
  checkpoint.state = {.job_id = job.assignment.job_id,
                      .plan_digest = job.plan_digest,
                      .stage = position.stage,
                      .step = position.step,
                      .total_step = job.StepsBefore(position.stage) + position.step,
                      .stage_end = position.trained,
                      .skipped_steps = position.skipped_steps,
                      .total_skipped_steps = position.total_skipped_steps,
                      .seed = job.plan.seed,
                      .world_size = job.assignment.world_size,
                      .threads = job.plan.threads,
                      .generation = job.assignment.generation,
                      .score = position.score,
                      .teacher_score = position.teacher_score,
                      .loss = position.loss};
  checkpoint.model = SaveWeights(*job.net);
  if (runner != nullptr) checkpoint.optimizer = runner->State();
  if (best != nullptr) best->AddTo(&checkpoint.optimizer);
  return checkpoint;
}

Status JobCheckpoints::Write(StageRunner* runner, const BestWeights* best, std::chrono::milliseconds patience,
                             bool needed, Status* error) {
  JobContext& job = *job_;
  job.reporter.Phase("checkpointing");
  DISTILL_RETURN_IF_ERROR(BroadcastNet(job.group.get(), job.net.get(), /*buffers_only=*/true));
  return job.LeaderDoes("ckpt-write", [&]() -> Status {
    const auto start = Clock::now();
    const Status written = Persist(StrCat("checkpoint of stage ", job.position.stage, " step ", job.position.step),
                                   patience, [&]() -> Status {
                                     const Checkpoint checkpoint = Snapshot(runner, best);
                                     // Of a step whose all-reduce was aborted on the GPU nothing may be kept: the
                                     // weights, which are on the CPU by now, are not those of all ranks then.
                                     DISTILL_RETURN_IF_ERROR(job.group->Check());
                                     const StatusOr<StoredCheckpoint> stored = store_->Write(checkpoint);
                                     if (!stored.ok()) return FromStore(stored.status());
                                     last_path_ = stored->path;
                                     last_digest_ = stored->digest;
                                     return OkStatus();
                                   });
    if (written.ok()) {
      job.environment.metrics->ObserveCheckpoint(std::chrono::duration<double>(Clock::now() - start).count());
      MeasureFolder("work", job.environment.work_dir, job.environment.registry);
      return OkStatus();
    }
    if (needed || IsOver(written)) return written;
    *error = written;
    return OkStatus();
  });
}

Status JobCheckpoints::WriteInStage(StageRunner* runner, const BestWeights* best) {
  Status error;
  DISTILL_RETURN_IF_ERROR(Write(runner, best, std::chrono::milliseconds(0), /*needed=*/false, &error));
  if (!job_->leader() || error.ok() != failing_) return OkStatus();  // nothing new
  failing_ = !error.ok();
  if (failing_) {
    job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                         StrCat(error.message(), ". Training goes on; ",
                                last_path_.empty() ? std::string("there is no older checkpoint")
                                                   : StrCat("the newest checkpoint is ", last_path_)));
  } else {
    job_->reporter.Event(EventLevel::kInfo, EventType::kCheckpoint,
                         StrCat("checkpoints are written again: ", last_path_));
  }
  return OkStatus();
}

Status JobCheckpoints::WriteAtStop(StageRunner* runner, const BestWeights* best, const std::string& why) {
  Status error;
  DISTILL_RETURN_IF_ERROR(Write(runner, best, kPatienceAtStop, /*needed=*/false, &error));
  if (!job_->leader()) return OkStatus();
  if (error.ok()) {
    job_->reporter.Event(EventLevel::kInfo, EventType::kCheckpoint, StrCat(why, "; checkpoint ", last_path_));
  } else {
    job_->reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                         StrCat(why, "; ", error.message(), "; the newest checkpoint is ",
                                last_path_.empty() ? std::string("none") : last_path_));
  }
  return OkStatus();
}

Status JobCheckpoints::WriteStageEnd() {
  return Write(nullptr, nullptr, job_->environment.write_patience, /*needed=*/true, nullptr);
}

Status JobCheckpoints::Commit(uint32_t stage, double seconds) {
  const JobContext& job = *job_;
  JobStageResult result;
  result.stage = stage;
  result.checkpoint = last_path_;
  result.digest = last_digest_;
  result.score.metrics = job.position.score.metrics;
  result.loss = job.position.loss;
  result.seconds = seconds;
  result.skipped_steps = stage == job.position.stage ? job.position.skipped_steps : 0;
  return job_->LeaderDoes("stage-commit", [&]() -> Status {
    const auto commit = [&] {
      return FromCoordinator(
          job.environment.fleet->CommitStage(job.assignment.job_id, job.assignment.generation, result));
    };
    const Status status = commit();
    if (status.code() != StatusCode::kFailedPrecondition || stage == 0) return status;
    // Stages are committed in order, and the coordinator does not know of an earlier one: its store was restored from a
    // copy while this job ran. The newest checkpoint holds their work too; those that are known are accepted as they
    // are.
    job.reporter.Event(EventLevel::kWarning, EventType::kCheckpoint,
                       StrCat("the coordinator does not know all stages before ", stage + 1,
                              "; committing them again with ", last_path_));
    for (result.stage = 0; result.stage < stage; ++result.stage) DISTILL_RETURN_IF_ERROR(commit());
    return commit();
  });
}

Status JobCheckpoints::Export() {
  JobContext& job = *job_;
  job.reporter.Phase("exporting");
  return job.LeaderDoes("job-export", [&]() -> Status {
    JobArtifacts artifacts;
    artifacts.safetensors = StrCat(job.folder(), "/student.safetensors");
    artifacts.torchscript = StrCat(job.folder(), "/student.pt");
    artifacts.student_score = job.position.score;
    artifacts.teacher_score = job.position.teacher_score;
    artifacts.student_parameters = job.net->architecture().ParameterCount();
    if (!job.plan.teachers.empty()) {
      artifacts.teacher_parameters = job.plan.teachers[0].parameters;
      artifacts.teacher_bytes = job.plan.teachers[0].bytes;
    }
    const StepCounts steps{.total = job.StepsBefore(static_cast<uint32_t>(job.plan.stages.size())),
                           .skipped = job.position.total_skipped_steps};
    DISTILL_RETURN_IF_ERROR(Persist("the results", job.environment.write_patience, [&]() -> Status {
      // A newer generation may have written its results already.
      DISTILL_RETURN_IF_ERROR(FromStore(store_->CheckClaim()));
      DISTILL_RETURN_IF_ERROR(WriteSafetensors(artifacts.safetensors, SaveWeights(*job.net)));
      DISTILL_RETURN_IF_ERROR(job.net->Export(artifacts.torchscript));
      DISTILL_RETURN_IF_ERROR(MeasureFiles(&artifacts));
      return WriteResult(StrCat(job.folder(), "/result.json"), job.assignment.job_id, job.plan, job.plan_digest,
                         artifacts, steps);
    }));
    return FromCoordinator(
        job.environment.fleet->FinishJob(job.assignment.job_id, job.assignment.generation, artifacts));
  });
}

}  // namespace distill
