#include "student_worker/feature/teacher_pool.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/failure_kind.h"
#include "common/log.h"
#include "common/rpc/channel.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// gRPC's channel tells its state when asked; it is asked this often while a connection is being made.
constexpr Milliseconds kDialPoll{5};
// A first request, whose answer has an unknown size, is given up when it was not answered this often.
constexpr int kMaxStalls = 3;
// A loop that wakes this much after its time was not run (a stopped process, a paused machine): no teacher is to blame.
constexpr std::chrono::seconds kPause{2};
// Once so many answers were found to hold numbers that are none by several teachers alike, that is how the model is.
constexpr int kAgreed = 3;

Status CheckImages(const ImageBatch& images) {
  const unsigned __int128 size = static_cast<unsigned __int128>(images.n) * images.c * (uint64_t{images.h} * images.w);
  if (size == 0 || size != images.pixels.size) {
    return absl::InvalidArgumentError(StrCat("a batch of shape [", images.n, ", ", images.c, ", ", images.h, ", ",
                                             images.w, "] came with ", images.pixels.size, " bytes of pixels"));
  }
  if (images.pixels.size > kMaxPixelBytes) {
    return absl::InvalidArgumentError(StrCat("a batch of ", images.pixels.size,
                                             " bytes of pixels does not fit a message of ", kMaxMessageBytes,
                                             " bytes; lower batch_size or use more students"));
  }
  return OkStatus();
}

int64_t SecondsOf(TeacherHealth::Duration time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time).count();
}

}  // namespace

// --- The loop ---

TeacherPool::Core::Core(Options options) : options_(std::move(options)), tap_shapes_(options_.tap_shapes) {
  if (options_.metrics == nullptr) return;
  MetricsRegistry& metrics = *options_.metrics;
  const std::string requests = "distill_student_feature_requests_total";
  const std::string requests_help = "Feature requests that ended, by result.";
  bytes_total_ =
      &metrics.GetCounter("distill_student_feature_bytes_total", "Bytes of feature maps received from teachers.");
  ok_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "ok"}});
  error_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "error"}});
  cancelled_total_ = &metrics.GetCounter(requests, requests_help, {{"result", "cancelled"}});
  resends_total_ = &metrics.GetCounter("distill_student_feature_resends_total",
                                       "Feature requests taken from a teacher unanswered and sent again.");
  seconds_total_ = &metrics.GetCounter("distill_student_feature_seconds_asked_total",
                                       "Feature requests that a second teacher was asked too, because the first was "
                                       "late or is tried out.");
  const std::string aside = "distill_student_teachers_set_aside_total";
  const std::string aside_help = "Times that a teacher was set aside for a while, by why.";
  stalls_total_ = &metrics.GetCounter(aside, aside_help, {{"reason", "silent"}});
  wrong_total_ = &metrics.GetCounter(aside, aside_help, {{"reason", "wrong"}});
  latency_ =
      &metrics.GetHistogram("distill_student_feature_latency_seconds",
                            "Time from asking for features to having all of them, waiting included.", SecondsBuckets());
  connected_gauge_ = &metrics.GetGauge("distill_student_teachers_connected", "Teachers with an open feature stream.");
  inflight_gauge_ = &metrics.GetGauge("distill_student_feature_inflight_bytes",
                                      "Bytes of feature maps granted to teachers or received and not yet released.");
}

void TeacherPool::Core::Start() {
  // Weak: a tensor that outlives the pool finds nobody to wake.
  window_ = std::make_shared<FeatureWindow>(options_.window_bytes, [weak = weak_from_this()] {
    if (const std::shared_ptr<Core> core = weak.lock()) {
      absl::MutexLock lock(&core->mu_);
      core->wake_ = true;
    }
  });
  thread_ = std::thread([this] { Run(); });
}

void TeacherPool::Core::Post(std::function<void()> task) {
  absl::MutexLock lock(&mu_);
  tasks_.push_back(std::move(task));
}

