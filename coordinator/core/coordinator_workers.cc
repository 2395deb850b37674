// The workers' side of the coordinator.
#include <algorithm>

#include "common/log.h"
#include "common/str_cat.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/teachers.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr size_t kMaxWorkers = 10000;
constexpr size_t kMaxModels = 64;
constexpr size_t kMaxTaps = 10000;
constexpr size_t kMaxEventsPerHeartbeat = 1000;
constexpr size_t kMaxEventBytes = 4096;

bool IsLabel(const std::string& text, size_t most) {
  return text.size() <= most && text.find('\n') == std::string::npos && FirstInvalidByte(text) == std::string_view::npos;
}

Status CheckRegistration(const RegisterInput& input) {
  const auto refuse = [&](std::string_view what) {
    return absl::InvalidArgumentError(StrCat("worker '", Shorten(input.worker_id), "': ", what));
  };
  if (input.worker_id.empty() || !IsLabel(input.worker_id, 128)) return refuse("the worker id must have 1 to 128 printable bytes");
  if (input.incarnation.empty() || !IsLabel(input.incarnation, 128)) return refuse("the incarnation must have 1 to 128 printable bytes");
  if (!IsLabel(input.address, 256) || !IsLabel(input.device, 256) || !IsLabel(input.version, 256)) {
    return refuse("address, device and version must be printable and have at most 256 bytes");
  }
  if (input.kind == WorkerKind::kStudent) return OkStatus();
  if (input.address.empty()) return refuse("a teacher must give the address at which students reach it");
  if (input.models.empty() || input.models.size() > kMaxModels) return refuse(StrCat("a teacher serves 1 to ", kMaxModels, " models, not ", input.models.size()));
  for (const ServedModelInfo& model : input.models) {
    if (!IsPlainName(model.name)) {
      return refuse(StrCat("'", Shorten(model.name), "' is no model name: letters, digits and inner '-', '.', '_', at most 63"));
    }
    if (model.digest.empty() || !IsLabel(model.digest, 128)) return refuse(StrCat("model '", model.name, "' has no digest"));
    if (model.taps.size() > kMaxTaps) return refuse(StrCat("model '", model.name, "' lists more than ", kMaxTaps, " taps"));
  }
  return OkStatus();
}

// Whether a report says something new, so that a heartbeat per second does not write a point per second.
bool IsNews(const std::optional<JobProgress>& last, const JobProgress& now) {
  return !last || last->time != now.time || last->total_step != now.total_step || last->phase != now.phase || last->stage != now.stage;
}

}  // namespace

StatusOr<RegisterResult> Coordinator::Register(const RegisterInput& input) {
  DISTILL_RETURN_IF_ERROR(CheckRegistration(input));
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    const double now = clock_.Monotonic();
    const auto found = state_.workers.find(input.worker_id);
    if (found == state_.workers.end() && state_.workers.size() >= kMaxWorkers) {
      return absl::ResourceExhaustedError(StrCat(kMaxWorkers, " workers are registered already"));
    }
    if (found != state_.workers.end() && found->second.kind != input.kind && IsAlive(now, found->second, decide_options())) {
      return absl::InvalidArgumentError(StrCat("worker id '", input.worker_id, "' belongs to a live worker of the other kind; choose another --id"));
    }
    const bool same = found != state_.workers.end() && found->second.incarnation == input.incarnation;
    Worker worker;
    if (same) worker = found->second;
    worker.id = input.worker_id;
    worker.incarnation = input.incarnation;
    worker.kind = input.kind;
    worker.address = input.address;
    worker.device = input.device;
    worker.version = input.version;
    worker.models = input.models;
    worker.last_seen = now;
    if (!same || worker.job_id != input.current_job) worker.job_since = now;
    worker.job_id = input.current_job;
    worker.generation = input.current_generation;
    state_.workers[input.worker_id] = std::move(worker);
    LogInfo("worker registered", {{"worker", input.worker_id},
                                  {"kind", input.kind == WorkerKind::kTeacher ? "teacher" : "student"},
                                  {"address", input.address},
                                  {"job", input.current_job}});
    DecideAndStore(&effects);
  }
  Perform(effects);
  return RegisterResult{epoch(), options_.heartbeat_seconds, options_.lease_seconds};
}

