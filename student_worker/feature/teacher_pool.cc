#include "student_worker/feature/teacher_pool.h"

#include <grpcpp/channel.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/steady_wait.h"
#include "student_worker/feature/answer_assembler.h"
#include "student_worker/feature/teacher_connection.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// gRPC's channel tells its state when asked; it is asked this often while a connection is being made.
constexpr Milliseconds kDialPoll{5};
// A request whose computation fails on the teachers this often is given up; so is a teacher that breaks the protocol this often without
// a good answer in between, and a first request that is not answered this often.
constexpr int kMaxFailures = 3;
constexpr size_t kTensorAlignment = 64;  // a cache line, and what vectorised kernels like best

// What a teacher that answers so will answer again: the request (or we) would have to change.
bool IsRefusal(const Status& status) {
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kFailedPrecondition:
    case StatusCode::kUnauthenticated:
    case StatusCode::kPermissionDenied:
    case StatusCode::kUnimplemented:
    case StatusCode::kOutOfRange:
      return true;
    default:
      return false;
  }
}

// Signs of a faulty teacher rather than of one that went away.
bool IsFault(const Status& status) {
  return status.code() == StatusCode::kDataLoss || status.code() == StatusCode::kInternal ||
         status.code() == StatusCode::kResourceExhausted;
}

Status CheckImages(const ImageBatch& images) {
  const unsigned __int128 size = static_cast<unsigned __int128>(images.n) * images.c * (uint64_t{images.h} * images.w);
  if (size == 0 || size != images.pixels.size) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of shape [", images.n, ", ", images.c, ", ", images.h, ", ", images.w,
                                                   "] came with ", images.pixels.size, " bytes of pixels"));
  }
  constexpr size_t kHeaderBytes = 1024;
  if (images.pixels.size > kMaxMessageBytes - kHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", images.pixels.size, " bytes of pixels does not fit a message of ",
                                                   kMaxMessageBytes, " bytes; lower batch_size or use more students"));
  }
  return OkStatus();
}

}  // namespace

// Everything below the guarded block is touched by the pool's thread alone ("FromLoop").
class TeacherPool::Core : public std::enable_shared_from_this<TeacherPool::Core> {
 public:
  explicit Core(Options options);

  void Start() {
    thread_ = std::thread([this] { Run(); });
  }
  void StopAndJoin();
  void Post(std::function<void()> task) ABSL_LOCKS_EXCLUDED(mu_);
  void Release(uint64_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t window_used() const ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    return granted_ + held_;
  }
  size_t connected() const { return connected_; }
  uint64_t NewTicket() { return ++last_ticket_; }

  void FetchFromLoop(uint64_t ticket, uint64_t id, ImageBatch images, Callback callback);
  void CancelFromLoop(uint64_t ticket);
  void SetTeachersFromLoop(std::vector<TeacherEndpoint> endpoints);

 private:
  struct Request {
    uint64_t ticket = 0;
    uint64_t id = 0;
    ImageBatch images;
    Callback callback;  // null once called (cancelled)
    Clock::time_point start;
    int failures = 0;       // error answers ...
    std::string failed_at;  // ... the last one from this address
    int stalls = 0;
  };
  // A request that a teacher owes the answer of.
  struct InFlight {
    Request request;
    std::unique_ptr<AnswerAssembler> assembler;
    uint64_t cost = 0;  // bytes of credit meant for it ...
    uint64_t due = 0;   // ... and those of them for which no memory was made yet
  };
  struct Teacher;
  struct Stream {
    std::unique_ptr<TeacherConnection> connection;
    Teacher* teacher = nullptr;  // not owned; null once dropped, when only kClosed is awaited
    bool ending = false;         // the teacher has ended the call; its status is on the way
    std::map<uint64_t, InFlight> in_flight;  // by request id on the wire
    // Bytes the teacher may still send, and the part of them that answers of in_flight will use. They differ after an answer that was
    // an error, which used none of its credit.
    uint64_t credit = 0;
    uint64_t committed = 0;
    Clock::time_point last_progress;  // last message, or the moment it began to owe an answer
  };
  struct Teacher {
    TeacherEndpoint endpoint;
    // idle: no channel, no stream; dialing: channel only; open: both.
    std::shared_ptr<grpc::Channel> channel;  // shared with the connection
    Stream* stream = nullptr;                // owned by streams_
    Clock::time_point next_attempt;          // idle
    Clock::time_point dial_deadline;         // dialing
    Milliseconds backoff;
    Status refusal;  // not OK: this teacher will not answer, though it is tried again now and then
    int faults = 0;  // in a row
    bool unusable = false;  // refused without asking: never dialed
  };