void TeacherPool::Core::StopAndJoin() {
  Post([this] {
    stopping_ = true;
    teachers_.clear();
    for (auto& [connection, stream] : streams_) {
      stream->teacher = nullptr;
      stream->in_flight.clear();
      window_->Recall(std::exchange(stream->credit, 0));
      connection->Close(/*cancel=*/true);
    }
    waiting_.clear();
    while (!requests_.empty()) {
      FinishFromLoop(requests_.begin()->first, absl::CancelledError("the teacher pool is closed"));
    }
    UpdateConnectedFromLoop();
  });
  thread_.join();
}

void TeacherPool::Core::Run() {
  pthread_setname_np(pthread_self(), "teacher-pool");
  while (true) {
    std::deque<std::function<void()>> tasks;
    const Time before = Clock::now();
    const Time deadline = std::max(before, NextTimerFromLoop(before));
    {
      absl::MutexLock lock(&mu_);
      if (stopping_ && streams_.empty() && tasks_.empty()) return;
      auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !tasks_.empty() || wake_; };
      if (deadline == Time::max()) {
        mu_.Await(absl::Condition(&ready));
      } else {
        AwaitFor(&mu_, absl::Condition(&ready), absl::FromChrono(deadline - Clock::now()));
      }
      tasks.swap(tasks_);
      wake_ = false;
    }
    if (const Time now = Clock::now(); deadline != Time::max() && now > deadline + kPause) {
      ShiftTimesFromLoop(now - deadline);
    }
    for (std::function<void()>& task : tasks) {
      task();
      task = nullptr;  // frees what it holds (a received chunk) before the next one runs
    }
    if (!stopping_) {
      const Time now = Clock::now();
      CheckTimersFromLoop(now);
      AskSecondsFromLoop(now);
      DispatchFromLoop(now);
      TryOutFromLoop(now);
      CheckQuietFromLoop(now);
    }
    if (inflight_gauge_ != nullptr) inflight_gauge_->Set(static_cast<double>(window_used()));
  }
}

TeacherPool::Core::Time TeacherPool::Core::NextTimerFromLoop(Time now) const {
  Time next = Time::max();
  if (stopping_) return next;
  // Times that have passed have had their effect; what they wait for wakes the loop by itself.
  const auto at = [&](Time time) {
    if (time > now) next = std::min(next, time);
  };
  for (const auto& teacher : teachers_) {
    if (teacher->unusable) continue;
    if (teacher->stream == nullptr) {
      next = std::min(next, teacher->channel == nullptr ? teacher->health.resting_until() : now + kDialPoll);
      continue;
    }
    at(teacher->health.resting_until());
    const Stream& stream = *teacher->stream;
    if (stream.in_flight.empty()) continue;
    const uint64_t cost = stream.in_flight.begin()->second.cost;
    const Duration late = teacher->health.LateAfter(cost, PoolUsualFromLoop(teacher.get()));
    at(stream.working_since + late);
    at(stream.working_since + 2 * late);
    next = std::min(next, stream.working_since + teacher->health.StallTimeout(cost));
  }
  for (uint64_t ticket : waiting_) {
    const FeatureRequest& request = requests_.at(ticket);
    if (request.first_said.has_value()) at(*request.first_said + options_.health.stall_timeout);
  }
  if (quiet_since_.has_value()) at(*quiet_since_ + options_.notice_after);
  return next;
}

void TeacherPool::Core::CheckTimersFromLoop(Time now) {
  for (const auto& teacher : teachers_) {
    Stream* const stream = teacher->stream;
    if (teacher->unusable) continue;
    if (stream != nullptr) {
      if (stream->in_flight.empty()) continue;
      const Duration owed = now - stream->working_since;
      if (owed < teacher->health.StallTimeout(stream->in_flight.begin()->second.cost)) continue;
      DropFromLoop(stream,
                   absl::UnavailableError(StrCat("no complete answer for ", SecondsOf(owed), " s, while it owes ",
                                                 stream->in_flight.size())),
                   Cause::kStalled);
    } else if (teacher->channel != nullptr) {
      PollDialFromLoop(teacher.get());
    } else if (!teacher->health.Rests(now)) {
      DialFromLoop(teacher.get());
    }
  }
}

