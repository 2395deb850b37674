// The workers' side of the coordinator: registration and heartbeats.
#include <algorithm>

#include "absl/strings/ascii.h"
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
constexpr size_t kMaxState = 20'000;  // parameters and buffers of a model
constexpr size_t kMaxJobIdBytes = 256;
constexpr size_t kMaxProgressPerHeartbeat = 1000;
constexpr size_t kMaxEventBytes = 4096;

// ASCII, so that messages may show the first few.
bool IsDigestLetter(char c) { return c == '-' || c == ':' || absl::ascii_isalnum(static_cast<unsigned char>(c)); }

bool IsLabel(const std::string& text, size_t most) {
  return text.size() <= most && text.find('\n') == std::string::npos &&
         FirstInvalidByte(text) == std::string_view::npos;
}

Status CheckRegistration(const RegisterInput& input) {
  const auto refuse = [&](std::string_view what) {
    return absl::InvalidArgumentError(StrCat("worker '", Shorten(input.from.worker_id), "': ", what));
  };
  if (input.from.worker_id.empty() || !IsLabel(input.from.worker_id, 128)) {
    return refuse("the worker id must have 1 to 128 printable bytes");
  }
  if (input.from.worker_id == kOwnSource) return refuse("this id is the coordinator's own; choose another --id");
  if (input.from.incarnation.empty() || !IsLabel(input.from.incarnation, 128)) {
    return refuse("the incarnation must have 1 to 128 printable bytes");
  }
  if (!IsLabel(input.address, 256) || !IsLabel(input.device, 256) || !IsLabel(input.version, 256)) {
    return refuse("address, device and version must be printable and have at most 256 bytes");
  }
  const bool teacher = input.kind == WorkerKind::kTeacher;
  if (teacher && input.address.empty()) return refuse("a teacher must give the address at which students reach it");
  if ((teacher && input.models.empty()) || input.models.size() > kMaxModels) {
    return refuse(teacher ? StrCat("a teacher serves 1 to ", kMaxModels, " models, not ", input.models.size())
                          : StrCat("a student has at most ", kMaxModels, " archives, not ", input.models.size()));
  }
  for (const ServedModelInfo& model : input.models) {
    if (!IsPlainName(model.name)) {
      return refuse(
          StrCat("'", Shorten(model.name), "' is no model name: letters, digits and inner '-', '.', '_', at most 63"));
    }
    if (model.digest.empty() || model.digest.size() > 128 ||
        !std::all_of(model.digest.begin(), model.digest.end(), IsDigestLetter)) {
      return refuse(StrCat("model '", model.name, "' has no digest of 1 to 128 letters and digits"));
    }
    if (model.taps.size() > kMaxTaps) {
      return refuse(StrCat("model '", model.name, "' lists more than ", kMaxTaps, " taps"));
    }
    if (model.state.size() > kMaxState) {
      return refuse(StrCat("model '", model.name, "' lists more than ", kMaxState, " parameters and buffers"));
    }
  }
  return OkStatus();
}

std::string IdIsTaken(const std::string& id) {
  return StrCat("worker id '", id, "' is used by another process now; give each worker its own --id");
}

// Whether a report says something new, so that a heartbeat per second does not write a point per second.
bool IsNews(const std::optional<JobProgress>& last, const JobProgress& now) {
  return !last || last->time != now.time || last->total_step != now.total_step || last->phase != now.phase ||
         last->stage != now.stage;
}

// What of a heartbeat's reports is new: a heartbeat whose answer was lost brings the same ones again.
std::vector<JobProgress> NewsOf(const std::optional<JobProgress>& last, const std::vector<JobProgress>& reports) {
  size_t first = reports.size();
  while (first > 0 && reports.size() - first < kMaxProgressPerHeartbeat && IsNews(last, reports[first - 1])) --first;
  return {reports.begin() + static_cast<std::ptrdiff_t>(first), reports.end()};
}

}  // namespace

Status Coordinator::FenceEpoch(const WorkerIdentity& from) const {
  if (from.coordinator_epoch <= epoch()) return OkStatus();
  return absl::FailedPreconditionError(
      StrCat("worker '", Shorten(from.worker_id), "' has heard of coordinator epoch ", from.coordinator_epoch,
             ", this coordinator is of epoch ", epoch(),
             "; if its state was restored from a copy, restart this worker, else correct its --coordinator"));
}