  // What the pool's thread does.
  void Run();
  Clock::time_point NextTimerFromLoop() const;
  void CheckTimersFromLoop();
  void DialFromLoop(Teacher* teacher);
  void PollDialFromLoop(Teacher* teacher);
  void OpenStreamFromLoop(Teacher* teacher);
  void RetryLaterFromLoop(Teacher* teacher, const Status& why);
  void RecallCreditFromLoop(Stream* stream);
  void DispatchFromLoop();
  void SendFromLoop(Stream* stream, Request request, uint64_t cost, uint64_t grant);
  void OnEventFromLoop(TeacherConnection::Event event);
  void OnChunkFromLoop(Stream* stream, StatusOr<FeatureChunk> chunk);
  void OnRequestErrorFromLoop(Stream* stream, std::map<uint64_t, InFlight>::iterator it, const FeatureChunk& chunk);
  void DropFromLoop(Stream* stream, const Status& why);
  void FinishFromLoop(Request request, StatusOr<FeatureBatch> result);
  void UpdateConnectedFromLoop();
  // Bytes of the answer for n images; nothing while shapes are unknown.
  std::optional<uint64_t> CostFromLoop(uint32_t n) const;
  FillableBuffer AllocateFromLoop(Stream* stream, uint64_t wire_id, uint64_t size);
  // Moves bytes between the two halves of the window's account.
  void Account(int64_t granted, int64_t held) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    granted_ += granted;
    held_ += held;
  }

  const Options options_;
  std::thread thread_;
  std::atomic<uint64_t> last_ticket_ = 0;  // atomic: callers on any thread draw tickets
  std::atomic<size_t> connected_ = 0;      // atomic: read by any thread, for people and tests

  mutable absl::Mutex mu_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool wake_ ABSL_GUARDED_BY(mu_) = false;    // bytes were released
  uint64_t granted_ ABSL_GUARDED_BY(mu_) = 0;  // sum of the streams' credit
  uint64_t held_ ABSL_GUARDED_BY(mu_) = 0;     // bytes of tensors that exist

  bool stopping_ = false;
  std::vector<std::unique_ptr<Teacher>> teachers_;  // in the order of SetTeachers
  std::map<TeacherConnection*, std::unique_ptr<Stream>> streams_;
  std::map<uint64_t, Request> waiting_;  // by ticket: resent requests come before later ones
  std::vector<std::vector<uint32_t>> tap_shapes_;
  uint64_t last_wire_id_ = 0;

  // Null without a registry.
  Counter* bytes_total_ = nullptr;
  Counter* ok_total_ = nullptr;
  Counter* error_total_ = nullptr;
  Counter* cancelled_total_ = nullptr;
  Counter* resends_total_ = nullptr;
  Histogram* latency_ = nullptr;
  Gauge* connected_gauge_ = nullptr;
  Gauge* inflight_gauge_ = nullptr;
};

TeacherPool::Core::Core(Options options) : options_(std::move(options)), tap_shapes_(options_.tap_shapes) {
  if (options_.metrics == nullptr) return;
  MetricsRegistry& metrics = *options_.metrics;
  const std::string requests = "distill_student_feature_requests_total";
  const std::string requests_help = "Feature requests that ended, by result.";
  bytes_total_ = &metrics.GetCounter("distill_student_feature_bytes_total", "Bytes of feature maps received from teachers.");
  ok_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "ok"}});
  error_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "error"}});
  cancelled_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "cancelled"}});
  resends_total_ = &metrics.GetCounter("distill_student_feature_resends_total",
                                       "Feature requests taken from a teacher unanswered and sent again.");
  latency_ = &metrics.GetHistogram("distill_student_feature_latency_seconds",
                                   "Time from asking for features to having all of them, waiting included.", SecondsBuckets());
  connected_gauge_ = &metrics.GetGauge("distill_student_teachers_connected", "Teachers with an open feature stream.");
  inflight_gauge_ = &metrics.GetGauge("distill_student_feature_inflight_bytes",
                                      "Bytes of feature maps granted to teachers or received and not yet released.");
}

