// What comes from a pool's teachers: answers, errors, ends of streams; and what they say about who sent them.
#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {
namespace {

// Once so many answers were found to hold numbers that are none by several teachers alike, that is how the model is.
constexpr int kAgreed = 3;

}  // namespace

void TeacherPool::Core::OnEventFromLoop(TeacherConnection::Event event) {
  using Kind = TeacherConnection::Event::Kind;
  const auto it = streams_.find(event.connection);
  if (it == streams_.end()) return;
  Stream* const stream = it->second.get();
  switch (event.kind) {
    case Kind::kChunk:
      OnChunkFromLoop(stream, std::move(event));
      break;
    case Kind::kOffer:
      OnOfferFromLoop(stream, event);
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

void TeacherPool::Core::OnOfferFromLoop(Stream* stream, const TeacherConnection::Event& event) {
  if (stream->teacher == nullptr) return;  // dropped before
  if (const Status joined = stream->connection->Join(event, Clock::now()); !joined.ok()) {
    return DropFromLoop(stream, joined, Cause::kWrong);
  }
  stream->connection->Handled();
}

void TeacherPool::Core::OnChunkFromLoop(Stream* stream, TeacherConnection::Event event) {
  if (stream->teacher == nullptr) return;  // dropped before
  const Time now = Clock::now();
  StatusOr<FeatureChunk>& chunk = event.chunk;
  if (!chunk.ok()) return DropFromLoop(stream, absl::DataLossError(chunk.status().message()), Cause::kWrong);
  const auto it = stream->in_flight.find(chunk->request_id);
  if (it == stream->in_flight.end()) {
    return DropFromLoop(stream,
                        absl::DataLossError(StrCat("answer to request ", chunk->request_id,
                                                   ", which was not asked or is answered already")),
                        Cause::kWrong);
  }
  if (!chunk->error.empty() || chunk->error_code != 0) return OnErrorFromLoop(stream, it, *chunk);
  if (event.piece.has_value()) {
    StatusOr<ScatteredBuffer> bytes = stream->connection->Locate(*event.piece);
    if (!bytes.ok()) return DropFromLoop(stream, bytes.status(), Cause::kWrong);
    chunk->payload = *std::move(bytes);
  }
  const StatusOr<bool> complete = it->second.assembler->Add(*chunk);
  if (!complete.ok()) {
    FeatureRequest* const request = FindFromLoop(it->second.ticket);
    if (request != nullptr) {
      request->Note(stream->teacher->endpoint.address, stream->teacher->Name(), complete.status(), false, now);
    }
    return DropFromLoop(stream, complete.status(), Cause::kWrong);
  }
  metrics_.Received(chunk->payload.size, event.piece.has_value());
  if (event.piece.has_value()) stream->connection->Return(*event.piece);
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

}  // namespace distill