StatusOr<HeartbeatResult> Coordinator::Heartbeat(const HeartbeatInput& input) {
  Effects effects;
  HeartbeatResult result;
  {
    absl::MutexLock lock(&mutex_);
    if (!health_.ok()) return absl::UnavailableError(StrCat("this coordinator is stopping: ", health_.message()));
    const auto found = state_.workers.find(input.worker_id);
    if (found == state_.workers.end()) {
      return absl::NotFoundError(StrCat("worker '", Shorten(input.worker_id), "' is not registered here; register again"));
    }
    Worker& worker = found->second;
    if (worker.incarnation != input.incarnation) {
      return absl::AbortedError(StrCat("worker id '", input.worker_id, "' is used by another process now; give each worker its own --id"));
    }
    const double now = clock_.Monotonic();
    worker.last_seen = now;
    worker.draining = input.draining;
    worker.queue_length = input.queue_length;
    if (worker.job_id != input.job_id) worker.job_since = now;
    worker.job_id = input.job_id;
    worker.generation = input.generation;
    metrics_.CountHeartbeat(worker.kind);
    StoreReports(input, worker, &effects);
    DecideAndStore(&effects);
    result = Answer(worker, now);
  }
  Perform(effects);
  return result;
}

void Coordinator::StoreReports(const HeartbeatInput& input, const Worker& worker, Effects* effects) {
  std::map<std::string, JobChange> changes;  // by job: late events may belong to another one than the worker acts on now
  ActiveJob* job = FindJob(input.job_id);
  const bool leads = job != nullptr && job->status.state == JobState::kRunning && job->status.generation == input.generation &&
                     !job->status.ranks.empty() && job->status.ranks[0].worker_id == worker.id;
  if (leads && input.progress && IsNews(job->progress, *input.progress)) changes[job->id].progress = input.progress;
  size_t events = 0;
  for (const EventRecord& given : input.events) {
    if (++events > kMaxEventsPerHeartbeat || given.job_id.empty()) continue;
    EventRecord event = given;
    event.source = worker.id;
    event.source_incarnation = worker.incarnation;
    if (event.text.size() > kMaxEventBytes) event.text.resize(kMaxEventBytes);
    changes[given.job_id].events.push_back(std::move(event));
  }
  for (auto& [job_id, change] : changes) {
    change.job_id = job_id;
    // Reports are not worth failing a heartbeat for: newer progress follows, and the failure itself is in the log.
    if (const Status written = Write({change}); !written.ok()) {
      LogWarning("reports of a worker were not stored", {{"worker", worker.id}, {"job", Shorten(job_id)}, {"error", written.message()}});
      continue;
    }
    if (change.progress) job->progress = change.progress;
    effects->changed_jobs.insert(job_id);
  }
}

HeartbeatResult Coordinator::Answer(const Worker& worker, double now) {
  HeartbeatResult result;
  result.epoch = epoch();
  if (worker.kind == WorkerKind::kTeacher) {
    result.teacher_jobs = JobsOf(worker, state_);
    return result;
  }
  for (const ActiveJob& job : state_.jobs) {
    if (job.status.state != JobState::kRunning) continue;
    for (size_t rank = 0; rank < job.status.ranks.size(); ++rank) {
      const RankMember& member = job.status.ranks[rank];
      if (member.worker_id != worker.id || member.incarnation != worker.incarnation) continue;
      result.cancel = job.status.cancel_requested;
      // A member that has stopped already must not be sent back to work.
      if (job.status.cancel_requested && worker.job_id != job.id) return result;
      StudentAssignment assignment;
      assignment.job_id = job.id;
      assignment.generation = job.status.generation;
      assignment.rank = static_cast<uint32_t>(rank);
      assignment.world_size = static_cast<uint32_t>(job.status.ranks.size());
      assignment.plan = *job.plan;
      assignment.first_stage = job.current_stage();
      assignment.teachers = EndpointsFor(now, options_.lease_seconds, state_, job);
      if (!job.stages.empty()) {
        assignment.checkpoint = job.stages.back().result.checkpoint;
        assignment.checkpoint_digest = job.stages.back().result.digest;
      }
      result.student = std::move(assignment);
      return result;
    }
  }
  return result;
}

StatusOr<ActiveJob*> Coordinator::Fence(const std::string& worker_id, const std::string& job_id, uint64_t generation) {
  if (!health_.ok()) return absl::UnavailableError(StrCat("this coordinator is stopping: ", health_.message()));
  ActiveJob* job = FindJob(job_id);
  if (job == nullptr) return absl::AbortedError(StrCat("job '", Shorten(job_id), "' is not running here; wait for a new assignment"));
  if (job->status.state != JobState::kRunning || job->status.generation != generation) {
    return absl::AbortedError(StrCat("job ", job_id, " is ", Name(job->status.state), " at generation ", job->status.generation, ", the report is from ",
                                     generation, "; drop the group and wait for a new assignment"));
  }
  for (const RankMember& member : job->status.ranks) {
    if (member.worker_id == worker_id) return job;
  }
  return absl::AbortedError(StrCat("worker '", Shorten(worker_id), "' holds no rank of job ", job_id));
}

Status Coordinator::FenceRankZero(const ActiveJob& job, const std::string& worker_id) const {
  if (job.status.ranks[0].worker_id == worker_id) return OkStatus();
  return absl::FailedPreconditionError(StrCat("only rank 0 (", job.status.ranks[0].worker_id, ") reports stages of job ", job.id, ", not ", worker_id));
}