void TeacherPool::Core::Post(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

// From whichever thread drops the last reference to a tensor. Touches nothing but the account: the pool may be gone.
void TeacherPool::Core::Release(uint64_t bytes) {
  absl::MutexLock lock(&mu_);
  held_ -= bytes;
  wake_ = true;
}

void TeacherPool::Core::StopAndJoin() {
  Post([this] {
    stopping_ = true;
    teachers_.clear();
    for (auto& [connection, stream] : streams_) {
      stream->teacher = nullptr;
      Account(-static_cast<int64_t>(stream->credit), 0);
      for (auto& [wire_id, in_flight] : stream->in_flight) waiting_.emplace(in_flight.request.ticket, std::move(in_flight.request));
      stream->in_flight.clear();
      connection->Close(/*cancel=*/true);
    }
    std::map<uint64_t, Request> unanswered;
    unanswered.swap(waiting_);
    for (auto& [ticket, request] : unanswered) FinishFromLoop(std::move(request), absl::CancelledError("the teacher pool is closed"));
    UpdateConnectedFromLoop();
  });
  thread_.join();
}

void TeacherPool::Core::Run() {
  pthread_setname_np(pthread_self(), "teacher-pool");
  while (true) {
    std::deque<std::function<void()>> tasks;
    const Clock::time_point deadline = NextTimerFromLoop();
    {
      absl::MutexLock lock(&mu_);
      if (stopping_ && streams_.empty() && tasks_.empty()) return;
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !tasks_.empty() || wake_; };
      if (deadline == Clock::time_point::max()) {
        mu_.Await(absl::Condition(&ready));
      } else {
        AwaitFor(&mu_, absl::Condition(&ready), absl::FromChrono(deadline - Clock::now()));
      }
      tasks.swap(tasks_);
      wake_ = false;
    }
    for (std::function<void()>& task : tasks) {
      task();
      task = nullptr;  // frees what it holds (a received chunk) before the next one runs
    }
    if (!stopping_) {
      CheckTimersFromLoop();
      DispatchFromLoop();
    }
    if (inflight_gauge_ != nullptr) inflight_gauge_->Set(static_cast<double>(window_used()));
  }
}

Clock::time_point TeacherPool::Core::NextTimerFromLoop() const {
  Clock::time_point next = Clock::time_point::max();
  if (stopping_) return next;
  for (const auto& teacher : teachers_) {
    if (teacher->stream == nullptr && !teacher->unusable) {
      next = std::min(next, teacher->channel == nullptr ? teacher->next_attempt : Clock::now() + kDialPoll);
    }
  }
  for (const auto& [connection, stream] : streams_) {
    if (stream->teacher != nullptr && !stream->in_flight.empty()) next = std::min(next, stream->last_progress + options_.stall_timeout);
  }
  return next;
}

void TeacherPool::Core::CheckTimersFromLoop() {
  const Clock::time_point now = Clock::now();
  for (const auto& teacher : teachers_) {
    Stream* const stream = teacher->stream;
    if (teacher->unusable) continue;
    if (stream != nullptr) {
      if (stream->in_flight.empty() || now < stream->last_progress + options_.stall_timeout) continue;
      for (auto& [wire_id, in_flight] : stream->in_flight) ++in_flight.request.stalls;
      DropFromLoop(stream, absl::UnavailableError(absl::StrCat("no answer for ", options_.stall_timeout.count(), " ms while ",
                                                               stream->in_flight.size(), " requests wait")));
    } else if (teacher->channel != nullptr) {
      PollDialFromLoop(teacher.get());
    } else if (now >= teacher->next_attempt) {
      DialFromLoop(teacher.get());
    }
  }
}

// --- Connections ---

void TeacherPool::Core::DialFromLoop(Teacher* teacher) {
  // A new channel for each attempt: gRPC's own back-off inside a channel grows to minutes.
  auto channel = MakeChannel(teacher->endpoint.address, options_.security);
  if (!channel.ok()) {
    RetryLaterFromLoop(teacher, channel.status());
    return;
  }
  teacher->channel = *std::move(channel);
  teacher->dial_deadline = Clock::now() + options_.dial_timeout;
  PollDialFromLoop(teacher);
}