// This process did not run for a while: the teachers' time did not pass either.
void TeacherPool::Core::ShiftTimesFromLoop(Duration pause) {
  LogWarning("the teacher pool was not run for a while; no teacher is blamed for it", {{"seconds", SecondsOf(pause)}});
  for (auto& [connection, stream] : streams_) stream->working_since += pause;
  for (const auto& teacher : teachers_) teacher->dial_deadline += pause;
  if (quiet_since_.has_value()) *quiet_since_ += pause;
}

// Tells people when answers are owed and none comes, and when they come again.
void TeacherPool::Core::CheckQuietFromLoop(Time now) {
  // A full window is no such case: that is the consumer's time.
  bool owed =
      !waiting_.empty() && ChooseFromLoop(requests_.at(*waiting_.begin()), now, /*trusted_only=*/false) == nullptr;
  for (const auto& [ticket, request] : requests_) owed |= request.attempts > 0;
  if (!owed) {
    if (!told_quiet_) quiet_since_.reset();
    return;
  }
  if (!quiet_since_.has_value()) quiet_since_ = now;
  if (told_quiet_ || now - *quiet_since_ < options_.notice_after) return;
  told_quiet_ = true;
  std::vector<std::string> whom;
  for (const auto& teacher : teachers_) whom.push_back(DescribeFromLoop(*teacher, now));
  TellFromLoop(EventLevel::kWarning,
               StrCat("waiting for ", requests_.begin()->second.What(), " since ", SecondsOf(now - *quiet_since_),
                      " s: ", whom.empty() ? "no teacher is listed" : absl::StrJoin(whom, "; ")));
}

void TeacherPool::Core::TellFromLoop(EventLevel level, const std::string& text) const {
  if (options_.on_event) {
    options_.on_event(level, text);
  } else {
    Log(level == EventLevel::kInfo ? LogLevel::kInfo : LogLevel::kWarning, text);
  }
}

// --- Requests, and whom they go to ---

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
  FeatureRequest& request = requests_[ticket];
  request.ticket = ticket;
  request.id = id;
  request.images = std::move(images);
  request.callback = std::move(callback);
  request.start = Clock::now();
  if (stopping_) return FinishFromLoop(ticket, absl::CancelledError("the teacher pool is closed"));
  if (!valid.ok()) return FinishFromLoop(ticket, Annotate(valid, request.What()));
  waiting_.insert(ticket);
}

void TeacherPool::Core::CancelFromLoop(uint64_t ticket) {
  if (FindFromLoop(ticket) != nullptr) {
    FinishFromLoop(ticket, absl::CancelledError("the request for features was cancelled"));
  }
}

FeatureRequest* TeacherPool::Core::FindFromLoop(uint64_t ticket) {
  const auto it = requests_.find(ticket);
  return it == requests_.end() ? nullptr : &it->second;
}

