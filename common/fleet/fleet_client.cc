#include "common/fleet/fleet_client.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <deque>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/fleet/fleet_codec.h"
#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/utf8.h"
#include "common/wall_clock.h"
#include "distill/v1/fleet.grpc.pb.h"

namespace distill {
namespace {

constexpr size_t kMostEvents = 1000;
constexpr size_t kMostProgress = 1000;
constexpr size_t kLongestEventText = 4096;
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kLongestBackoff = absl::Seconds(1);
// A live coordinator answers in milliseconds; one that is stopped or cut off is given up on after this.
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr absl::Duration kDrainTimeout = absl::Seconds(2);
constexpr absl::Duration kFailureReportTimeout = absl::Seconds(10);
// A coordinator that has just restarted knows us only after the next heartbeat.
constexpr absl::Duration kNotFoundPatience = absl::Seconds(10);

std::string RandomHex() {
  std::random_device random;
  char text[33];
  std::snprintf(text, sizeof text, "%08x%08x%08x%08x", random(), random(), random(), random());
  return text;
}

// The coordinator did not answer, or said that it cannot now. (A server that stops cancels its running calls.)
bool MayRetry(const Status& status) {
  return status.code() == StatusCode::kUnavailable || status.code() == StatusCode::kDeadlineExceeded ||
         status.code() == StatusCode::kCancelled;
}

v1::EventLevel ToProto(EventLevel level) {
  switch (level) {
    case EventLevel::kInfo:
      return v1::EVENT_LEVEL_INFO;
    case EventLevel::kWarning:
      return v1::EVENT_LEVEL_WARNING;
    case EventLevel::kError:
      return v1::EVENT_LEVEL_ERROR;
  }
  return v1::EVENT_LEVEL_UNSPECIFIED;
}

v1::FailureKind ToProto(FailureKind kind) {
  switch (kind) {
    case FailureKind::kJob:
      return v1::FAILURE_KIND_JOB;
    case FailureKind::kWorker:
      return v1::FAILURE_KIND_WORKER;
    case FailureKind::kPassing:
      return v1::FAILURE_KIND_PASSING;
  }
  return v1::FAILURE_KIND_UNSPECIFIED;
}

// At most kLongestEventText bytes (a little more where bytes were replaced), and valid: protobuf refuses strings that
// are not UTF-8.
std::string Printable(const std::string& text) {
  size_t end = std::min(text.size(), kLongestEventText);
  while (end > 0 && end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return ReplaceInvalidUtf8(std::string_view(text).substr(0, end));
}

class GrpcFleetClient : public FleetClient {
 public:
  GrpcFleetClient(Options options, Callbacks callbacks, const std::shared_ptr<grpc::Channel>& channel)
      : options_(std::move(options)),
        callbacks_(std::move(callbacks)),
        incarnation_(RandomHex()),
        stub_(v1::FleetService::NewStub(channel)),
        models_(options_.models) {}
  ~GrpcFleetClient() override { Stop(); }

  // First registration, then the heartbeat.
  Status Connect() {
    const absl::Duration deadline = SteadyNow() + absl::FromChrono(options_.connect_timeout);
    absl::Duration backoff = kFirstBackoff;
    for (;;) {
      const Status status = Register(std::min(kCallTimeout, std::max(deadline - SteadyNow(), kFirstBackoff)));
      if (status.ok()) break;
      if (!MayRetry(status)) return status;
      if (SteadyNow() + backoff >= deadline) {
        return absl::UnavailableError(StrCat("no coordinator answered at ", options_.coordinator, " within ",
                                             absl::ToDoubleSeconds(absl::FromChrono(options_.connect_timeout)),
                                             " s; start it, or correct --coordinator (", status.message(), ")"));
      }
      absl::SleepFor(backoff);
      backoff = std::min(2 * backoff, kLongestBackoff);
    }
    LogInfo("registered with the coordinator", {{"coordinator", options_.coordinator}, {"worker", options_.worker_id}});
    absl::MutexLock lock(&join_mutex_);
    thread_ = std::thread([this] {
      pthread_setname_np(pthread_self(), "heartbeat");
      HeartbeatLoop();
    });
    return OkStatus();
  }

  void SetCurrent(const std::string& job_id, uint64_t generation) override {
    absl::MutexLock lock(&mutex_);
    if (job_id != current_job_ || generation != current_generation_) progress_.clear();
    current_job_ = job_id;
    current_generation_ = generation;
    beat_now_ = true;
  }

  void SetModels(std::vector<ServedModelInfo> models) override {
    absl::MutexLock lock(&mutex_);
    next_models_ = std::move(models);
    beat_now_ = true;
  }

  void ReportProgress(const JobProgress& progress) override {
    absl::MutexLock lock(&mutex_);
    progress_.push_back({++last_progress_, progress});
    if (progress_.size() > kMostProgress) progress_.pop_front();
  }

  void ReportEvent(const std::string& job_id, EventLevel level, EventType type, const std::string& text) override {
    v1::JobEvent event;
    event.set_job_id(job_id);
    event.set_time(WallClock());
    event.set_level(ToProto(level));
    event.set_type(static_cast<v1::EventType>(type));
    event.set_source(options_.worker_id);
    event.set_text(Printable(text));
    absl::MutexLock lock(&mutex_);
    event.set_sequence(++last_sequence_);
    events_.push_back(std::move(event));
    if (events_.size() > kMostEvents) events_.pop_front();
  }

  Status ReportResume(const std::string& job_id, uint64_t generation, uint32_t stage, uint64_t step,
                      const std::string& checkpoint_digest) override {
    auto request = Begin<v1::ReportResumeRequest>(job_id, generation);
    request.set_stage(stage);
    request.set_step(step);
    request.set_checkpoint_digest(checkpoint_digest);
    return Report<v1::ReportResumeResponse>("ReportResume", &v1::FleetService::Stub::ReportResume, request,
                                            absl::InfiniteDuration());
  }

  Status CommitStage(const std::string& job_id, uint64_t generation, const JobStageResult& result) override {
    auto request = Begin<v1::CommitStageRequest>(job_id, generation);
    ToProto(result, request.mutable_result());
    return Report<v1::CommitStageResponse>("CommitStage", &v1::FleetService::Stub::CommitStage, request,
                                           absl::InfiniteDuration());
  }

  Status FinishJob(const std::string& job_id, uint64_t generation, const JobArtifacts& artifacts) override {
    auto request = Begin<v1::FinishJobRequest>(job_id, generation);
    ToProto(artifacts, request.mutable_artifacts());
    DeliverProgress();
    return Report<v1::FinishJobResponse>("FinishJob", &v1::FleetService::Stub::FinishJob, request,
                                         absl::InfiniteDuration());
  }

  Status ReportFailure(const std::string& job_id, uint64_t generation, FailureKind kind,
                       const std::string& message) override {
    auto request = Begin<v1::ReportFailureRequest>(job_id, generation);
    request.set_kind(ToProto(kind));
    request.set_message(Printable(message));
    return Report<v1::ReportFailureResponse>("ReportFailure", &v1::FleetService::Stub::ReportFailure, request,
                                             kFailureReportTimeout);
  }

  WorkerIdentity identity() const override { return {options_.worker_id, incarnation_, epoch_}; }

  void Drain() override {
    absl::MutexLock lock(&mutex_);
    if (!draining_) drain_until_ = SteadyNow() + kDrainTimeout;
    draining_ = true;
    beat_now_ = true;
    const auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return drained_ || stopped_; };
    AwaitFor(&mutex_, absl::Condition(&done), std::max(drain_until_ - SteadyNow(), absl::ZeroDuration()));
  }

  void Stop() override {
    {
      absl::MutexLock lock(&mutex_);
      stopped_ = true;
      // Contexts stay in the set until their call has returned, so none dangles here.
      for (grpc::ClientContext* context : in_flight_) context->TryCancel();
    }
    absl::MutexLock lock(&join_mutex_);
    if (thread_.joinable()) thread_.join();
  }

 private:
  // Who speaks.
  template <typename Request>
  void Sign(Request* request) const {
    request->set_worker_id(options_.worker_id);
    request->set_incarnation(incarnation_);
    request->set_coordinator_epoch(epoch_);
  }
  template <typename Request>
  static Request Begin(const std::string& job_id, uint64_t generation) {
    Request request;
    request.set_job_id(job_id);
    request.set_generation(generation);
    return request;
  }

  template <typename Request, typename Response>
  using Method = grpc::Status (v1::FleetService::Stub::*)(grpc::ClientContext*, const Request&, Response*);

  // One call. kCancelled once Stop() was called.
  template <typename Request, typename Response>
  Status Call(std::string_view what, Method<Request, Response> method, const Request& request, Response* response,
              absl::Duration timeout) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    context.set_wait_for_ready(away_);
    {
      absl::MutexLock lock(&mutex_);
      if (stopped_) return absl::CancelledError(StrCat(what, ": stopped"));
      in_flight_.insert(&context);
    }
    const grpc::Status status = (stub_.get()->*method)(&context, request, response);
    absl::MutexLock lock(&mutex_);
    in_flight_.erase(&context);
    if (!status.ok() && stopped_) return absl::CancelledError(StrCat(what, ": stopped"));
    return FromGrpc(status, what, options_.coordinator);
  }