void TeacherPool::Core::PollDialFromLoop(Teacher* teacher) {
  const grpc_connectivity_state state = teacher->channel->GetState(/*try_to_connect=*/true);
  if (state == GRPC_CHANNEL_READY) {
    LogInfo("teacher connected", {{"teacher", teacher->endpoint.worker_id}, {"address", teacher->endpoint.address}});
    OpenStreamFromLoop(teacher);
  } else if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN || Clock::now() >= teacher->dial_deadline) {
    RetryLaterFromLoop(teacher, absl::UnavailableError("cannot connect"));
  }
}

void TeacherPool::Core::OpenStreamFromLoop(Teacher* teacher) {
  // The loop waits for each connection's last event; sharing covers the instant in which gRPC's thread returns from posting that one.
  auto connection = std::make_unique<TeacherConnection>(
      teacher->channel, teacher->endpoint.address, [core = shared_from_this()](TeacherConnection::Event event) {
        core->Post([core = core.get(), event = std::move(event)]() mutable { core->OnEventFromLoop(std::move(event)); });
      });
  auto stream = std::make_unique<Stream>();
  stream->teacher = teacher;
  stream->last_progress = Clock::now();
  stream->connection = std::move(connection);
  teacher->stream = stream.get();
  TeacherConnection* const key = stream->connection.get();
  streams_[key] = std::move(stream);
  key->Start({options_.model, options_.digest, options_.client, options_.taps, options_.exclusive_batches, /*credit_bytes=*/0});
  UpdateConnectedFromLoop();
}

// Back to idle.
void TeacherPool::Core::RetryLaterFromLoop(Teacher* teacher, const Status& why) {
  const bool was_refused = !teacher->refusal.ok();
  const bool first = teacher->backoff == options_.min_backoff;
  if (IsFault(why)) ++teacher->faults;
  if (IsRefusal(why) || teacher->faults >= kMaxFailures) {
    teacher->refusal = Annotate(why, absl::StrCat("teacher '", teacher->endpoint.worker_id, "' at ", teacher->endpoint.address));
    teacher->backoff = options_.max_backoff;
  }
  teacher->channel = nullptr;
  teacher->stream = nullptr;
  teacher->next_attempt = Clock::now() + teacher->backoff;
  teacher->backoff = std::min(teacher->backoff * 2, options_.max_backoff);
  const LogLevel level = first || was_refused != !teacher->refusal.ok() ? LogLevel::kWarning : LogLevel::kDebug;
  Log(level, "teacher not available", {{"teacher", teacher->endpoint.worker_id},
                                       {"address", teacher->endpoint.address},
                                       {"reason", why.ToString()},
                                       {"refused", !teacher->refusal.ok()}});
}

void TeacherPool::Core::DropFromLoop(Stream* stream, const Status& why) {
  Teacher* const teacher = stream->teacher;
  stream->teacher = nullptr;
  Account(-static_cast<int64_t>(stream->credit), 0);
  stream->credit = stream->committed = 0;
  std::map<uint64_t, InFlight> unanswered;
  unanswered.swap(stream->in_flight);
  stream->connection->Close(/*cancel=*/true);
  RetryLaterFromLoop(teacher, why);
  UpdateConnectedFromLoop();
  for (auto& [wire_id, in_flight] : unanswered) {
    Request& request = in_flight.request;
    if (request.callback == nullptr) continue;
    if (tap_shapes_.empty() && request.stalls >= kMaxFailures) {
      FinishFromLoop(std::move(request), absl::DeadlineExceededError(absl::StrCat(
                                             "features of step ", request.id, ": no teacher answered in ", kMaxFailures, " attempts of ",
                                             options_.stall_timeout.count(), " ms; the answer may be larger than the window of ",
                                             options_.window_bytes, " bytes (prefetch_bytes)")));
      continue;
    }
    if (resends_total_ != nullptr) resends_total_->Add();
    const uint64_t ticket = request.ticket;
    waiting_.emplace(ticket, std::move(request));
  }
  // Partly received tensors go away here, with `unanswered`.
}

