#include "coordinator/core/coordinator_metrics.h"

#include <algorithm>
#include <map>
#include <utility>

#include "coordinator/core/teachers.h"

namespace distill {
namespace {

constexpr const char* kKinds[] = {"teacher", "student"};
constexpr const char* kWorkerStates[] = {"alive", "stuck", "cordoned", "draining", "stopped", "lost"};

}  // namespace

CoordinatorMetrics::CoordinatorMetrics(MetricsRegistry* registry) : registry_(registry) {
  // Series exist from the start, so that a rate or an alert over them has a zero to begin with.
  for (const char* result : {"accepted", "existed", "dry_run", "refused"}) {
    registry_->GetCounter("distill_coordinator_submissions_total", "Jobs submitted, by outcome.", {{"result", result}});
  }
  for (const char* state : {"succeeded", "failed", "cancelled"}) {
    registry_->GetCounter("distill_coordinator_jobs_ended_total", "Jobs that ended since the start, by state.",
                          {{"state", state}});
  }
  for (const char* kind : kKinds) {
    registry_->GetCounter("distill_coordinator_heartbeats_total", "Heartbeats answered.", {{"kind", kind}});
  }
  for (const char* result : {"committed", "refused"}) {
    registry_->GetCounter("distill_coordinator_stage_commits_total", "Stage commits, by outcome.",
                          {{"result", result}});
  }
  registry_->GetCounter("distill_coordinator_generation_changes_total", "Groups of ranks formed or lost.");
  registry_->GetCounter("distill_coordinator_events_total", "Job events stored.");
  registry_->GetHistogram("distill_coordinator_commit_seconds", "Seconds per write transaction of the job store.",
                          SecondsBuckets());
}

void CoordinatorMetrics::SetEpoch(uint64_t epoch) {
  registry_->GetGauge("distill_coordinator_epoch", "Times a coordinator was started on this job store.")
      .Set(static_cast<double>(epoch));
}

void CoordinatorMetrics::SetCluster(double now, const DecideOptions& options, const ClusterState& state) {
  const double lease = options.lease;
  std::map<JobState, int> jobs = {{JobState::kQueued, 0}, {JobState::kRunning, 0}};
  for (const ActiveJob& job : state.jobs) ++jobs[job.status.state];
  for (const auto& [job_state, count] : jobs) {
    registry_
        ->GetGauge("distill_coordinator_jobs", "Jobs that have not ended, by state.",
                   {{"state", std::string(Name(job_state))}})
        .Set(count);
  }
  const auto waits_for_teacher = [&](const ActiveJob& job) {
    return NeedOf(job).now && MatchTeachers(now, lease, state, job).usable.empty();
  };
  registry_
      ->GetGauge("distill_coordinator_jobs_without_teacher",
                 "Jobs whose current stage reads a teacher while no live worker serves it.")
      .Set(static_cast<double>(std::count_if(state.jobs.begin(), state.jobs.end(), waits_for_teacher)));
  std::map<std::pair<std::string, std::string>, int> workers;
  for (const char* kind : kKinds) {
    for (const char* worker_state : kWorkerStates) workers[{kind, worker_state}] = 0;
  }
  for (const auto& [id, worker] : state.workers) {
    const bool silent = !IsAlive(now, lease, worker);
    const char* worker_state = worker.draining                 ? (silent ? "stopped" : "draining")
                               : silent                        ? "lost"
                               : IsStuck(now, worker, options) ? "stuck"
                               : worker.cordoned()             ? "cordoned"
                                                               : "alive";
    ++workers[{worker.kind == WorkerKind::kTeacher ? "teacher" : "student", worker_state}];
  }
  for (const auto& [key, count] : workers) {
    registry_
        ->GetGauge("distill_coordinator_workers", "Registered workers.", {{"kind", key.first}, {"state", key.second}})
        .Set(count);
  }
}

void CoordinatorMetrics::CountSubmission(const std::string& result) {
  registry_->GetCounter("distill_coordinator_submissions_total", "Jobs submitted, by outcome.", {{"result", result}})
      .Add();
}
void CoordinatorMetrics::CountHeartbeat(WorkerKind kind) {
  registry_
      ->GetCounter("distill_coordinator_heartbeats_total", "Heartbeats answered.",
                   {{"kind", kind == WorkerKind::kTeacher ? "teacher" : "student"}})
      .Add();
}
void CoordinatorMetrics::CountGeneration() {
  registry_->GetCounter("distill_coordinator_generation_changes_total", "Groups of ranks formed or lost.").Add();
}
void CoordinatorMetrics::CountEnded(JobState state) {
  registry_
      ->GetCounter("distill_coordinator_jobs_ended_total", "Jobs that ended since the start, by state.",
                   {{"state", std::string(Name(state))}})
      .Add();
}
void CoordinatorMetrics::CountEvents(size_t n) {
  registry_->GetCounter("distill_coordinator_events_total", "Job events stored.").Add(static_cast<double>(n));
}
void CoordinatorMetrics::CountCommit(bool ok) {
  registry_
      ->GetCounter("distill_coordinator_stage_commits_total", "Stage commits, by outcome.",
                   {{"result", ok ? "committed" : "refused"}})
      .Add();
}
void CoordinatorMetrics::ObserveWrite(double seconds) {
  registry_
      ->GetHistogram("distill_coordinator_commit_seconds", "Seconds per write transaction of the job store.",
                     SecondsBuckets())
      .Observe(seconds);
}

}  // namespace distill