void TeacherPool::Core::DispatchFromLoop(Time now) {
  while (!waiting_.empty()) {
    // Strictly in order: a later request never takes the window's room from an earlier one, which the consumer needs
    // first.
    FeatureRequest& head = requests_.at(*waiting_.begin());
    if (FailIfNobodyIsLeftFromLoop(&head, now)) continue;
    const uint64_t cost = CostFromLoop(head.images.n).value_or(window_->bytes());
    if (cost > window_->bytes()) {
      FinishFromLoop(head.ticket,
                     WithKind(absl::ResourceExhaustedError(
                                  StrCat(head.What(), " take ", cost, " bytes, more than the window of ",
                                         window_->bytes(), " bytes; raise the job's prefetch or lower its batch_size")),
                              FailureKind::kJob));
      continue;
    }
    Teacher* const best = ChooseFromLoop(head, now, /*trusted_only=*/false);
    if (best == nullptr) return;
    if (!HasRoomFromLoop(*best->stream, cost)) {
      // Credit left over on an idle stream may be what is missing.
      const auto idle = std::find_if(teachers_.begin(), teachers_.end(), [](const auto& teacher) {
        return teacher->open() && teacher->stream->in_flight.empty() && teacher->stream->credit > 0;
      });
      if (idle == teachers_.end()) return;
      RecallCreditFromLoop((*idle)->stream);
      continue;
    }
    SendFromLoop(best->stream, &head, cost, now);
  }
}

// Ends the request with who said what when no teacher is left that might answer it.
bool TeacherPool::Core::FailIfNobodyIsLeftFromLoop(FeatureRequest* request, Time now) {
  if (teachers_.empty() || MayStillBeAnsweredFromLoop(*request, now)) return false;
  for (const auto& teacher : teachers_) {
    if (!teacher->refusal.ok() && !request->said.contains(teacher->endpoint.address)) {
      request->Note(teacher->endpoint.address, teacher->Name(), teacher->refusal, /*not_finite=*/false, now);
    }
  }
  // All that are listed have had their say: a teacher that could not be reached all the while is no hope.
  if (request->said.empty()) return false;
  FinishFromLoop(request->ticket, request->Verdict());
  return true;
}

bool TeacherPool::Core::MayStillBeAnsweredFromLoop(const FeatureRequest& request, Time now) const {
  if (request.attempts > 0) return true;
  return std::any_of(teachers_.begin(), teachers_.end(), [&](const auto& teacher) {
    if (teacher->unusable || !teacher->refusal.ok() || request.Exhausted(teacher->endpoint.address)) return false;
    // Others had time to be reached since the first one said no.
    const bool reachable = teacher->open() && !teacher->health.Rests(now);
    return reachable || !request.first_said.has_value() || now - *request.first_said < options_.health.stall_timeout;
  });
}

// The teacher to be asked next, or null: trusted before late ones, and before those on trial (one request at a time);
// those that could not compute this very request, and those that refuse everything, only when there is nobody else.
// Among equals the one with the least to do.
TeacherPool::Core::Teacher* TeacherPool::Core::ChooseFromLoop(const FeatureRequest& request, Time now,
                                                              bool trusted_only) {
  Teacher* best = nullptr;
  std::pair<int, size_t> least;
  Teacher* trial = nullptr;
  for (const auto& owned : teachers_) {
    Teacher* const teacher = owned.get();
    if (!teacher->open() || teacher->health.Rests(now) || request.Exhausted(teacher->endpoint.address)) continue;
    const bool owes_it = std::any_of(teacher->stream->in_flight.begin(), teacher->stream->in_flight.end(),
                                     [&](const auto& entry) { return entry.second.ticket == request.ticket; });
    if (owes_it) continue;
    const size_t load = teacher->stream->in_flight.size();
    const bool on_trial = teacher->health.on_trial();
    if (on_trial && load > 0) continue;
    int rank = 0;
    if (!teacher->refusal.ok()) rank += 8;
    if (request.said.contains(teacher->endpoint.address)) rank += 4;
    if (teacher->late) rank += 2;
    if (on_trial) rank += 1;
    if (trusted_only && rank > 0) continue;
    if (rank == 1) trial = teacher;
    if (best == nullptr || std::pair(rank, load) < least) {
      best = teacher;
      least = {rank, load};
    }
  }
  // A teacher on trial gets a copy of what another one was asked (TryOutFromLoop). Where the window never has room for
  // a copy, it gets the request itself: should it fail, that costs the time until it is late.
  if (trial != nullptr && best != trial && least.first == 0) {
    const uint64_t cost = CostFromLoop(request.images.n).value_or(window_->bytes());
    if (HasRoomFromLoop(*trial->stream, cost) && window_->free() < 2 * cost) return trial;
  }
  return best;
}

