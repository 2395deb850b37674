// The teachers of a pool: which there are, how they are called, and how a stream to one ends.
#include <grpcpp/channel.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {
namespace {

// A teacher that breaks the protocol this often without a right answer in between is not asked any more.
constexpr int kMaxFaults = 3;

// A teacher's ring of shared memory is as large as this part of the window.
constexpr uint64_t kRingPart = 4;

std::string SecondsText(TeacherHealth::Duration time) {
  const double seconds = std::chrono::duration<double>(time).count();
  return StrCat(seconds < 10 ? std::round(seconds * 10) / 10 : std::round(seconds), " s");
}

}  // namespace

std::string TeacherPool::Core::Teacher::Name() const {
  return StrCat("teacher '", endpoint.worker_id, "' at ", endpoint.address);
}

void TeacherPool::Core::DialFromLoop(Teacher* teacher) {
  // A new channel for each attempt: gRPC's own back-off inside a channel grows to minutes.
  auto channel = MakeChannel(teacher->endpoint.address, options_.security);
  if (!channel.ok()) {
    LeaveFromLoop(teacher, channel.status(), Cause::kAway);
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
  } else if (state == GRPC_CHANNEL_TRANSIENT_FAILURE || state == GRPC_CHANNEL_SHUTDOWN ||
             Clock::now() >= teacher->dial_deadline) {
    LeaveFromLoop(teacher, absl::UnavailableError("cannot connect"), Cause::kAway);
  }
}

void TeacherPool::Core::OpenStreamFromLoop(Teacher* teacher) {
  // The loop waits for each connection's last event; sharing covers the instant in which gRPC's thread returns from
  // posting that one.
  auto connection = std::make_unique<TeacherConnection>(
      teacher->channel, teacher->endpoint.address,
      [core = shared_from_this()](TeacherConnection::Event event) {
        core->Post(
            [core = core.get(), event = std::move(event)]() mutable { core->OnEventFromLoop(std::move(event)); });
      },
      options_.shared_memory.folder);
  auto stream = std::make_unique<Stream>();
  stream->teacher = teacher;
  stream->working_since = Clock::now();
  stream->connection = std::move(connection);
  teacher->stream = stream.get();
  teacher->late = false;
  TeacherConnection* const key = stream->connection.get();
  streams_[key] = std::move(stream);
  key->Start({options_.model, options_.digest, options_.client, options_.taps, options_.exclusive_batches,
              /*credit_bytes=*/0,
              /*shared_memory_bytes=*/options_.shared_memory.enabled ? options_.window_bytes / kRingPart : 0});
  UpdateConnectedFromLoop();
}

// Of the memory that the teacher shares, or does not.
void TeacherPool::Core::PollJoinFromLoop(Teacher* teacher, Time now) {
  const std::optional<Status> joined = teacher->stream->connection->PollJoin(now);
  if (!joined.has_value() || std::exchange(teacher->told_way, true)) return;
  TellFromLoop(EventLevel::kInfo, joined->ok()
                                      ? StrCat(teacher->Name(), " is on this host: features come through shared memory")
                                      : StrCat(teacher->Name(),
                                               " is on this host, but features come over gRPC, because its memory "
                                               "cannot be shared: ",
                                               joined->message()));
}

// Back to idle.
void TeacherPool::Core::LeaveFromLoop(Teacher* teacher, const Status& why, Cause cause) {
  const bool was_refused = !teacher->refusal.ok();
  const bool known = teacher->last_trouble == why;
  if (cause == Cause::kWrong) ++teacher->faults;
  if (IsRefusal(why) || teacher->faults >= kMaxFaults) teacher->refusal = why;
  teacher->last_trouble = why;
  teacher->channel = nullptr;
  teacher->stream = nullptr;
  teacher->late = false;
  if (cause == Cause::kAway) {
    teacher->health.OnAway(Clock::now());
  } else {
    SetAsideFromLoop(teacher, std::string(ToStd(why.message())), cause);
  }
  const LogLevel level = !known || was_refused != !teacher->refusal.ok() ? LogLevel::kWarning : LogLevel::kDebug;
  Log(level, "teacher not available",
      {{"teacher", teacher->endpoint.worker_id},
       {"address", teacher->endpoint.address},
       {"reason", why.ToString()},
       {"refused", !teacher->refusal.ok()}});
}