  // Calls until answered, at most `patience`.
  template <typename Response, typename Request>
  Status Report(std::string_view what, Method<Request, Response> method, Request request, absl::Duration patience) {
    const absl::Duration start = SteadyNow();
    absl::Duration backoff = kFirstBackoff;
    for (bool told = false;;) {
      Response response;
      Sign(&request);  // the epoch may have grown since
      const Status status = Call(what, method, request, &response, std::min(2 * kCallTimeout, patience));
      const absl::Duration passed = SteadyNow() - start;
      const bool unknown_yet = status.code() == StatusCode::kNotFound && passed < kNotFoundPatience;
      if (status.ok() || (!MayRetry(status) && !unknown_yet) || passed + backoff > patience) return status;
      if (!told)
        LogWarning("the coordinator does not take a report; trying on",
                   {{"report", what}, {"error", status.ToString()}});
      told = true;
      absl::MutexLock lock(&mutex_);
      if (AwaitFor(&mutex_, absl::Condition(&stopped_), backoff))
        return absl::CancelledError(StrCat(what, ": stopped"));
      backoff = std::min(2 * backoff, kLongestBackoff);
    }
  }

  // `displaced`: only if the process that has the id now is lost.
  Status Register(absl::Duration timeout, bool displaced = false) {
    v1::RegisterRequest request;
    Sign(&request);
    request.set_displaced(displaced);
    request.set_kind(options_.kind == WorkerKind::kTeacher ? v1::WORKER_KIND_TEACHER : v1::WORKER_KIND_STUDENT);
    request.set_address(options_.address);
    request.set_device(options_.device);
    request.set_version(DISTILL_VERSION);
    std::optional<std::vector<ServedModelInfo>> next;
    {
      absl::MutexLock lock(&mutex_);
      next = std::exchange(next_models_, std::nullopt);
      request.set_current_job(current_job_);
      request.set_current_generation(current_generation_);
    }
    for (const ServedModelInfo& model : next ? *next : models_) ToProto(model, request.add_models());
    v1::RegisterResponse response;
    const Status status = Call("Register", &v1::FleetService::Stub::Register, request, &response, timeout);
    if (next && status.ok()) models_ = *std::move(next);
    if (next && !status.ok()) GiveBack(*std::move(next), status);
    DISTILL_RETURN_IF_ERROR(status);
    DISTILL_RETURN_IF_ERROR(CheckEpoch(response.coordinator_epoch()));
    // A coordinator that says nothing, or nonsense, gets the usual second.
    const double seconds = response.heartbeat_seconds();
    interval_ = seconds > 0 && seconds <= 60 ? absl::Seconds(seconds) : absl::Seconds(1);
    lease_ = std::max(interval_, absl::Seconds(std::min(response.lease_seconds(), 600.0)));
    return OkStatus();
  }