// Teachers on trial get a copy of the oldest request that another one works on.
void TeacherPool::Core::TryOutFromLoop(Time now) {
  if (tap_shapes_.empty()) return;
  for (const auto& teacher : teachers_) {
    if (!teacher->open() || !teacher->health.on_trial() || teacher->health.Rests(now) ||
        !teacher->stream->in_flight.empty()) {
      continue;
    }
    for (auto& [ticket, request] : requests_) {
      if (request.attempts != 1 || request.said.contains(teacher->endpoint.address)) continue;
      const uint64_t cost = *CostFromLoop(request.images.n);
      if (!HasRoomFromLoop(*teacher->stream, cost)) return;
      if (seconds_total_ != nullptr) seconds_total_->Add();
      SendFromLoop(teacher->stream, &request, cost, now);
      break;
    }
  }
}

// Looks for late teachers, and asks others for what they owe.
void TeacherPool::Core::AskSecondsFromLoop(Time now) {
  for (const auto& owned : teachers_) {
    Teacher* const teacher = owned.get();
    Stream* const stream = teacher->stream;
    if (!teacher->open() || stream->in_flight.empty()) {
      teacher->late = false;
      continue;
    }
    const Duration owed = now - stream->working_since;
    const Duration late_after =
        teacher->health.LateAfter(stream->in_flight.begin()->second.cost, PoolUsualFromLoop(teacher));
    const bool was_late = std::exchange(teacher->late, owed >= late_after);
    if (!teacher->late || tap_shapes_.empty()) continue;
    for (auto& [wire_id, attempt] : stream->in_flight) {
      FeatureRequest* const request = FindFromLoop(attempt.ticket);
      if (request == nullptr || request->attempts > 1) continue;
      Teacher* const other = ChooseFromLoop(*request, now, /*trusted_only=*/true);
      if (other == nullptr) break;
      if (!was_late || !teacher->told_late) {
        const std::string text = StrCat(teacher->Name(), " owes the ", request->What(), " for ",
                                        std::round(std::chrono::duration<double>(owed).count() * 10) / 10,
                                        " s, much longer than usual; ", other->Name(), " is asked for the same");
        if (std::exchange(teacher->told_late, true)) {
          LogInfo(text);
        } else {
          TellFromLoop(EventLevel::kWarning, text);
        }
      }
      const uint64_t cost = *CostFromLoop(request->images.n);
      if (!HasRoomFromLoop(*other->stream, cost)) {
        // No room for two answers: the late one loses its work, and with it its credit.
        if (owed >= 2 * late_after) {
          DropFromLoop(stream,
                       absl::UnavailableError(StrCat("no complete answer for ", SecondsOf(owed),
                                                     " s, and the window has no room to ask another teacher too")),
                       Cause::kStalled);
        }
        break;
      }
      if (seconds_total_ != nullptr) seconds_total_->Add();
      SendFromLoop(other->stream, request, cost, now);
    }
  }
}

bool TeacherPool::Core::HasRoomFromLoop(const Stream& stream, uint64_t cost) const {
  return cost - std::min(cost, stream.credit - stream.committed) <= window_->free();
}

