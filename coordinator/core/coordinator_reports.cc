// What ranks report about their job: stages, its end, failures. Every report is fenced by the job's generation.
#include "common/failure_kind_name.h"
#include "common/log.h"
#include "common/str_cat.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/teachers.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr size_t kMaxFailureBytes = 4096;

uint64_t StepsBefore(const JobPlan& plan, uint32_t stage) {
  uint64_t steps = 0;
  for (uint32_t i = 0; i < stage; ++i) steps += plan.stages[i].steps;
  return steps;
}

}  // namespace

StatusOr<ActiveJob*> Coordinator::Fence(const WorkerIdentity& from, const std::string& job_id, uint64_t generation) {
  // Not for this coordinator, but the right one may answer at this address later: the worker is to try on.
  if (const Status status = FenceEpoch(from); !status.ok()) return absl::UnavailableError(status.message());
  if (!health_.ok()) return absl::UnavailableError(StrCat("this coordinator is stopping: ", health_.message()));
  ActiveJob* job = FindJob(job_id);
  if (job == nullptr) {
    return absl::AbortedError(StrCat("job '", Shorten(job_id), "' is not running here; wait for a new assignment"));
  }
  if (job->status.state != JobState::kRunning || job->status.generation != generation) {
    return absl::AbortedError(StrCat("job ", job_id, " is ", Name(job->status.state), " at generation ",
                                     job->status.generation, ", the report is from ", generation,
                                     "; drop the group and wait for a new assignment"));
  }
  for (const RankMember& member : job->status.ranks) {
    if (member.worker_id == from.worker_id && member.incarnation == from.incarnation) return job;
  }
  return absl::AbortedError(
      StrCat("this process of worker '", Shorten(from.worker_id), "' holds no rank of job ", job_id));
}

bool Coordinator::JustLeft(const WorkerIdentity& from, const std::string& job_id, uint64_t generation) {
  const ActiveJob* const job = FindJob(job_id);
  if (job == nullptr || job->status.state != JobState::kQueued || job->status.generation != generation + 1)
    return false;
  return std::any_of(job->status.ranks.begin(), job->status.ranks.end(), [&](const RankMember& member) {
    return member.worker_id == from.worker_id && member.incarnation == from.incarnation;
  });
}

Status Coordinator::FenceRankZero(const ActiveJob& job, const std::string& worker_id) const {
  if (job.status.ranks[0].worker_id == worker_id) return OkStatus();
  return absl::FailedPreconditionError(
      StrCat("only rank 0 (", job.status.ranks[0].worker_id, ") reports stages of job ", job.id, ", not ", worker_id));
}

