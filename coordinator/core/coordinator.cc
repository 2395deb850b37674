#include "coordinator/core/coordinator.h"

#include <algorithm>

#include "common/log.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr double kForgetSeconds = 600;  // a lost worker stays in the fleet's listing this long

LogLevel LevelOf(EventLevel level) {
  return level == EventLevel::kError     ? LogLevel::kError
         : level == EventLevel::kWarning ? LogLevel::kWarning
                                         : LogLevel::kInfo;
}

}  // namespace

Coordinator::Coordinator(const Options& options, std::unique_ptr<JobStore> store, const Clock& clock,
                         MetricsRegistry* metrics)
    : options_(options), store_(std::move(store)), clock_(clock), metrics_(metrics) {}

Coordinator::~Coordinator() = default;

StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(const Options& options, std::unique_ptr<JobStore> store,
                                                           const Clock& clock, MetricsRegistry* metrics) {
  if (!(options.heartbeat_seconds > 0) || options.lease_seconds < 2 * options.heartbeat_seconds) {
    return absl::InvalidArgumentError(StrCat("--heartbeat ", options.heartbeat_seconds, " and --lease ",
                                             options.lease_seconds,
                                             ": the heartbeat must be above 0 and the lease at least twice as long"));
  }
  auto coordinator = std::unique_ptr<Coordinator>(new Coordinator(options, std::move(store), clock, metrics));
  DISTILL_ASSIGN_OR_RETURN(std::vector<JobRecord> records, coordinator->store_->Active());
  Effects effects;
  {
    absl::MutexLock lock(&coordinator->mutex_);
    ClusterState& state = coordinator->state_;
    state.started = clock.Monotonic();
    for (JobRecord& record : records) {
      ActiveJob job;
      job.id = record.id;
      job.name = record.name;
      job.plan = std::make_shared<const JobPlan>(std::move(record.plan));
      job.status = std::move(record.status);
      job.stages = std::move(record.stages);
      if (record.has_progress) job.progress = record.progress;
      job.assigned_at = state.started;
      LogInfo("job found in the store",
              {{"job", job.id}, {"state", Name(job.status.state)}, {"generation", job.status.generation}});
      if (job.status.state == JobState::kRunning) {
        for (auto& call : coordinator->rendezvous_.Open(job.id, job.status.generation)) {
          effects.calls.push_back(std::move(call));
        }
      }
      state.jobs.push_back(std::move(job));
    }
    coordinator->metrics_.SetEpoch(coordinator->epoch());
    coordinator->DecideAndStore(&effects);
  }
  coordinator->Perform(effects);
  return coordinator;
}

void Coordinator::Perform(const Effects& effects) {
  RendezvousStore::Run(effects.calls);
  for (const std::string& job_id : effects.changed_jobs) feed_.Notify(job_id);
}

Status Coordinator::Write(const std::vector<JobChange>& changes) {
  const double start = clock_.Monotonic();
  const Status status = NoteHealth(store_->Apply(changes));
  metrics_.ObserveWrite(clock_.Monotonic() - start);
  if (status.ok()) {
    size_t events = 0;
    for (const JobChange& change : changes) events += change.events.size();
    metrics_.CountEvents(events);
  }
  return status;
}

Status Coordinator::NoteHealth(const Status& status) {
  if ((absl::IsAborted(status) || absl::IsDataLoss(status)) && health_.ok()) {
    health_ = status;
    LogError("the job store is lost to this coordinator", {{"error", status.message()}});
  }
  return status;
}

EventRecord Coordinator::OwnEvent(EventLevel level, EventType type, std::string text) const {
  EventRecord event;
  event.time = clock_.Wall();
  event.level = level;
  event.type = type;
  event.source = kOwnSource;
  event.text = std::move(text);
  return event;
}

DecideOptions Coordinator::decide_options() const {
  DecideOptions options;
  options.lease = options_.lease_seconds;
  options.idle_limit = 2 * options_.lease_seconds;
  options.hold = options_.hold_seconds;
  options.max_restarts = options_.max_restarts;
  return options;
}

