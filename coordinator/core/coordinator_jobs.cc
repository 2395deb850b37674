// The users' side of the coordinator.
#include <random>

#include "common/hash/sha256.h"
#include "common/log.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/teachers.h"
#include "coordinator/jobfile/model_taps.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr size_t kMaxActiveJobs = 1000;
constexpr size_t kMaxRequestIdBytes = 128;

// "NAME-1a2b3c4d": readable, and different from the ids of an earlier life of the state folder, whose checkpoints may
// still lie about.
std::string MakeJobId(const std::string& name) {
  std::random_device random;
  const uint32_t number = random();
  std::string hex;
  for (int shift = 28; shift >= 0; shift -= 4) hex += "0123456789abcdef"[(number >> shift) & 15];
  return StrCat(name, "-", hex);
}

// Lengths in front of each part, so that no two different contents print alike.
std::string ContentDigest(const JobFileInput& file) {
  std::string content = StrCat(file.yaml.size(), ":", file.yaml);
  for (const std::string& one : file.overrides) StrAppend(&content, one.size(), ":", one);
  return Sha256Hex(content);
}

Status CheckRequestId(const SubmitRequest& request) {
  const std::string& id = request.request_id;
  if (id.empty() && request.dry_run) return OkStatus();
  if (id.empty() || id.size() > kMaxRequestIdBytes || id.find('\n') != std::string::npos ||
      FirstInvalidByte(id) != std::string_view::npos) {
    return absl::InvalidArgumentError(StrCat("request_id: expected 1 to ", kMaxRequestIdBytes,
                                             " printable bytes, unique per job, got '", Shorten(id), "'"));
  }
  return OkStatus();
}

}  // namespace

StatusOr<SubmitResult> Coordinator::FindSubmitted(const SubmitRequest& request, const std::string& digest,
                                                  bool* found) {
  *found = false;
  DISTILL_ASSIGN_OR_RETURN(const std::optional<JobStore::Known> known, store_->FindRequest(request.request_id));
  if (!known) return SubmitResult{};
  if (known->content_sha256 != digest) {
    return absl::AlreadyExistsError(StrCat("request id '", request.request_id, "' was used for job ", known->job_id,
                                           " with another job file; take a new request id"));
  }
  *found = true;
  DISTILL_ASSIGN_OR_RETURN(JobRecord job, store_->Get(known->job_id));
  return SubmitResult{job.id, std::move(job.plan), true, {}, {}};
}

StatusOr<SubmitResult> Coordinator::Submit(const SubmitRequest& request) {
  const auto refuse = [&](const Status& status) {
    metrics_.CountSubmission("refused");
    return status;
  };
  if (const Status status = CheckRequestId(request); !status.ok()) return refuse(status);
  const std::string digest = ContentDigest(request.file);
  if (!request.dry_run) {
    bool found = false;
    StatusOr<SubmitResult> known = FindSubmitted(request, digest, &found);
    if (!known.ok()) return refuse(known.status());
    if (found) {
      metrics_.CountSubmission("existed");
      return known;
    }
  }
  ExpandedJob expanded = ExpandJobFile(request.file, SnapshotFleet());
  if (!expanded.problems.empty()) {
    metrics_.CountSubmission("refused");
    return SubmitResult{"", {}, false, std::move(expanded.problems), std::move(expanded.warnings)};
  }
  if (request.dry_run) {
    metrics_.CountSubmission("dry_run");
    return SubmitResult{"", std::move(expanded.plan), false, {}, std::move(expanded.warnings)};
  }
  JobRecord record;
  record.id = MakeJobId(expanded.plan.name);
  record.name = expanded.plan.name;
  record.submitted_time = clock_.Wall();
  record.plan = expanded.plan;
  record.yaml = request.file.yaml;
  record.file_name = request.file.file_name;
  record.overrides = request.file.overrides;
  record.status.reason = "submitted";
  record.status.generation = 1;  // that of the first group
  std::vector<EventRecord> events = {
      OwnEvent(EventLevel::kInfo, EventType::kSubmitted,
               StrCat("submitted: ", record.plan.stages.size(), " stage(s), ", record.plan.students, " student(s)"))};
  for (const JobProblem& warning : expanded.warnings) {
    events.push_back(OwnEvent(EventLevel::kWarning, EventType::kSubmitWarning, Describe(request.file, warning)));
  }
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    {
      absl::MutexLock lock(&mutex_);
      (void)NoteCall();
      if (const Status room = CheckRoom(); !room.ok()) return refuse(room);
    }
    const Status stored = NoteHealth(store_->Insert(record, request.request_id, digest, events));
    if (absl::IsAlreadyExists(stored)) {
      // The same request on two connections at once: the other one won.
      bool found = false;
      StatusOr<SubmitResult> known = FindSubmitted(request, digest, &found);
      if (known.ok() && found) {
        metrics_.CountSubmission("existed");
        return known;
      }
      return refuse(known.ok() ? stored : known.status());
    }
    if (!stored.ok()) return refuse(stored);
    {
      absl::MutexLock lock(&mutex_);
      state_.jobs.push_back(MakeActive(record, Look()));
    }
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  metrics_.CountSubmission("accepted");
  LogInfo("job submitted",
          {{"job", record.id}, {"stages", record.plan.stages.size()}, {"students", record.plan.students}});
  return SubmitResult{record.id, std::move(record.plan), false, {}, std::move(expanded.warnings)};
}

