#include "coordinator/core/coordinator.h"

#include <algorithm>
#include <limits>

#include "common/log.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr double kForgetSeconds = 600;  // a lost worker stays in the fleet's listing this long
constexpr size_t kReportsPerWrite = 1000;
constexpr int kWritesPerFlush = 10;       // more reports wait for the next tick: decisions come between
constexpr size_t kEndedRemembered = 256;  // jobs

LogLevel LevelOf(EventLevel level) {
  return level == EventLevel::kError     ? LogLevel::kError
         : level == EventLevel::kWarning ? LogLevel::kWarning
                                         : LogLevel::kInfo;
}

}  // namespace

Coordinator::Coordinator(const Options& options, std::unique_ptr<JobStore> store, const Clock& clock,
                         MetricsRegistry* metrics)
    : options_(options),
      store_(std::move(store)),
      clock_(clock),
      metrics_(metrics),
      // Ticks come four times per heartbeat.
      attention_(clock.Monotonic(), options.heartbeat_seconds / 2) {}

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
    absl::MutexLock deciding(&coordinator->deciding_);
    for (const JobRecord& record : records) {
      if (record.damage.empty()) continue;
      LogError("a job cannot be read from the store", {{"job", record.id}, {"damage", record.damage}});
      JobChange failed;
      failed.job_id = record.id;
      failed.status = record.status;
      failed.status->state = JobState::kFailed;
      failed.status->reason = record.damage;
      failed.status->finished_time = clock.Wall();
      failed.events = {coordinator->OwnEvent(EventLevel::kError, EventType::kEnded, record.damage)};
      if (const Status written = coordinator->Write({failed}); !written.ok()) {
        LogError("its failure could not be stored", {{"job", record.id}, {"error", written.message()}});
      }
    }
    {
      absl::MutexLock lock(&coordinator->mutex_);
      const double now = coordinator->Look();
      ClusterState& state = coordinator->state_;
      // Without jobs nobody is expected back.
      coordinator->called_ = records.empty();
      if (!records.empty()) state.grace_until = std::numeric_limits<double>::infinity();
      for (JobRecord& record : records) {
        if (!record.damage.empty()) continue;
        LogInfo("job found in the store",
                {{"job", record.id}, {"state", Name(record.status.state)}, {"generation", record.status.generation}});
        if (record.status.state == JobState::kRunning) {
          for (auto& call : coordinator->rendezvous_.Open(record.id, record.status.generation, record.status.ranks)) {
            effects.calls.push_back(std::move(call));
          }
        }
        state.jobs.push_back(MakeActive(std::move(record), now));
      }
    }
    coordinator->metrics_.SetEpoch(coordinator->epoch());
    (void)coordinator->DecideAndStore(&effects);
  }
  coordinator->Perform(effects);
  return coordinator;
}

ActiveJob Coordinator::MakeActive(JobRecord record, double now) {
  ActiveJob job;
  job.id = std::move(record.id);
  job.name = std::move(record.name);
  job.plan = std::make_shared<const JobPlan>(std::move(record.plan));
  job.status = std::move(record.status);
  job.stages = std::move(record.stages);
  if (record.has_progress) job.progress = std::move(record.progress);
  job.assigned_at = job.progress_at = now;
  if (job.status.cancel_requested) job.cancel_at = now;
  for (const RankMember& member : job.status.ranks) job.members.insert(member.worker_id);
  return job;
}

void Coordinator::Perform(const Effects& effects) {
  RendezvousStore::Run(effects.calls);
  for (const std::string& job_id : effects.changed_jobs) feed_.Notify(job_id);
}

double Coordinator::Look() {
  const Attention::Look look = attention_.At(clock_.Monotonic());
  if (look.missed > 0) {
    if (look.missed > options_.heartbeat_seconds) {
      LogWarning("this coordinator did not run for a while; everybody gets a lease to call",
                 {{"seconds", look.missed}, {"lease", options_.lease_seconds}});
    }
    ExcuseSilence(look.now, options_.lease_seconds, &state_);
  }
  return look.now;
}