// Credit cannot be taken back from a stream, only together with it: goes on with a new stream over the same channel.
// REQUIRES: nothing is in flight.
void TeacherPool::Core::RecallCreditFromLoop(Stream* stream) {
  Teacher* const teacher = std::exchange(stream->teacher, nullptr);
  Account(-static_cast<int64_t>(stream->credit), 0);
  stream->credit = stream->committed = 0;
  stream->connection->Close(/*cancel=*/true);
  OpenStreamFromLoop(teacher);
}

void TeacherPool::Core::UpdateConnectedFromLoop() {
  size_t count = 0;
  for (const auto& [connection, stream] : streams_) count += stream->teacher != nullptr && !stream->ending;
  connected_ = count;
  if (connected_gauge_ != nullptr) connected_gauge_->Set(static_cast<double>(count));
}

void TeacherPool::Core::SetTeachersFromLoop(std::vector<TeacherEndpoint> endpoints) {
  if (stopping_) return;
  std::vector<std::unique_ptr<Teacher>> before;
  before.swap(teachers_);
  for (TeacherEndpoint& endpoint : endpoints) {
    if (endpoint.model != options_.model) continue;
    auto same = [&](const std::unique_ptr<Teacher>& teacher) {
      return teacher != nullptr && teacher->endpoint.address == endpoint.address;
    };
    if (std::any_of(teachers_.begin(), teachers_.end(), same)) continue;
    const auto known = std::find_if(before.begin(), before.end(), same);
    std::unique_ptr<Teacher> teacher;
    if (known != before.end() && (*known)->endpoint.digest == endpoint.digest) {
      teacher = std::move(*known);
    } else {
      teacher = std::make_unique<Teacher>();
      teacher->next_attempt = Clock::now();
      teacher->backoff = options_.min_backoff;
      if (!options_.digest.empty() && !endpoint.digest.empty() && options_.digest != endpoint.digest) {
        teacher->unusable = true;
        teacher->refusal = absl::FailedPreconditionError(
            absl::StrCat("teacher '", endpoint.worker_id, "' at ", endpoint.address, " serves model '", endpoint.model, "' with digest ",
                         endpoint.digest, ", the job was submitted for ", options_.digest));
        LogWarning("teacher not usable", {{"reason", teacher->refusal.ToString()}});
      }
    }
    teacher->endpoint = std::move(endpoint);
    teachers_.push_back(std::move(teacher));
  }
  for (const auto& teacher : before) {
    if (teacher != nullptr && teacher->stream != nullptr) DropFromLoop(teacher->stream, absl::UnavailableError("no longer listed"));
  }
}

// --- Requests ---

std::optional<uint64_t> TeacherPool::Core::CostFromLoop(uint32_t n) const {
  if (tap_shapes_.empty()) return std::nullopt;
  unsigned __int128 cost = 0;
  for (size_t i = 0; i < tap_shapes_.size(); ++i) {
    unsigned __int128 size = static_cast<unsigned __int128>(n) * SizeOf(options_.taps[i].dtype);
    for (uint32_t side : tap_shapes_[i]) size = std::min<unsigned __int128>(size * side, UINT64_MAX);
    cost += size;
  }
  return static_cast<uint64_t>(std::min<unsigned __int128>(cost, UINT64_MAX));
}

void TeacherPool::Core::FetchFromLoop(uint64_t ticket, uint64_t id, ImageBatch images, Callback callback) {
  const Status valid = CheckImages(images);
  Request request{ticket, id, std::move(images), std::move(callback), Clock::now()};
  if (stopping_) return FinishFromLoop(std::move(request), absl::CancelledError("the teacher pool is closed"));
  if (!valid.ok()) return FinishFromLoop(std::move(request), Annotate(valid, absl::StrCat("features of step ", id)));
  waiting_.emplace(ticket, std::move(request));
}