// REQUIRES: HasRoom.
void TeacherPool::Core::SendFromLoop(Stream* stream, FeatureRequest* request, uint64_t cost, Time now) {
  const uint64_t grant = cost - std::min(cost, stream->credit - stream->committed);
  const uint64_t wire_id = ++last_wire_id_;
  if (stream->in_flight.empty()) stream->working_since = now;
  stream->credit += grant;
  stream->committed += cost;
  window_->Grant(grant);
  if (grant > 0) stream->connection->SendCredit(grant);
  stream->connection->SendBatch(wire_id, request->images);
  Attempt attempt;
  attempt.ticket = request->ticket;
  attempt.cost = attempt.due = cost;
  attempt.assembler = std::make_unique<AnswerAssembler>(
      AnswerAssembler::Expectation{options_.taps, tap_shapes_, options_.digest, request->images.n, cost},
      [this, stream, wire_id](uint64_t size) { return AllocateFromLoop(stream, wire_id, size); });
  stream->in_flight.emplace(wire_id, std::move(attempt));
  ++request->attempts;
  waiting_.erase(request->ticket);
}

// Mean of the usual times of those that have answered.
std::optional<TeacherPool::Core::Duration> TeacherPool::Core::PoolUsualFromLoop(const Teacher* except) const {
  Duration sum{};
  int count = 0;
  for (const auto& teacher : teachers_) {
    if (teacher.get() == except || !teacher->health.usual().has_value()) continue;
    sum += *teacher->health.usual();
    ++count;
  }
  return count == 0 ? std::nullopt : std::optional(sum / count);
}

// The memory of a tensor takes its bytes from the teacher's credit at once, and gives them back to the window when it
// is freed.
FillableBuffer TeacherPool::Core::AllocateFromLoop(Stream* stream, uint64_t wire_id, uint64_t size) {
  FillableBuffer memory = window_->Receive(size);
  if (memory.bytes == nullptr) return memory;
  stream->in_flight.at(wire_id).due -= size;
  stream->credit -= size;
  stream->committed -= size;
  return memory;
}

// --- Answers ---

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
        const Status why = event.status.ok() ? absl::UnavailableError("the teacher ended the stream") : event.status;
        const bool faulty = why.code() == StatusCode::kDataLoss || why.code() == StatusCode::kInternal ||
                            why.code() == StatusCode::kResourceExhausted;
        DropFromLoop(stream, why, faulty ? Cause::kWrong : Cause::kAway);
      }
      streams_.erase(it);
      break;
  }
}

void TeacherPool::Core::OnChunkFromLoop(Stream* stream, StatusOr<FeatureChunk> chunk) {
  if (stream->teacher == nullptr) return;  // dropped before
  const Time now = Clock::now();
  if (!chunk.ok()) return DropFromLoop(stream, absl::DataLossError(chunk.status().message()), Cause::kWrong);
  const auto it = stream->in_flight.find(chunk->request_id);
  if (it == stream->in_flight.end()) {
    return DropFromLoop(stream,
                        absl::DataLossError(StrCat("answer to request ", chunk->request_id,
                                                   ", which was not asked or is answered already")),
                        Cause::kWrong);
  }
  if (!chunk->error.empty() || chunk->error_code != 0) return OnErrorFromLoop(stream, it, *chunk);
  const StatusOr<bool> complete = it->second.assembler->Add(*chunk);
  if (!complete.ok()) {
    FeatureRequest* const request = FindFromLoop(it->second.ticket);
    if (request != nullptr) {
      request->Note(stream->teacher->endpoint.address, stream->teacher->Name(), complete.status(), false, now);
    }
    return DropFromLoop(stream, complete.status(), Cause::kWrong);
  }
  if (bytes_total_ != nullptr) bytes_total_->Add(static_cast<double>(chunk->payload.size));
  stream->connection->Handled();
  if (!*complete) return;
  Attempt answered = std::move(it->second);
  stream->in_flight.erase(it);
  stream->committed -= answered.due;
  OnAnswerFromLoop(stream, std::move(answered), now);
}