  // What was to be registered, and was not.
  void GiveBack(std::vector<ServedModelInfo> models, const Status& why) {
    absl::MutexLock lock(&mutex_);
    if (!MayRetry(why) && !stopped_) {
      LogError("the coordinator refuses the models that came anew; those before stay", {{"error", why.message()}});
    } else if (!next_models_) {
      next_models_ = std::move(models);
    }
  }

  Status CheckEpoch(uint64_t epoch) {
    if (epoch < epoch_) {
      return absl::FailedPreconditionError(
          StrCat("the coordinator at ", options_.coordinator, " is of epoch ", epoch, ", older than ", epoch_.load(),
                 " seen before; if its state was restored from a copy, restart this worker"));
    }
    epoch_ = epoch;
    return OkStatus();
  }

  void HeartbeatLoop() {
    int failures = 0;
    StatusCode told = StatusCode::kOk;
    for (;;) {
      bool models_changed = false;
      absl::Duration wait = soon_ ? interval_ / 10 : interval_;
      if (displaced_) wait = lease_;
      if (failures > 0) wait = std::min(wait, kFirstBackoff * (1 << std::min(failures - 1, 10)));
      {
        absl::MutexLock lock(&mutex_);
        const bool displaced = displaced_;
        const auto due = [this, displaced]()
                             ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return (beat_now_ && !displaced) || stopped_; };
        AwaitFor(&mutex_, absl::Condition(&due), wait);
        if (stopped_) return;
        beat_now_ = false;
        models_changed = next_models_.has_value();
      }
      Status status = displaced_ ? ReturnFromDisplacement() : models_changed ? Register(kCallTimeout) : Beat();
      if (status.code() == StatusCode::kNotFound) {
        status = Register(kCallTimeout);
        if (status.ok()) {
          LogInfo("registered with the coordinator again",
                  {{"coordinator", options_.coordinator}, {"epoch", epoch_.load()}});
          absl::MutexLock lock(&mutex_);
          beat_now_ = true;
        }
      }
      if (status.code() == StatusCode::kAborted) {
        // An answer: the coordinator is there, and knows somebody else under our id.
        if (!displaced_) {
          LogError("another process has this worker's id; its work is given up until that one is gone",
                   {{"worker", options_.worker_id}, {"error", status.message()}});
        }
        displaced_ = true;
        RevokeAll();
        status = OkStatus();
      }
      if (status.ok()) {
        if (failures > 0) LogInfo("the coordinator answers again", {{"failed_heartbeats", failures}});
        failures = 0;
        told = StatusCode::kOk;
        away_ = false;
      } else if (status.code() != StatusCode::kCancelled || !Stopped()) {
        ++failures;
        // Once for each reason: what a coordinator says that is back may differ from why it could not be reached.
        if (status.code() != told) LogWarning("heartbeat failed; trying on", {{"error", status.ToString()}});
        told = status.code();
        away_ = true;
      }
    }
  }