double Coordinator::NoteCall() {
  const double now = Look();
  if (!called_) {
    called_ = true;
    state_.grace_until = now + std::max(options_.lease_seconds, kLeastRestartGrace);
  }
  return now;
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
  if (!absl::IsAborted(status) && !absl::IsDataLoss(status)) return status;
  absl::MutexLock lock(&mutex_);
  if (health_.ok()) {
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
  options.restart_grace = std::max(options_.lease_seconds, kLeastRestartGrace);
  options.idle_limit = 2 * options_.lease_seconds;
  options.hold = options_.hold_seconds;
  options.set_aside_limit = options_.set_aside_limit_seconds;
  options.cancel_grace = options_.cancel_grace_seconds;
  options.stuck_limit = options_.stuck_limit_seconds;
  options.stall_limit = options_.stall_limit_seconds;
  options.hang_limit = options_.hang_limit_seconds;
  options.max_restarts = options_.max_restarts;
  return options;
}

Status Coordinator::DecideAndStore(Effects* effects) {
  double now = 0;
  uint64_t answers = 0;
  std::vector<JobDecision> decisions;
  std::vector<JobChange> changes;
  {
    absl::MutexLock lock(&mutex_);
    if (!health_.ok()) return absl::UnavailableError(StrCat("this coordinator is stopping: ", health_.message()));
    now = Look();
    answers = asked_;
    NoteAstray(now, &state_);
    decisions = Decide(now, state_, decide_options());
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
  }
  if (!changes.empty()) {
    if (const Status written = Write(changes); !written.ok()) {
      LogError("a decision could not be stored; it will be taken again", {{"error", written.message()}});
      return absl::UnavailableError(written.message());
    }
  }
  absl::MutexLock lock(&mutex_);
  decided_ = answers;
  for (size_t i = 0; i < decisions.size(); ++i) TakeOver(decisions[i], now, &state_.jobs[i], effects);
  std::erase_if(state_.jobs, [](const ActiveJob& job) { return IsEnded(job.status.state); });
  return OkStatus();
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
    // What no student could do was no fault of theirs: three mistyped paths must not cordon everybody.
    if (decision.status.state == JobState::kFailed) {
      for (auto& [id, worker] : state_.workers) worker.faults.erase(job->id);
    }
    RememberEnded(*job);
  } else if (decision.assigned) {
    calls = rendezvous_.Open(job->id, decision.status.generation, decision.status.ranks);
    metrics_.CountGeneration();
  } else if (new_generation) {
    calls = rendezvous_.Close(job->id);
    metrics_.CountGeneration();
  }
  for (auto& call : calls) effects->calls.push_back(std::move(call));
  if (new_generation || decision.assigned) job->failures.clear();
  if (decision.assigned) {
    job->assigned_at = now;
    for (const RankMember& member : decision.status.ranks) job->members.insert(member.worker_id);
  }
  job->lost_at = decision.lost_at;
  job->short_since = decision.short_since;
  job->no_teacher_at = decision.no_teacher_at;
  job->noted.insert(decision.noted.begin(), decision.noted.end());
  job->status = decision.status;
}

void Coordinator::RememberEnded(const ActiveJob& job) {
  ended_.emplace_back(job.id, job.members);
  if (ended_.size() > kEndedRemembered) ended_.pop_front();
}

bool Coordinator::MayReport(const std::string& worker_id, const std::string& job_id) {
  {
    absl::MutexLock lock(&mutex_);
    if (const ActiveJob* job = FindJob(job_id); job != nullptr && job->members.contains(worker_id)) return true;
    for (const auto& [id, members] : ended_) {
      if (id == job_id && members.contains(worker_id)) return true;
    }
  }
  // What this process does not remember, the store may. If it cannot be asked now, it cannot be written to either.
  const StatusOr<JobRecord> job = store_->Get(job_id);
  if (!job.ok()) return !absl::IsNotFound(job.status());
  return job->id == job_id && std::any_of(job->status.ranks.begin(), job->status.ranks.end(),
                                          [&](const RankMember& member) { return member.worker_id == worker_id; });
}