// A whole answer that keeps to the protocol.
void TeacherPool::Core::OnAnswerFromLoop(Stream* stream, Attempt attempt, Time now) {
  Teacher* const teacher = stream->teacher;
  const Duration took = now - std::exchange(stream->working_since, now);
  teacher->refusal = OkStatus();
  teacher->faults = 0;
  const std::string* const bad_tap = attempt.assembler->not_finite_tap();
  FeatureBatch batch = attempt.assembler->Take();
  if (tap_shapes_.empty()) {
    for (const WireTensor& tensor : batch.taps) tap_shapes_.emplace_back(tensor.shape.begin() + 1, tensor.shape.end());
    RecallCreditFromLoop(stream);  // all that the answer turned out not to need
  }
  FeatureRequest* const request = FindFromLoop(attempt.ticket);
  if (request != nullptr) --request->attempts;
  if (bad_tap != nullptr && agreed_not_finite_ < kAgreed) {
    teacher->health.OnAlive(took);
    if (request == nullptr) {
      if (teacher->health.on_trial()) {
        SetAsideFromLoop(teacher, StrCat("tap '", *bad_tap, "' holds NaN or infinite numbers again"), Cause::kWrong);
      }
      return;
    }
    request->Note(teacher->endpoint.address, teacher->Name(),
                  absl::DataLossError(StrCat("tap '", *bad_tap, "' holds NaN or infinite numbers")), true, now);
    if (MayStillBeAnsweredFromLoop(*request, now)) {
      LogWarning("features hold numbers that are none; another teacher is asked",
                 {{"teacher", teacher->Name()}, {"step", request->id}, {"tap", *bad_tap}});
      return AskAgainFromLoop(request);
    }
    // Nobody says otherwise: it is the model, and the trainer's to judge.
    const auto alike = std::count_if(request->said.begin(), request->said.end(),
                                     [](const auto& entry) { return entry.second.not_finite; });
    if (alike > 1 && ++agreed_not_finite_ == kAgreed) {
      TellFromLoop(EventLevel::kWarning,
                   StrCat("all teachers that were asked give NaN or infinite numbers in tap '", *bad_tap,
                          "' alike; it is the model's doing (or float16's range), and they are taken as they are"));
    }
    return FinishFromLoop(attempt.ticket, std::move(batch));
  }
  if (teacher->health.OnAnswer(took)) {
    TellFromLoop(EventLevel::kInfo, StrCat(teacher->Name(), " answers again, and gets work as before"));
  }
  if (request == nullptr) return;
  // Those whose numbers were none are contradicted by this answer.
  if (bad_tap == nullptr) {
    for (const auto& [address, said] : request->said) {
      if (!said.not_finite) continue;
      for (const auto& other : teachers_) {
        if (other.get() == teacher || other->endpoint.address != address || other->health.Rests(now)) continue;
        other->last_trouble = said.status;
        SetAsideFromLoop(
            other.get(),
            StrCat("for step ", request->id, " ", said.status.message(), ", those of ", teacher->Name(), " do not"),
            Cause::kWrong);
      }
    }
  }
  FinishFromLoop(attempt.ticket, std::move(batch));
}