Status Coordinator::CheckRoom() const {
  if (!health_.ok()) return absl::UnavailableError(StrCat("the coordinator is stopping: ", health_.message()));
  if (state_.jobs.size() < kMaxActiveJobs) return OkStatus();
  return absl::ResourceExhaustedError(StrCat(kMaxActiveJobs, " jobs wait or run already; wait, or cancel some"));
}

StatusOr<JobRecord> Coordinator::Cancel(const std::string& job_name, const std::string& reason) {
  DISTILL_ASSIGN_OR_RETURN(const JobRecord record, store_->Get(job_name));
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    JobChange change;
    change.job_id = record.id;
    {
      absl::MutexLock lock(&mutex_);
      (void)NoteCall();
      const ActiveJob* job = FindJob(record.id);
      if (job != nullptr && !job->status.cancel_requested) change.status = job->status;
    }
    if (!change.status) return store_->Get(record.id);
    change.status->cancel_requested = true;
    change.status->cancel_reason = Shorten(reason);
    change.events = {OwnEvent(EventLevel::kInfo, EventType::kCancelRequested,
                              StrCat("cancel requested", reason.empty() ? "" : ": ", Shorten(reason)))};
    DISTILL_RETURN_IF_ERROR(Write({change}));
    {
      absl::MutexLock lock(&mutex_);
      ActiveJob* const job = FindJob(record.id);
      job->status = *change.status;
      job->cancel_at = Look();
    }
    effects.changed_jobs.insert(record.id);
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return store_->Get(record.id);
}

StatusOr<JobRecord> Coordinator::Resume(const std::string& job_name) {
  DISTILL_ASSIGN_OR_RETURN(const JobRecord named, store_->Get(job_name));
  const std::string& id = named.id;
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    {
      absl::MutexLock lock(&mutex_);
      (void)NoteCall();
      if (const ActiveJob* job = FindJob(id); job != nullptr && job->status.cancel_requested) {
        return absl::FailedPreconditionError(
            StrCat("job ", id, " is still being cancelled (", job->status.reason, "); resume it when it has ended"));
      } else if (job != nullptr) {
        return store_->Get(id);
      }
      DISTILL_RETURN_IF_ERROR(CheckRoom());
    }
    // Ended, so nothing but this changes it.
    DISTILL_ASSIGN_OR_RETURN(JobRecord record, store_->Get(id));
    if (!record.damage.empty()) return absl::FailedPreconditionError(StrCat("job ", id, ": ", record.damage));
    if (record.status.state == JobState::kSucceeded) {
      return absl::FailedPreconditionError(StrCat("job ", id, " has succeeded: there is nothing left to do"));
    }
    const std::string before = StrCat(Name(record.status.state), ": ", record.status.reason);
    JobStatus& status = record.status;
    status.state = JobState::kQueued;
    status.reason = "resumed by a user";
    status.wait = JobWait::kStudents;
    ++status.generation;
    status.fruitless = 0;
    status.set_aside.clear();
    status.cancel_requested = false;
    status.cancel_reason.clear();
    status.finished_time = 0;
    JobChange change;
    change.job_id = id;
    change.status = status;
    change.events = {OwnEvent(EventLevel::kInfo, EventType::kContinued,
                              StrCat("resumed by a user as generation ", status.generation, "; it was ", before))};
    DISTILL_RETURN_IF_ERROR(Write({change}));
    LogInfo("job resumed", {{"job", id}, {"generation", status.generation}, {"before", before}});
    {
      absl::MutexLock lock(&mutex_);
      // Its late events find it among the active jobs again.
      std::erase_if(ended_, [&](const auto& one) { return one.first == id; });
      // A second life is a second chance for those that failed it.
      for (auto& [worker_id, worker] : state_.workers) worker.faults.erase(id);
      state_.jobs.push_back(MakeActive(std::move(record), Look()));
    }
    effects.changed_jobs.insert(id);
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return store_->Get(id);
}

Status Coordinator::Uncordon(const std::string& worker_id) {
  Effects effects;
  {
    absl::MutexLock deciding(&deciding_);
    std::vector<JobChange> changes;
    {
      absl::MutexLock lock(&mutex_);
      (void)NoteCall();
      const auto worker = state_.workers.find(worker_id);
      if (worker == state_.workers.end()) {
        return absl::NotFoundError(
            StrCat("no worker has the id '", Shorten(worker_id), "'; distillctl fleet shows all"));
      }
      worker->second.faults.clear();
      for (ActiveJob& job : state_.jobs) {
        JobStatus status = job.status;
        std::erase_if(status.set_aside, [&](const SetAside& one) { return one.worker_id == worker_id; });
        if (status == job.status) continue;
        JobChange change;
        change.job_id = job.id;
        change.status = status;
        change.events = {OwnEvent(EventLevel::kInfo, EventType::kGeneral,
                                  StrCat("a user lets ", worker_id, " take this job again"))};
        changes.push_back(std::move(change));
      }
    }
    if (!changes.empty()) {
      if (const Status written = Write(changes); !written.ok()) return absl::UnavailableError(written.message());
    }
    {
      absl::MutexLock lock(&mutex_);
      for (const JobChange& change : changes) {
        FindJob(change.job_id)->status = *change.status;
        effects.changed_jobs.insert(change.job_id);
      }
    }
    LogInfo("a user lets a worker take jobs again", {{"worker", worker_id}});
    (void)DecideAndStore(&effects);
  }
  Perform(effects);
  return OkStatus();
}