void TeacherPool::Core::SetAsideFromLoop(Teacher* teacher, const std::string& why, Cause cause) {
  if (cause == Cause::kStalled) {
    teacher->health.OnStall(Clock::now());
  } else {
    teacher->health.OnWrong(Clock::now());
  }
  metrics_.SetAside(/*silent=*/cause == Cause::kStalled);
  TellFromLoop(EventLevel::kWarning, StrCat(teacher->Name(), " is set aside for ",
                                            SecondsText(teacher->health.last_rest()), " and then tried out: ", why));
}

void TeacherPool::Core::DropFromLoop(Stream* stream, const Status& why, Cause cause) {
  Teacher* const teacher = stream->teacher;
  stream->teacher = nullptr;
  window_->Recall(std::exchange(stream->credit, 0));
  stream->committed = 0;
  std::map<uint64_t, Attempt> unanswered;
  unanswered.swap(stream->in_flight);
  stream->connection->Close(/*cancel=*/true);
  LeaveFromLoop(teacher, why, cause);
  UpdateConnectedFromLoop();
  for (auto& [wire_id, attempt] : unanswered) {
    attempt.assembler.reset();  // what was received of it
    FeatureRequest* const request = FindFromLoop(attempt.ticket);
    if (request == nullptr) continue;
    --request->attempts;
    if (cause == Cause::kStalled) ++request->stalls;
    AskAgainFromLoop(request);
  }
}

// Credit cannot be taken back from a stream, only together with it: goes on with a new stream over the same channel.
// REQUIRES: nothing is in flight.
void TeacherPool::Core::RecallCreditFromLoop(Stream* stream) {
  Teacher* const teacher = std::exchange(stream->teacher, nullptr);
  window_->Recall(std::exchange(stream->credit, 0));
  stream->committed = 0;
  stream->connection->Close(/*cancel=*/true);
  OpenStreamFromLoop(teacher);
}

void TeacherPool::Core::UpdateConnectedFromLoop() {
  size_t count = 0;
  for (const auto& [connection, stream] : streams_) count += stream->teacher != nullptr && !stream->ending;
  connected_ = count;
  metrics_.Connected(count);
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
      teacher->endpoint = std::move(endpoint);
    } else {
      teacher = std::make_unique<Teacher>(std::move(endpoint), options_.health);
      const std::string& digest = teacher->endpoint.digest;
      if (!options_.digest.empty() && !digest.empty() && options_.digest != digest) {
        teacher->unusable = true;
        teacher->refusal =
            absl::FailedPreconditionError(StrCat("it serves model '", teacher->endpoint.model, "' with digest ", digest,
                                                 ", the job was submitted for ", options_.digest));
        LogWarning("teacher not usable", {{"teacher", teacher->Name()}, {"reason", teacher->refusal.ToString()}});
      }
    }
    teachers_.push_back(std::move(teacher));
  }
  for (const auto& teacher : before) {
    if (teacher != nullptr && teacher->stream != nullptr)
      DropFromLoop(teacher->stream, absl::UnavailableError("no longer listed"), Cause::kAway);
  }
}

std::string TeacherPool::Core::DescribeFromLoop(const Teacher& teacher, Time now) const {
  if (!teacher.refusal.ok()) return StrCat(teacher.Name(), " refuses: ", teacher.refusal.message());
  if (teacher.open() && !teacher.stream->in_flight.empty()) {
    return StrCat(teacher.Name(), " owes ", teacher.stream->in_flight.size(), " answers, the oldest for ",
                  SecondsText(now - teacher.stream->working_since));
  }
  if (teacher.health.on_trial() && teacher.health.Rests(now)) {
    return StrCat(teacher.Name(), " is set aside for ", SecondsText(teacher.health.resting_until() - now), " more");
  }
  if (teacher.open()) return StrCat(teacher.Name(), " is connected and owes nothing");
  return StrCat(teacher.Name(), " is not connected",
                teacher.last_trouble.ok() ? "" : StrCat(": ", teacher.last_trouble.message()));
}

}  // namespace distill
