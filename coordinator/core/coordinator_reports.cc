// What ranks report about their job: stages, its end, failures. Every report is fenced by the job's generation.
#include "common/log.h"
#include "common/str_cat.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/teachers.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr size_t kMaxFailureBytes = 4096;

}  // namespace

StatusOr<ActiveJob*> Coordinator::Fence(const std::string& worker_id, const std::string& job_id, uint64_t generation) {
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
    if (member.worker_id == worker_id) return job;
  }
  return absl::AbortedError(StrCat("worker '", Shorten(worker_id), "' holds no rank of job ", job_id));
}

Status Coordinator::FenceRankZero(const ActiveJob& job, const std::string& worker_id) const {
  if (job.status.ranks[0].worker_id == worker_id) return OkStatus();
  return absl::FailedPreconditionError(
      StrCat("only rank 0 (", job.status.ranks[0].worker_id, ") reports stages of job ", job.id, ", not ", worker_id));
}

Status Coordinator::CommitStage(const std::string& worker_id, const std::string& job_id, uint64_t generation,
                                const JobStageResult& result) {
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
    const bool read_teacher = NeedOf(job).now || NeedOf(job).later;
    StageRecord record{result, clock_.Wall()};
    ActiveJob after = job;
    after.stages.push_back(record);
    JobChange change;
    change.job_id = job_id;
    change.stage = record;
    std::string text = StrCat("stage ", result.stage + 1, " of ", stages, " ('", job.plan->stages[result.stage].name,
                              "') committed: loss ", result.loss);
    if (result.accuracy >= 0) StrAppend(&text, ", accuracy ", result.accuracy);
    if (result.mean_iou >= 0) StrAppend(&text, ", mean IoU ", result.mean_iou);
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

Status Coordinator::FinishJob(const std::string& worker_id, const std::string& job_id, uint64_t generation,
                              const JobArtifacts& artifacts) {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    const StatusOr<ActiveJob*> fenced = Fence(worker_id, job_id, generation);
    if (!fenced.ok()) {
      // A repeated report: the job ended by the first one.
      const StatusOr<JobRecord> ended = store_->Get(job_id);
      const bool done = ended.ok() && ended->id == job_id && ended->status.state == JobState::kSucceeded &&
                        ended->status.generation == generation;
      return done ? OkStatus() : fenced.status();
    }
    ActiveJob& job = **fenced;
    DISTILL_RETURN_IF_ERROR(FenceRankZero(job, worker_id));
    if (job.current_stage() < job.plan->stages.size()) {
      return absl::FailedPreconditionError(StrCat("job ", job_id, " has committed ", job.current_stage(), " of ",
                                                  job.plan->stages.size(), " stages; it cannot finish yet"));
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

Status Coordinator::ReportFailure(const std::string& worker_id, const std::string& job_id, uint64_t generation,
                                  const std::string& message, bool retryable) {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(ActiveJob * job, Fence(worker_id, job_id, generation));
    std::string text = CutText(message, kMaxFailureBytes);
    LogWarning("a rank reported a failure",
               {{"worker", worker_id}, {"job", job_id}, {"retryable", retryable}, {"message", text}});
    // The first report that no retry mends stands; otherwise the newest.
    if (!job->failure || job->failure->retryable) job->failure = FailureReport{worker_id, std::move(text), retryable};
    DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

}  // namespace distill