StatusOr<JobRecord> Coordinator::Get(const std::string& job) { return store_->Get(job); }
StatusOr<JobRecord> Coordinator::GetWithFile(const std::string& job) {
  DISTILL_ASSIGN_OR_RETURN(JobRecord record, store_->Get(job));
  DISTILL_ASSIGN_OR_RETURN(record.yaml, store_->Yaml(record.id));
  return record;
}
StatusOr<std::vector<JobRecord>> Coordinator::List(size_t limit, const std::vector<JobState>& states) {
  return store_->List(limit, states);
}
StatusOr<std::vector<EventRecord>> Coordinator::Events(const std::string& job_id, uint64_t after, size_t limit) {
  return store_->Events(job_id, after, limit);
}
StatusOr<std::vector<JobProgress>> Coordinator::History(const std::string& job) {
  DISTILL_ASSIGN_OR_RETURN(const JobRecord record, store_->Get(job));
  return store_->History(record.id);
}

StatusOr<std::vector<CurvePoint>> Coordinator::Curve(const std::string& job_id, uint64_t from, size_t limit) {
  return store_->Curve(job_id, from, limit);
}

std::vector<WorkerStatus> Coordinator::Fleet() {
  absl::MutexLock lock(&mutex_);
  const double now = Look();
  const DecideOptions options = decide_options();
  std::map<std::string, std::pair<std::string, const ActiveJob*>> holds;  // incarnation and job by student
  for (const ActiveJob& job : state_.jobs) {
    if (job.status.state != JobState::kRunning) continue;
    for (const RankMember& member : job.status.ranks) holds[member.worker_id] = {member.incarnation, &job};
  }
  std::vector<WorkerStatus> fleet;
  for (const auto& [id, worker] : state_.workers) {
    WorkerStatus status{worker, "idle", "", now - worker.last_seen, {}};
    if (worker.kind == WorkerKind::kTeacher) {
      for (const TeacherJob& job : JobsOf(worker, state_)) status.jobs.push_back(job.job_id);
      if (!status.jobs.empty()) status.state = "serving";
    } else if (const auto held = holds.find(id); held != holds.end() && held->second.first == worker.incarnation) {
      status.jobs.push_back(held->second.second->id);
      status.state = "training";
    }
    if (worker.cordoned()) {
      status.state = "cordoned";
      const auto& [job_id, said] = *worker.faults.rbegin();
      status.reason = StrCat("failed ", worker.faults.size(), " jobs by its own fault; ", job_id, ": ", said,
                             "; mend it and restart it, or distillctl uncordon ", id);
    }
    if (IsStuck(now, worker, options)) {
      status.state = "stuck";
      status.reason = StrCat("has not left job ", worker.job_id, " (generation ", worker.generation, ") for ",
                             static_cast<int64_t>(now - *worker.astray_since), " s; its log says where; restart it");
    }
    if (worker.draining) status.state = "draining";
    // Who said goodbye is not missed.
    if (!IsAlive(now, options_.lease_seconds, worker)) status.state = worker.draining ? "stopped" : "lost";
    fleet.push_back(std::move(status));
  }
  return fleet;
}

StatusOr<TapListing> Coordinator::ListTaps(const ModelSpec& spec) {
  const FleetView fleet = SnapshotFleet();
  std::vector<std::string> names = Architecture::Names();
  for (const std::string& name : names) {
    if (name != spec.arch) continue;
    DISTILL_ASSIGN_OR_RETURN(const Architecture architecture, Architecture::Create(Architecture::WithDefaults(spec)));
    return TapListing{architecture.spec(), TapsOf(architecture).taps};
  }
  for (const ServedModelInfo& model : fleet.models) {
    names.push_back(model.name);
    if (model.name != spec.arch) continue;
    DISTILL_ASSIGN_OR_RETURN(const ModelTaps taps, TapsOf(model));
    return TapListing{model.spec, taps.taps};
  }
  for (const ServedModelInfo& archive : fleet.archives) {
    names.push_back(archive.name);
    if (archive.name != spec.arch) continue;
    DISTILL_ASSIGN_OR_RETURN(const Architecture architecture, ArchitectureOf(archive));
    return TapListing{architecture.spec(), TapsOf(architecture).taps};
  }
  return absl::NotFoundError(StrCat("'", Shorten(spec.arch),
                                    "' is neither an architecture of the zoo, nor a model that a live teacher serves, "
                                    "nor an archive of a live student",
                                    DidYouMean(spec.arch, names)));
}

}  // namespace distill