StatusOr<RegisterResult> Coordinator::Register(const RegisterInput& input) {
  DISTILL_RETURN_IF_ERROR(FenceEpoch(input.from));
  DISTILL_RETURN_IF_ERROR(CheckRegistration(input));
  const std::string& id = input.from.worker_id;
  {
    absl::MutexLock lock(&mutex_);
    const double now = NoteCall();
    const auto found = state_.workers.find(id);
    const Worker* const before = found == state_.workers.end() ? nullptr : &found->second;
    if (before == nullptr && state_.workers.size() >= kMaxWorkers) {
      return absl::ResourceExhaustedError(StrCat(kMaxWorkers, " workers are registered already"));
    }
    const bool same = before != nullptr && before->incarnation == input.from.incarnation;
    const bool lives = before != nullptr && IsAlive(now, options_.lease_seconds, *before);
    if (lives && before->kind != input.kind) {
      return absl::InvalidArgumentError(
          StrCat("worker id '", id, "' belongs to a live worker of the other kind; choose another --id"));
    }
    if (lives && !same && input.displaced) return absl::AbortedError(IdIsTaken(id));
    Worker worker;
    if (same) worker = *before;
    if (!same && before != nullptr && before->draining) worker.drained_incarnation = before->incarnation;
    worker.id = id;
    worker.incarnation = input.from.incarnation;
    worker.kind = input.kind;
    worker.address = input.address;
    worker.device = input.device;
    worker.version = input.version;
    worker.models = input.models;
    worker.last_seen = now;
    if (!same || worker.job_id != input.current_job || worker.generation != input.current_generation) {
      worker.job_since = now;
    }
    worker.job_id = input.current_job;
    worker.generation = input.current_generation;
    // What the store knows of it from before this coordinator's start.
    for (const ActiveJob& job : state_.jobs) {
      for (const SetAside& one : job.status.set_aside) {
        if (one.worker_id == id && one.incarnation == worker.incarnation) worker.faults[job.id] = one.reason;
      }
    }
    worker.asked = ++asked_;
    state_.workers[id] = std::move(worker);
  }
  LogInfo("worker registered", {{"worker", id},
                                {"kind", input.kind == WorkerKind::kTeacher ? "teacher" : "student"},
                                {"address", input.address},
                                {"job", input.current_job}});
  AskForDecision();
  return RegisterResult{epoch(), options_.heartbeat_seconds, options_.lease_seconds};
}

StatusOr<HeartbeatResult> Coordinator::Heartbeat(const HeartbeatInput& input) {
  DISTILL_RETURN_IF_ERROR(FenceEpoch(input.from));
  HeartbeatResult result;
  bool news = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!health_.ok()) return absl::UnavailableError(StrCat("this coordinator is stopping: ", health_.message()));
    const auto found = state_.workers.find(input.from.worker_id);
    if (found == state_.workers.end()) {
      return absl::NotFoundError(
          StrCat("worker '", Shorten(input.from.worker_id), "' is not registered here; register again"));
    }
    Worker& worker = found->second;
    if (worker.incarnation != input.from.incarnation) return absl::AbortedError(IdIsTaken(worker.id));
    const double now = NoteCall();
    // A job that waits for students may take one that was lost, or that has called for the first time since its group
    // broke.
    const bool was_away = !IsAlive(now, options_.lease_seconds, worker);
    const bool acts_anew = worker.job_id != input.job_id || worker.generation != input.generation;
    news = acts_anew || was_away || worker.draining != input.draining || MayBeTaken(worker);
    if (news) worker.asked = ++asked_;
    worker.last_seen = now;
    worker.draining = input.draining;
    worker.queue_length = input.queue_length;
    if (acts_anew) worker.job_since = now;
    worker.job_id = input.job_id;
    worker.generation = input.generation;
    metrics_.CountHeartbeat(worker.kind);
    QueueReports(input, now, &worker);
    result = Answer(worker, input.has_plan, now);
    result.soon = worker.asked > decided_;
  }
  if (news) AskForDecision();
  return result;
}

bool Coordinator::MayBeTaken(const Worker& worker) const {
  if (worker.kind != WorkerKind::kStudent) return false;
  return std::any_of(state_.jobs.begin(), state_.jobs.end(), [&](const ActiveJob& job) {
    return job.status.state == JobState::kQueued && job.lost_at && worker.last_seen <= *job.lost_at;
  });
}

void Coordinator::QueueReports(const HeartbeatInput& input, double now, Worker* worker) {
  ActiveJob* job = FindJob(input.job_id);
  const bool leads = job != nullptr && job->status.state == JobState::kRunning &&
                     job->status.generation == input.generation && !job->status.ranks.empty() &&
                     job->status.ranks[0].worker_id == worker->id;
  if (leads) {
    for (JobProgress& progress : NewsOf(job->progress, input.progress)) {
      reports_.AddProgress(job->id, progress);
      job->progress = std::move(progress);
      job->progress_at = now;
    }
  }
  for (const EventRecord& given : input.events) {
    if (given.job_id.empty() || given.job_id.size() > kMaxJobIdBytes) continue;
    // The worker sends events until it hears that they are stored.
    if (given.source_sequence > 0 && given.source_sequence <= worker->events_queued) continue;
    EventRecord event = given;
    event.source = worker->id;
    event.source_incarnation = worker->incarnation;
    event.text = CutText(event.text, kMaxEventBytes);
    if (!reports_.AddEvent(given.job_id, std::move(event))) break;
    worker->events_queued = std::max(worker->events_queued, given.source_sequence);
  }
}

HeartbeatResult Coordinator::Answer(const Worker& worker, bool has_plan, double now) {
  HeartbeatResult result;
  result.epoch = epoch();
  result.events_stored = worker.events_stored;
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
      const bool known = has_plan && worker.job_id == job.id && worker.generation == job.status.generation;
      if (!known) assignment.plan = *job.plan;
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

}  // namespace distill