void Coordinator::DecideAndStore(Effects* effects) {
  if (!health_.ok()) return;
  const double now = clock_.Monotonic();
  std::vector<JobDecision> decisions = Decide(now, state_, decide_options());
  std::vector<JobChange> changes;
  for (size_t i = 0; i < decisions.size(); ++i) {
    JobDecision& decision = decisions[i];
    JobStatus& status = decision.status;
    if (status.state == JobState::kRunning && status.started_time == 0) status.started_time = clock_.Wall();
    if (IsEnded(status.state)) status.finished_time = clock_.Wall();
    if (status == state_.jobs[i].status && decision.events.empty()) continue;
    JobChange change;
    change.job_id = decision.job_id;
    change.status = status;
    for (const DecidedEvent& event : decision.events) {
      change.events.push_back(OwnEvent(event.level, event.type, event.text));
      change.events.back().generation = event.generation;
    }
    changes.push_back(std::move(change));
  }
  if (!changes.empty()) {
    if (const Status written = Write(changes); !written.ok()) {
      LogError("a decision could not be stored; it will be taken again", {{"error", written.message()}});
      return;
    }
  }
  for (size_t i = 0; i < decisions.size(); ++i) TakeOver(decisions[i], now, &state_.jobs[i], effects);
  std::erase_if(state_.jobs, [](const ActiveJob& job) { return IsEnded(job.status.state); });
  metrics_.SetCluster(now, options_.lease_seconds, state_);
}

void Coordinator::TakeOver(const JobDecision& decision, double now, ActiveJob* job, Effects* effects) {
  for (const DecidedEvent& event : decision.events) {
    Log(LevelOf(event.level), event.text, {{"job", job->id}, {"generation", decision.status.generation}});
  }
  if (decision.status != job->status || !decision.events.empty()) effects->changed_jobs.insert(job->id);
  const bool new_generation = decision.status.generation != job->status.generation;
  if (decision.status.state != job->status.state) {
    LogInfo("job changed its state",
            {{"job", job->id}, {"state", Name(decision.status.state)}, {"reason", decision.status.reason}});
  }
  RendezvousStore::Deferred calls;
  if (IsEnded(decision.status.state)) {
    calls = rendezvous_.Close(job->id);
    metrics_.CountEnded(decision.status.state);
  } else if (new_generation || decision.assigned) {
    calls = rendezvous_.Open(job->id, decision.status.generation);
    metrics_.CountGeneration();
  }
  for (auto& call : calls) effects->calls.push_back(std::move(call));
  if (new_generation || decision.assigned) job->failure.reset();
  if (decision.assigned) job->assigned_at = now;
  job->lost_at = decision.lost_at;
  job->noted.insert(decision.noted.begin(), decision.noted.end());
  job->status = decision.status;
}

void Coordinator::ForgetSilentWorkers(double now) {
  std::erase_if(state_.workers, [&](const auto& entry) {
    return now - entry.second.last_seen > options_.lease_seconds + kForgetSeconds;
  });
}

void Coordinator::Tick() {
  Effects effects;
  {
    absl::MutexLock lock(&mutex_);
    ForgetSilentWorkers(clock_.Monotonic());
    (void)NoteHealth(
        store_->CheckOwnership());  // an idle coordinator would otherwise not notice that another took over
    DecideAndStore(&effects);
  }
  Perform(effects);
}

Status Coordinator::health() {
  absl::MutexLock lock(&mutex_);
  return health_;
}

ActiveJob* Coordinator::FindJob(const std::string& job_id) {
  const auto found =
      std::find_if(state_.jobs.begin(), state_.jobs.end(), [&](const ActiveJob& job) { return job.id == job_id; });
  return found == state_.jobs.end() ? nullptr : &*found;
}

FleetView Coordinator::SnapshotFleet() {
  absl::MutexLock lock(&mutex_);
  const double now = clock_.Monotonic();
  FleetView view;
  for (const auto& [id, worker] : state_.workers) {
    if (worker.kind != WorkerKind::kTeacher || now - worker.last_seen > options_.lease_seconds) continue;
    if (worker.draining) continue;  // gone before the job has begun
    view.models.insert(view.models.end(), worker.models.begin(), worker.models.end());
  }
  return view;
}

}  // namespace distill