  // kAborted while the other process lives.
  Status ReturnFromDisplacement() {
    DISTILL_RETURN_IF_ERROR(Register(kCallTimeout, /*displaced=*/true));
    LogInfo("the other process of this id is gone; registered again", {{"worker", options_.worker_id}});
    displaced_ = false;
    absl::MutexLock lock(&mutex_);
    beat_now_ = true;
    return OkStatus();
  }

  // As if the coordinator had taken everything back.
  void RevokeAll() {
    if (assigned_) {
      assigned_ = false;
      teachers_.clear();
      if (callbacks_.on_student_assignment) callbacks_.on_student_assignment(std::nullopt);
    }
    if (!teacher_jobs_.empty()) {
      teacher_jobs_.clear();
      if (callbacks_.on_teacher_jobs) callbacks_.on_teacher_jobs(teacher_jobs_);
    }
  }

  // The last reports of a job are lost once it has ended.
  void DeliverProgress() {
    absl::MutexLock lock(&mutex_);
    beat_now_ = true;
    const auto delivered = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_ || progress_.empty(); };
    AwaitFor(&mutex_, absl::Condition(&delivered), kDrainTimeout);
  }

  bool Stopped() {
    absl::MutexLock lock(&mutex_);
    return stopped_;
  }

  // One heartbeat, and what its answer brings.
  Status Beat() {
    v1::HeartbeatRequest request;
    Sign(&request);
    if (callbacks_.queue_length) request.set_queue_length(callbacks_.queue_length());
    uint64_t last_progress = 0;
    {
      absl::MutexLock lock(&mutex_);
      request.set_job_id(current_job_);
      request.set_generation(current_generation_);
      request.set_draining(draining_);
      request.set_has_plan(assigned_ && assigned_job_ == current_job_ && assigned_generation_ == current_generation_);
      if (!current_job_.empty()) {
        for (const auto& [number, progress] : progress_) ToProto(progress, request.add_progress());
      }
      last_progress = last_progress_;
      for (const v1::JobEvent& event : events_) *request.add_events() = event;
    }
    v1::HeartbeatResponse response;
    DISTILL_RETURN_IF_ERROR(Call("Heartbeat", &v1::FleetService::Stub::Heartbeat, request, &response,
                                 std::max(kCallTimeout, 2 * interval_)));
    {
      absl::MutexLock lock(&mutex_);
      while (!progress_.empty() && progress_.front().first <= last_progress) progress_.pop_front();
      while (!events_.empty() && events_.front().sequence() <= response.events_stored()) events_.pop_front();
      if (request.draining()) drained_ = true;
      if (stopped_) return OkStatus();
    }
    DISTILL_RETURN_IF_ERROR(CheckEpoch(response.coordinator_epoch()));
    soon_ = response.soon();
    if (options_.kind == WorkerKind::kStudent) DeliverToStudent(response);
    if (options_.kind == WorkerKind::kTeacher) DeliverToTeacher(response);
    return OkStatus();
  }

  void DeliverToStudent(const v1::HeartbeatResponse& response) {
    if (response.has_student()) {
      StudentAssignment assignment = FromProto(response.student());
      if (!assigned_ || assigned_job_ != assignment.job_id || assigned_generation_ != assignment.generation) {
        assigned_ = true;
        assigned_job_ = assignment.job_id;
        assigned_generation_ = assignment.generation;
        teachers_ = assignment.teachers;
        cancel_told_ = false;
        if (callbacks_.on_student_assignment) callbacks_.on_student_assignment(std::move(assignment));
      } else if (teachers_ != assignment.teachers) {
        teachers_ = assignment.teachers;
        if (callbacks_.on_teachers) callbacks_.on_teachers(teachers_);
      }
    }
    if (response.cancel() && assigned_ && !cancel_told_) {
      cancel_told_ = true;
      if (callbacks_.on_cancel) callbacks_.on_cancel();
    }
    if (!response.has_student() && assigned_) {
      assigned_ = false;
      teachers_.clear();
      if (callbacks_.on_student_assignment) callbacks_.on_student_assignment(std::nullopt);
    }
  }

  void DeliverToTeacher(const v1::HeartbeatResponse& response) {
    std::vector<TeacherJob> jobs = TeacherJobsOf(response);
    if (jobs == teacher_jobs_) return;
    teacher_jobs_ = std::move(jobs);
    if (callbacks_.on_teacher_jobs) callbacks_.on_teacher_jobs(teacher_jobs_);
  }

  // Constant after construction.
  const Options options_;
  const Callbacks callbacks_;
  const std::string incarnation_;
  const std::unique_ptr<v1::FleetService::Stub> stub_;  // thread-safe

  // Highest coordinator epoch heard of. Written by the heartbeat thread alone (by Connect() before it starts).
  std::atomic<uint64_t> epoch_{0};

  // Of the heartbeat thread alone (of Connect() before it starts).
  absl::Duration interval_ = absl::Seconds(1);
  absl::Duration lease_ = absl::Seconds(5);
  std::vector<ServedModelInfo> models_;  // registered
  bool soon_ = false;                    // the coordinator wants to be called again in a moment
  bool displaced_ = false;               // another process has our id
  bool assigned_ = false;                // assignment delivered last, and not revoked
  std::string assigned_job_;
  uint64_t assigned_generation_ = 0;
  std::vector<TeacherEndpoint> teachers_;
  bool cancel_told_ = false;
  std::vector<TeacherJob> teacher_jobs_;

  absl::Mutex mutex_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool beat_now_ ABSL_GUARDED_BY(mutex_) = true;  // the first goes out at once
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Duration drain_until_ ABSL_GUARDED_BY(mutex_);  // when Drain() waits no longer
  bool drained_ ABSL_GUARDED_BY(mutex_) = false;        // a heartbeat that said so was answered
  std::optional<std::vector<ServedModelInfo>> next_models_ ABSL_GUARDED_BY(mutex_);  // to be registered
  std::string current_job_ ABSL_GUARDED_BY(mutex_);
  uint64_t current_generation_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<std::pair<uint64_t, JobProgress>> progress_ ABSL_GUARDED_BY(mutex_);  // with ascending numbers
  uint64_t last_progress_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t last_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<v1::JobEvent> events_ ABSL_GUARDED_BY(mutex_);
  // Calls that Stop() has to cancel; not owned, each is on the stack of its call.
  std::set<grpc::ClientContext*> in_flight_ ABSL_GUARDED_BY(mutex_);
  // The newest heartbeat failed: calls wait for the connection instead of failing at once. gRPC works on a connection
  // only while a call waits; with calls that end at once a TLS handshake gets nowhere before its time is up.
  std::atomic<bool> away_{false};

  absl::Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);
};

}  // namespace

StatusOr<std::unique_ptr<FleetClient>> FleetClient::Start(Options options, Callbacks callbacks) {
  DISTILL_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                           MakeChannel(options.coordinator, options.security));
  auto client = std::make_unique<GrpcFleetClient>(std::move(options), std::move(callbacks), channel);
  DISTILL_RETURN_IF_ERROR(client->Connect());
  return StatusOr<std::unique_ptr<FleetClient>>(std::move(client));
}

}  // namespace distill