void Coordinator::FlushReports(Effects* effects) {
  for (int round = 0; round < kWritesPerFlush; ++round) {
    std::vector<QueuedReport> reports;
    {
      absl::MutexLock lock(&mutex_);
      if (!health_.ok()) return;
      reports = reports_.Take(kReportsPerWrite);
    }
    if (reports.empty()) return;
    std::vector<JobChange> changes;
    std::set<std::pair<std::string, std::string>> allowed, refused;  // worker and job
    for (const QueuedReport& report : reports) {
      JobChange change;
      change.job_id = report.job_id;
      if (report.progress) change.progress.push_back(*report.progress);
      if (report.event) {
        const auto key = std::pair(report.event->source, report.job_id);
        if (!allowed.contains(key) && !refused.contains(key)) {
          (MayReport(key.first, key.second) ? allowed : refused).insert(key);
        }
        if (refused.contains(key)) continue;
        change.events.push_back(*report.event);
      }
      changes.push_back(std::move(change));
    }
    for (const auto& [worker, job] : refused) {
      LogWarning("events about a job of which the worker never held a rank are dropped",
                 {{"worker", worker}, {"job", Shorten(job)}});
    }
    Status written = changes.empty() ? OkStatus() : Write(changes);
    if (absl::IsUnavailable(written) || absl::IsResourceExhausted(written) || absl::IsPermissionDenied(written) ||
        absl::IsAborted(written) || absl::IsDataLoss(written)) {
      // The store is in trouble, and it may pass.
      LogWarning("reports of workers could not be stored; they are kept", {{"error", written.message()}});
      absl::MutexLock lock(&mutex_);
      reports_.PutBack(std::move(reports));
      return;
    }
    if (!written.ok()) {
      // One of them cannot be stored at all; it must not hold up the others.
      for (const JobChange& change : changes) {
        if (const Status one = Write({change}); !one.ok()) {
          LogWarning("a report of a worker is dropped", {{"job", Shorten(change.job_id)}, {"error", one.message()}});
        }
      }
    }
    for (const JobChange& change : changes) effects->changed_jobs.insert(change.job_id);
    absl::MutexLock lock(&mutex_);
    for (const QueuedReport& report : reports) {
      if (!report.event) continue;
      const auto worker = state_.workers.find(report.event->source);
      if (worker == state_.workers.end() || worker->second.incarnation != report.event->source_incarnation) continue;
      worker->second.events_stored = std::max(worker->second.events_stored, report.event->source_sequence);
    }
  }
}

void Coordinator::StoreReports() {
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    FlushReports(&effects);
  }
  Perform(effects);
}

void Coordinator::ForgetSilentWorkers(double now) {
  std::erase_if(state_.workers, [&](const auto& entry) {
    return now - entry.second.last_seen > options_.lease_seconds + kForgetSeconds;
  });
}

void Coordinator::Tick() {
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    {
      absl::MutexLock lock(&mutex_);
      ForgetSilentWorkers(Look());
    }
    // An idle coordinator would otherwise not notice that another took over.
    (void)NoteHealth(store_->CheckOwnership());
    FlushReports(&effects);
    (void)DecideAndStore(&effects);
    absl::MutexLock lock(&mutex_);
    metrics_.SetCluster(Look(), decide_options(), state_);
  }
  Perform(effects);
}

void Coordinator::AskForDecision() {
  if (options_.decision_due) options_.decision_due();
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
  const double now = Look();
  FleetView view;
  for (const auto& [id, worker] : state_.workers) {
    if (!IsAlive(now, options_.lease_seconds, worker)) continue;
    if (worker.draining) continue;  // gone before the job has begun
    std::vector<ServedModelInfo>& models = worker.kind == WorkerKind::kTeacher ? view.models : view.archives;
    models.insert(models.end(), worker.models.begin(), worker.models.end());
  }
  return view;
}

}  // namespace distill