Status Coordinator::ReportResume(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                                 uint32_t stage, uint64_t step, const std::string& checkpoint_digest) {
  StoreReports();  // what was said before this comes before it in the job's log
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    JobChange change;
    change.job_id = job_id;
    change.drop_stages = stage;
    std::string text;
    {
      absl::MutexLock lock(&mutex_);
      DISTILL_ASSIGN_OR_RETURN(ActiveJob * job, Fence(from, job_id, generation));
      DISTILL_RETURN_IF_ERROR(FenceRankZero(*job, from.worker_id));
      job->progress_at = NoteCall();
      LogInfo("the group goes on", {{"job", job_id},
                                    {"generation", generation},
                                    {"stage", stage},
                                    {"step", step},
                                    {"checkpoint", checkpoint_digest}});
      if (stage >= job->current_stage()) return OkStatus();
      text = StrCat("the checkpoint of stage ", job->current_stage(), " ('",
                    job->plan->stages[job->current_stage() - 1].name, "') cannot be used any more; ",
                    job->current_stage() - stage, " of ", job->current_stage(),
                    " committed stage(s) are dropped, training goes on at step ", step, " of stage ", stage + 1, " ('",
                    job->plan->stages[stage].name, "')");
      // What was done is to be done again: doing it is progress.
      change.status = job->status;
      change.status->best_stage = stage;
      change.status->best_step = StepsBefore(*job->plan, stage) + step;
      change.events.push_back(OwnEvent(EventLevel::kError, EventType::kStagesDropped, text));
    }
    if (const Status status = Write({change}); !status.ok()) return absl::UnavailableError(status.message());
    LogError(text, {{"job", job_id}, {"generation", generation}});
    {
      absl::MutexLock lock(&mutex_);
      ActiveJob* const job = FindJob(job_id);
      job->stages.resize(stage);
      job->status = *change.status;
    }
    effects.changed_jobs.insert(job_id);
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

Status Coordinator::CommitStage(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                                const JobStageResult& result) {
  StoreReports();  // what was said before this comes before it in the job's log
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    const auto refuse = [&](const Status& status) {
      metrics_.CountCommit(false);
      return status;
    };
    StageRecord record{result, clock_.Wall()};
    JobChange change;
    change.job_id = job_id;
    change.stage = record;
    std::string text;
    {
      absl::MutexLock lock(&mutex_);
      const StatusOr<ActiveJob*> fenced = Fence(from, job_id, generation);
      if (!fenced.ok()) return refuse(fenced.status());
      ActiveJob& job = **fenced;
      if (const Status status = FenceRankZero(job, from.worker_id); !status.ok()) return refuse(status);
      job.progress_at = NoteCall();
      const size_t stages = job.plan->stages.size();
      if (result.stage >= stages) {
        return refuse(absl::InvalidArgumentError(
            StrCat("job ", job_id, " has ", stages, " stages, there is no stage ", result.stage)));
      }
      if (result.stage < job.current_stage()) {
        return OkStatus();  // a repeated report: the answer to the first one was lost
      }
      if (result.stage > job.current_stage()) {
        return refuse(
            absl::FailedPreconditionError(StrCat("stage ", job.current_stage(), " of job ", job_id,
                                                 " is not committed yet, so stage ", result.stage, " cannot be")));
      }
      text = StrCat("stage ", result.stage + 1, " of ", stages, " ('", job.plan->stages[result.stage].name,
                    "') committed: loss ", result.loss);
      if (result.score.measured()) StrAppend(&text, ", ", DescribeScore(result.score));
      if (result.skipped_steps > 0) StrAppend(&text, ", ", result.skipped_steps, " steps skipped");
      StrAppend(&text, ", ", result.seconds, " s");
      change.events.push_back(OwnEvent(EventLevel::kInfo, EventType::kStageCommitted, text));
      if (NeedOf(job).now && !NeedOf(job).later) {
        change.events.push_back(
            OwnEvent(EventLevel::kInfo, EventType::kTeachersReleased, "teachers released: no later stage reads them"));
      }
    }
    if (const Status status = Write({change}); !status.ok()) return refuse(absl::UnavailableError(status.message()));
    metrics_.CountCommit(true);
    LogInfo(text, {{"job", job_id}, {"generation", generation}});
    {
      absl::MutexLock lock(&mutex_);
      FindJob(job_id)->stages.push_back(std::move(record));
    }
    effects.changed_jobs.insert(job_id);
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

Status Coordinator::FinishJob(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                              const JobArtifacts& artifacts) {
  StoreReports();  // what was said before this comes before it in the job's log
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    JobChange change;
    change.job_id = job_id;
    change.artifacts = artifacts;
    Status fenced;
    {
      absl::MutexLock lock(&mutex_);
      const StatusOr<ActiveJob*> found = Fence(from, job_id, generation);
      fenced = found.status();
      if (fenced.ok()) {
        const ActiveJob& job = **found;
        DISTILL_RETURN_IF_ERROR(FenceRankZero(job, from.worker_id));
        (void)NoteCall();
        if (job.current_stage() < job.plan->stages.size()) {
          return absl::FailedPreconditionError(StrCat("job ", job_id, " has committed ", job.current_stage(), " of ",
                                                      job.plan->stages.size(), " stages; it cannot finish yet"));
        }
        change.status = job.status;
      }
    }
    if (!fenced.ok()) {
      // A repeated report: the job ended by the first one.
      const StatusOr<JobRecord> ended = store_->Get(job_id);
      const bool done = ended.ok() && ended->id == job_id && ended->status.state == JobState::kSucceeded &&
                        ended->status.generation == generation;
      return done ? OkStatus() : fenced;
    }
    change.status->state = JobState::kSucceeded;
    change.status->reason = "all stages are committed and the student is exported";
    change.status->wait = JobWait::kNothing;
    change.status->finished_time = clock_.Wall();
    change.events = {OwnEvent(EventLevel::kInfo, EventType::kEnded, StrCat("succeeded: ", artifacts.safetensors))};
    if (const Status written = Write({change}); !written.ok()) return absl::UnavailableError(written.message());
    LogInfo("job succeeded", {{"job", job_id}, {"student", artifacts.safetensors}});
    metrics_.CountEnded(JobState::kSucceeded);
    {
      absl::MutexLock lock(&mutex_);
      const ActiveJob& job = *FindJob(job_id);
      RememberEnded(job);
      // Whatever they failed before, they can do a job.
      for (const RankMember& member : job.status.ranks) {
        if (const auto worker = state_.workers.find(member.worker_id); worker != state_.workers.end()) {
          worker->second.faults.clear();
        }
      }
      std::erase_if(state_.jobs, [&](const ActiveJob& one) { return one.id == job_id; });
    }
    effects.calls = rendezvous_.Close(job_id);
    effects.changed_jobs.insert(job_id);
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

Status Coordinator::ReportFailure(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                                  FailureKind kind, const std::string& message) {
  StoreReports();
  Effects effects;
  Status stored;
  {
    absl::MutexLock deciding(&deciding_);
    {
      absl::MutexLock lock(&mutex_);
      StatusOr<ActiveJob*> fenced = Fence(from, job_id, generation);
      // Where all ranks fail alike (a mistyped path), the first report ends the group, and the others' count too.
      if (absl::IsAborted(fenced.status()) && kind == FailureKind::kWorker && JustLeft(from, job_id, generation)) {
        fenced = FindJob(job_id);
      }
      DISTILL_ASSIGN_OR_RETURN(ActiveJob * job, fenced);
      (void)NoteCall();
      std::string text = CutText(message, kMaxFailureBytes);
      LogWarning("a rank reported a failure",
                 {{"worker", from.worker_id}, {"job", job_id}, {"fault", Name(kind)}, {"message", text}});
      if (kind == FailureKind::kWorker) {
        if (const auto worker = state_.workers.find(from.worker_id);
            worker != state_.workers.end() && worker->second.incarnation == from.incarnation) {
          worker->second.faults[job_id] = text;
          if (worker->second.cordoned()) {
            LogError("a worker is cordoned: it failed several jobs by its own fault",
                     {{"worker", from.worker_id}, {"jobs", worker->second.faults.size()}, {"last", text}});
          }
        }
      }
      // A rank that says it again (the answer was lost, the decision not stored) says it once.
      std::erase_if(job->failures, [&](const FailureReport& one) { return one.worker_id == from.worker_id; });
      job->failures.push_back({from.worker_id, std::move(text), kind});
    }
    stored = DecideAndStore(&effects);
  }
  Perform(effects);
  return stored;
}

}  // namespace distill