void TeacherPool::Core::CancelFromLoop(uint64_t ticket) {
  const Status cancelled = absl::CancelledError("the request for features was cancelled");
  if (const auto it = waiting_.find(ticket); it != waiting_.end()) {
    Request request = std::move(it->second);
    waiting_.erase(it);
    return FinishFromLoop(std::move(request), cancelled);
  }
  // Already sent: the answer will be received and thrown away, so that the credit given for it stays right.
  for (auto& [connection, stream] : streams_) {
    for (auto& [wire_id, in_flight] : stream->in_flight) {
      Request& request = in_flight.request;
      if (request.ticket != ticket || request.callback == nullptr) continue;
      Request ended = request;
      request.callback = nullptr;
      return FinishFromLoop(std::move(ended), cancelled);
    }
  }
}

void TeacherPool::Core::DispatchFromLoop() {
  if (waiting_.empty()) return;
  if (!teachers_.empty() &&
      std::all_of(teachers_.begin(), teachers_.end(), [](const auto& teacher) { return !teacher->refusal.ok(); })) {
    std::map<uint64_t, Request> refused;
    refused.swap(waiting_);
    for (auto& [ticket, request] : refused) {
      Status status = Annotate(teachers_[0]->refusal,
                               absl::StrCat("features of step ", request.id, ": all ", teachers_.size(), " teachers refuse"));
      FinishFromLoop(std::move(request), std::move(status));
    }
    return;
  }
  while (!waiting_.empty()) {
    // Strictly in order: a later request never takes the window's room from an earlier one, which the consumer needs first.
    const auto head = waiting_.begin();
    const std::optional<uint64_t> known_cost = CostFromLoop(head->second.images.n);
    const uint64_t cost = known_cost.value_or(options_.window_bytes);
    if (cost > options_.window_bytes) {
      Request request = std::move(head->second);
      waiting_.erase(head);
      Status status = absl::ResourceExhaustedError(
          absl::StrCat("features of step ", request.id, " take ", cost, " bytes, more than the window of ", options_.window_bytes,
                       " bytes; raise prefetch_bytes or lower batch_size"));
      FinishFromLoop(std::move(request), std::move(status));
      continue;
    }
    const uint64_t free = options_.window_bytes - window_used();
    // A teacher that refuses, or that could not compute this very request, is asked again only when there is nobody else.
    auto open = [](const auto& teacher) { return teacher->stream != nullptr && !teacher->stream->ending; };
    auto penalty = [&](const auto& teacher) {
      return (teacher->refusal.ok() ? 0 : 2) + (teacher->endpoint.address == head->second.failed_at ? 1 : 0);
    };
    int least_penalty = 3;
    for (const auto& teacher : teachers_) {
      if (open(teacher)) least_penalty = std::min(least_penalty, penalty(teacher));
    }
    Stream* best = nullptr;
    uint64_t best_grant = 0;
    for (const auto& teacher : teachers_) {
      if (!open(teacher) || penalty(teacher) > least_penalty) continue;
      Stream* const stream = teacher->stream;
      const uint64_t grant = cost - std::min(cost, stream->credit - stream->committed);
      if (grant > free || (best != nullptr && stream->in_flight.size() >= best->in_flight.size())) continue;
      best = stream;
      best_grant = grant;
    }
    if (best == nullptr) {
      // Credit left over on an idle stream may be what is missing.
      const auto idle = std::find_if(teachers_.begin(), teachers_.end(), [&](const auto& teacher) {
        return open(teacher) && teacher->stream->in_flight.empty() && teacher->stream->credit > 0;
      });
      if (idle == teachers_.end()) return;
      RecallCreditFromLoop((*idle)->stream);
      continue;
    }
    Request request = std::move(head->second);
    waiting_.erase(head);
    SendFromLoop(best, std::move(request), cost, best_grant);
  }
}

void TeacherPool::Core::SendFromLoop(Stream* stream, Request request, uint64_t cost, uint64_t grant) {
  const uint64_t wire_id = ++last_wire_id_;
  if (stream->in_flight.empty()) stream->last_progress = Clock::now();
  stream->credit += grant;
  stream->committed += cost;
  Account(static_cast<int64_t>(grant), 0);
  if (grant > 0) stream->connection->SendCredit(grant);
  stream->connection->SendBatch(wire_id, request.images);
  InFlight in_flight;
  in_flight.cost = in_flight.due = cost;
  in_flight.assembler = std::make_unique<AnswerAssembler>(
      AnswerAssembler::Expectation{options_.taps, tap_shapes_, options_.digest, request.images.n, cost},
      [this, stream, wire_id](uint64_t size) { return AllocateFromLoop(stream, wire_id, size); });
  in_flight.request = std::move(request);
  stream->in_flight.emplace(wire_id, std::move(in_flight));
}

