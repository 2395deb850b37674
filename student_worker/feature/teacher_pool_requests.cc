// The requests of a pool: taken in, sent to a teacher in their order as far as the window has room, asked again, ended.
#include <algorithm>
#include <utility>

#include "common/failure_kind.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {
namespace {

// A first request, whose answer has an unknown size, is given up when it was not answered this often.
constexpr int kMaxStalls = 3;

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

}  // namespace

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

std::optional<uint64_t> TeacherPool::Core::CostFromLoop(uint32_t n) const {
  if (tap_shapes_.empty()) return std::nullopt;
  unsigned __int128 cost = 0;
  for (size_t i = 0; i < tap_shapes_.size(); ++i) {
    cost += static_cast<unsigned __int128>(n) * LayoutOf(tap_shapes_[i], options_.taps[i].encoding).bytes;
  }
  return static_cast<uint64_t>(std::min<unsigned __int128>(cost, UINT64_MAX));
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
  metrics_.Resent();
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
  if (result.ok()) EndQuietFromLoop();
  metrics_.Ended(result.status(), Clock::now() - request.start);
  request.callback(std::move(result));
}

}  // namespace distill