void TeacherPool::Core::OnErrorFromLoop(Stream* stream, std::map<uint64_t, Attempt>::iterator it,
                                        const FeatureChunk& chunk) {
  const bool known_code = chunk.error_code >= 1 && chunk.error_code <= 16;
  const Status error(known_code ? static_cast<StatusCode>(chunk.error_code) : StatusCode::kUnknown, chunk.error);
  const Time now = Clock::now();
  const Duration took = now - std::exchange(stream->working_since, now);
  Teacher* const teacher = stream->teacher;
  // Memory was taken for whole tensors, of which a part came: the teacher may still send the rest of that credit.
  const uint64_t unsent = it->second.cost - it->second.due - it->second.assembler->received();
  const uint64_t ticket = it->second.ticket;
  stream->committed -= it->second.due;
  stream->in_flight.erase(it);
  window_->Unreceive(unsent);
  stream->credit += unsent;
  FeatureRequest* const request = FindFromLoop(ticket);
  if (request == nullptr) {
    // It was cancelled, as a rule. How long it was at it is worth knowing where that is longer than usual.
    if (error.code() != StatusCode::kCancelled && error.code() != StatusCode::kUnavailable) {
      SetAsideFromLoop(teacher, StrCat("it could not compute features: ", error.ToString()), Cause::kWrong);
    } else if (!teacher->health.usual().has_value() || took > *teacher->health.usual())
      teacher->health.OnAlive(took);
    stream->connection->Handled();
    return;
  }
  --request->attempts;
  if (error.code() == StatusCode::kUnavailable || error.code() == StatusCode::kCancelled) {
    AskAgainFromLoop(request);
    return DropFromLoop(stream, absl::UnavailableError(error.message()), Cause::kAway);
  }
  LogWarning("teacher could not compute features",
             {{"teacher", teacher->Name()}, {"step", request->id}, {"reason", error.ToString()}});
  request->Note(teacher->endpoint.address, teacher->Name(), error, /*not_finite=*/false, now);
  teacher->last_trouble = error;
  SetAsideFromLoop(teacher, StrCat("it could not compute the ", request->What(), ": ", error.ToString()),
                   Cause::kWrong);
  AskAgainFromLoop(request);
  stream->connection->Handled();
}

// After a teacher did not answer it rightly.
void TeacherPool::Core::AskAgainFromLoop(FeatureRequest* request) {
  if (request->attempts > 0) return;  // another one is at it
  if (tap_shapes_.empty() && request->stalls >= kMaxStalls) {
    return FinishFromLoop(
        request->ticket, absl::DeadlineExceededError(StrCat(
                             request->What(), ": no teacher answered in ", kMaxStalls, " attempts, the first of ",
                             options_.health.stall_timeout.count(), " ms; the answer may be larger than the window of ",
                             options_.window_bytes, " bytes (the job's prefetch)")));
  }
  if (resends_total_ != nullptr) resends_total_->Add();
  waiting_.insert(request->ticket);
}

void TeacherPool::Core::FinishFromLoop(uint64_t ticket, StatusOr<FeatureBatch> result) {
  const auto it = requests_.find(ticket);
  const FeatureRequest request = std::move(it->second);
  requests_.erase(it);
  waiting_.erase(ticket);
  if (request.attempts > 0) {
    // Answers on their way are received and thrown away, so that the credit given for them stays right. That of a
    // teacher on trial is wanted for its own sake.
    for (auto& [connection, stream] : streams_) {
      if (stream->teacher == nullptr || stream->teacher->health.on_trial()) continue;
      for (auto& [wire_id, attempt] : stream->in_flight) {
        if (attempt.ticket == ticket) connection->SendCancel(wire_id);
      }
    }
  }
  if (result.ok()) {
    if (std::exchange(told_quiet_, false)) {
      TellFromLoop(EventLevel::kInfo,
                   StrCat("features come again, after ", SecondsOf(Clock::now() - *quiet_since_), " s"));
    }
    quiet_since_.reset();
  }
  if (ok_total_ != nullptr) {
    (result.ok()                                        ? ok_total_
     : result.status().code() == StatusCode::kCancelled ? cancelled_total_
                                                        : error_total_)
        ->Add();
    if (result.ok()) latency_->Observe(std::chrono::duration<double>(Clock::now() - request.start).count());
  }
  request.callback(std::move(result));
}

// --- The face ---

StatusOr<std::unique_ptr<TeacherPool>> TeacherPool::Create(Options options) {
  if (options.taps.empty()) return absl::InvalidArgumentError("a teacher pool needs at least one tap");
  if (!options.tap_shapes.empty() && options.tap_shapes.size() != options.taps.size()) {
    return absl::InvalidArgumentError(
        StrCat(options.tap_shapes.size(), " tap shapes for ", options.taps.size(), " taps"));
  }
  if (options.window_bytes == 0) return absl::InvalidArgumentError("prefetch must be positive");
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