// The memory of a tensor takes its bytes from the teacher's credit at once, and gives them back to the window when it is freed.
FillableBuffer TeacherPool::Core::AllocateFromLoop(Stream* stream, uint64_t wire_id, uint64_t size) {
  struct Held {
    Held(std::shared_ptr<Core> held_core, uint64_t held_size, uint8_t* held_bytes)
        : core(std::move(held_core)), size(held_size), bytes(held_bytes) {}
    Held(const Held&) = delete;
    ~Held() {
      std::free(bytes);
      core->Release(size);
    }
    const std::shared_ptr<Core> core;  // shared: the tensor may outlive the pool
    const uint64_t size;
    uint8_t* const bytes;
  };
  auto* bytes = static_cast<uint8_t*>(
      std::aligned_alloc(kTensorAlignment, (size + kTensorAlignment - 1) / kTensorAlignment * kTensorAlignment));
  if (bytes == nullptr) return {};
  InFlight& in_flight = stream->in_flight.at(wire_id);
  in_flight.due -= size;
  stream->credit -= size;
  stream->committed -= size;
  Account(-static_cast<int64_t>(size), static_cast<int64_t>(size));
  return FillableBuffer{Buffer{bytes, size, std::make_shared<Held>(shared_from_this(), size, bytes)}, bytes};
}

void TeacherPool::Core::OnEventFromLoop(TeacherConnection::Event event) {
  using Kind = TeacherConnection::Event::Kind;
  const auto it = streams_.find(event.connection);
  if (it == streams_.end()) return;
  Stream* const stream = it->second.get();
  switch (event.kind) {
    case Kind::kChunk:
      OnChunkFromLoop(stream, std::move(event.chunk));
      break;
    case Kind::kReadEnd:
      stream->ending = true;
      stream->connection->Close(/*cancel=*/false);
      UpdateConnectedFromLoop();
      break;
    case Kind::kWritten:
      stream->connection->WriteNext();
      break;
    case Kind::kClosed:
      if (stream->teacher != nullptr) {
        DropFromLoop(stream, event.status.ok() ? absl::UnavailableError("the teacher ended the stream") : event.status);
      }
      streams_.erase(it);
      break;
  }
}

void TeacherPool::Core::OnChunkFromLoop(Stream* stream, StatusOr<FeatureChunk> chunk) {
  if (stream->teacher == nullptr) return;  // dropped before
  stream->last_progress = Clock::now();
  if (!chunk.ok()) return DropFromLoop(stream, absl::DataLossError(chunk.status().message()));
  const auto it = stream->in_flight.find(chunk->request_id);
  if (it == stream->in_flight.end()) {
    return DropFromLoop(stream, absl::DataLossError(absl::StrCat("answer to request ", chunk->request_id,
                                                                 ", which was not asked or is answered already")));
  }
  if (!chunk->error.empty() || chunk->error_code != 0) return OnRequestErrorFromLoop(stream, it, *chunk);
  const StatusOr<bool> complete = it->second.assembler->Add(*chunk);
  if (!complete.ok()) return DropFromLoop(stream, complete.status());
  if (bytes_total_ != nullptr) bytes_total_->Add(static_cast<double>(chunk->payload.size));
  stream->connection->ReadNext();
  if (!*complete) return;

  InFlight answered = std::move(it->second);
  stream->in_flight.erase(it);
  stream->committed -= answered.due;
  Teacher* const teacher = stream->teacher;
  teacher->backoff = options_.min_backoff;
  teacher->refusal = OkStatus();
  teacher->faults = 0;
  FeatureBatch batch = answered.assembler->Take();
  if (tap_shapes_.empty()) {
    for (const WireTensor& tensor : batch.taps) tap_shapes_.emplace_back(tensor.shape.begin() + 1, tensor.shape.end());
    RecallCreditFromLoop(stream);  // all that the answer turned out not to need
  }
  if (answered.request.callback != nullptr) FinishFromLoop(std::move(answered.request), std::move(batch));
}