Status Coordinator::CommitStage(const std::string& worker_id, const std::string& job_id, uint64_t generation, const JobStageResult& result) {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    const auto refuse = [&](const Status& status) {
      metrics_.CountCommit(false);
      return status;
    };
    const StatusOr<ActiveJob*> fenced = Fence(worker_id, job_id, generation);
    if (!fenced.ok()) return refuse(fenced.status());
    ActiveJob& job = **fenced;
    if (const Status status = FenceRankZero(job, worker_id); !status.ok()) return refuse(status);
    const size_t stages = job.plan->stages.size();
    if (result.stage >= stages) return refuse(absl::InvalidArgumentError(StrCat("job ", job_id, " has ", stages, " stages, there is no stage ", result.stage)));
    if (result.stage < job.current_stage()) return OkStatus();  // a repeated report: the answer to the first one was lost
    if (result.stage > job.current_stage()) {
      return refuse(absl::FailedPreconditionError(StrCat("stage ", job.current_stage(), " of job ", job_id, " is not committed yet, so stage ", result.stage, " cannot be")));
    }
    const bool read_teacher = NeedOf(job).now || NeedOf(job).later;
    StageRecord record{result, clock_.Wall()};
    ActiveJob after = job;
    after.stages.push_back(record);
    JobChange change;
    change.job_id = job_id;
    change.stage = record;
    std::string text = StrCat("stage ", result.stage + 1, " of ", stages, " ('", job.plan->stages[result.stage].name, "') committed: loss ", result.loss);
    if (result.accuracy >= 0) StrAppend(&text, ", accuracy ", result.accuracy);
    StrAppend(&text, ", ", result.seconds, " s");
    change.events.push_back(OwnEvent(EventLevel::kInfo, text));
    if (read_teacher && !NeedOf(after).now && !NeedOf(after).later) {
      change.events.push_back(OwnEvent(EventLevel::kInfo, "teachers released: no later stage reads them"));
    }
    if (const Status status = Write({change}); !status.ok()) return refuse(absl::UnavailableError(status.message()));
    metrics_.CountCommit(true);
    LogInfo(text, {{"job", job_id}, {"generation", generation}});
    job.stages.push_back(std::move(record));
    effects.changed_jobs.insert(job_id);
    DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

Status Coordinator::FinishJob(const std::string& worker_id, const std::string& job_id, uint64_t generation, const JobArtifacts& artifacts) {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    const StatusOr<ActiveJob*> fenced = Fence(worker_id, job_id, generation);
    if (!fenced.ok()) {
      // A repeated report: the job ended by the first one.
      const StatusOr<JobRecord> ended = store_->Get(job_id);
      const bool done = ended.ok() && ended->id == job_id && ended->status.state == JobState::kSucceeded && ended->status.generation == generation;
      return done ? OkStatus() : fenced.status();
    }
    ActiveJob& job = **fenced;
    DISTILL_RETURN_IF_ERROR(FenceRankZero(job, worker_id));
    if (job.current_stage() < job.plan->stages.size()) {
      return absl::FailedPreconditionError(StrCat("job ", job_id, " has committed ", job.current_stage(), " of ", job.plan->stages.size(), " stages; it cannot finish yet"));
    }
    JobStatus status = job.status;
    status.state = JobState::kSucceeded;
    status.reason = "all stages are committed and the student is exported";
    status.finished_time = clock_.Wall();
    JobChange change;
    change.job_id = job_id;
    change.status = status;
    change.artifacts = artifacts;
    change.events = {OwnEvent(EventLevel::kInfo, StrCat("succeeded: ", artifacts.safetensors))};
    if (const Status written = Write({change}); !written.ok()) return absl::UnavailableError(written.message());
    LogInfo("job succeeded", {{"job", job_id}, {"student", artifacts.safetensors}});
    metrics_.CountEnded(JobState::kSucceeded);
    job.status = status;
    effects.calls = rendezvous_.Close(job_id);
    effects.changed_jobs.insert(job_id);
    std::erase_if(state_.jobs, [](const ActiveJob& one) { return IsEnded(one.status.state); });
    DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

Status Coordinator::ReportFailure(const std::string& worker_id, const std::string& job_id, uint64_t generation, const std::string& message,
                                  bool retryable) {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(ActiveJob * job, Fence(worker_id, job_id, generation));
    std::string text = message.substr(0, kMaxEventBytes);
    LogWarning("a rank reported a failure", {{"worker", worker_id}, {"job", job_id}, {"retryable", retryable}, {"message", text}});
    // The first report that no retry mends stands; otherwise the newest.
    if (!job->failure || job->failure->retryable) job->failure = FailureReport{worker_id, std::move(text), retryable};
    DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

}  // namespace distill