void TeacherPool::Core::OnRequestErrorFromLoop(Stream* stream, std::map<uint64_t, InFlight>::iterator it, const FeatureChunk& chunk) {
  const bool known_code = chunk.error_code >= 1 && chunk.error_code <= 16;
  const Status error(known_code ? static_cast<StatusCode>(chunk.error_code) : StatusCode::kUnknown, chunk.error);
  // After a part of the answer was sent, both sides would count the rest of its credit differently: start afresh.
  const bool partial = it->second.due != it->second.cost;
  InFlight failed = std::move(it->second);
  stream->in_flight.erase(it);
  stream->committed -= failed.due;
  Request request = std::move(failed.request);
  const std::string teacher = absl::StrCat("teacher '", stream->teacher->endpoint.worker_id, "' at ", stream->teacher->endpoint.address);
  const uint64_t ticket = request.ticket;
  if (request.callback == nullptr) {
    // Cancelled meanwhile.
  } else if (IsRefusal(error)) {
    FinishFromLoop(std::move(request), Annotate(error, absl::StrCat("features of step ", request.id, ": ", teacher)));
  } else if (error.code() != StatusCode::kUnavailable && ++request.failures >= kMaxFailures) {
    FinishFromLoop(std::move(request), absl::InternalError(absl::StrCat("features of step ", request.id, " failed ", kMaxFailures,
                                                                        " times, last on ", teacher, ": ", chunk.error)));
  } else {
    LogWarning("teacher could not compute features", {{"teacher", teacher}, {"step", request.id}, {"reason", error.ToString()}});
    if (resends_total_ != nullptr) resends_total_->Add();
    request.failed_at = stream->teacher->endpoint.address;
    waiting_.emplace(ticket, std::move(request));
  }
  if (partial || error.code() == StatusCode::kUnavailable) return DropFromLoop(stream, absl::UnavailableError(error.message()));
  stream->connection->ReadNext();
}

void TeacherPool::Core::FinishFromLoop(Request request, StatusOr<FeatureBatch> result) {
  if (request.callback == nullptr) return;
  if (ok_total_ != nullptr) {
    (result.ok() ? ok_total_ : result.status().code() == StatusCode::kCancelled ? cancelled_total_ : error_total_)->Add();
    if (result.ok()) latency_->Observe(std::chrono::duration<double>(Clock::now() - request.start).count());
  }
  request.callback(std::move(result));
}

// --- The face ---

StatusOr<std::unique_ptr<TeacherPool>> TeacherPool::Create(Options options) {
  if (options.taps.empty()) return absl::InvalidArgumentError("a teacher pool needs at least one tap");
  if (!options.tap_shapes.empty() && options.tap_shapes.size() != options.taps.size()) {
    return absl::InvalidArgumentError(absl::StrCat(options.tap_shapes.size(), " tap shapes for ", options.taps.size(), " taps"));
  }
  if (options.window_bytes == 0) return absl::InvalidArgumentError("prefetch_bytes must be positive");
  auto core = std::make_shared<Core>(std::move(options));
  core->Start();
  return std::unique_ptr<TeacherPool>(new TeacherPool(std::move(core)));
}

TeacherPool::TeacherPool(std::shared_ptr<Core> core) : core_(std::move(core)) {}

TeacherPool::~TeacherPool() { core_->StopAndJoin(); }

void TeacherPool::SetTeachers(std::vector<TeacherEndpoint> teachers) {
  Core* const core = core_.get();
  core->Post([core, teachers = std::move(teachers)]() mutable { core->SetTeachersFromLoop(std::move(teachers)); });
}

uint64_t TeacherPool::Fetch(uint64_t id, ImageBatch images, Callback callback) {
  Core* const core = core_.get();
  const uint64_t ticket = core->NewTicket();
  core->Post([core, ticket, id, images = std::move(images), callback = std::move(callback)]() mutable {
    core->FetchFromLoop(ticket, id, std::move(images), std::move(callback));
  });
  return ticket;
}

void TeacherPool::Cancel(uint64_t ticket) {
  Core* const core = core_.get();
  core->Post([core, ticket] { core->CancelFromLoop(ticket); });
}

size_t TeacherPool::connected() const { return core_->connected(); }

uint64_t TeacherPool::window_used() const { return core_->window_used(); }

}  // namespace distill
