#include "teacher_server/stream_core.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "common/log.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/copy_count.h"
#include "teacher_server/memory_budget.h"
#include "teacher_server/stream_limits.h"
#include "teacher_server/stream_set.h"

namespace distill {
namespace {

// What a message of a whole answer takes at least, in bytes a second, if its client reads it.
constexpr uint64_t kSlowestReader = 10'000'000;

Status Draining() { return absl::UnavailableError("this teacher is shutting down; send the batch to another one"); }

}  // namespace

void StreamCore::Open(const StreamOpen& open) {
  if (Takes(/*is_open=*/true)) Proceed(TakeOpen(open));
}

void StreamCore::Batch(uint64_t request_id, const std::vector<uint32_t>& shape, Buffer pixels) {
  if (Takes(/*is_open=*/false)) Proceed(TakeBatch(request_id, shape, std::move(pixels)));
}

void StreamCore::Grant(uint64_t credit_bytes) {
  if (!Takes(/*is_open=*/false)) return;
  {
    absl::MutexLock lock(&mutex_);
    AddCreditLocked(credit_bytes);
  }
  Pump();
}

void StreamCore::Cancel(uint64_t request_id) {
  if (!Takes(/*is_open=*/false)) return;
  TakeCancel(request_id);
  Pump();
}

void StreamCore::RingMapped(bool mapped) {
  if (Takes(/*is_open=*/false)) Proceed(TakeMapped(mapped));
}

void StreamCore::RingReturned(uint64_t bytes) {
  if (Takes(/*is_open=*/false)) Proceed(TakeReturned(bytes));
}

void StreamCore::NothingSaid() {
  if (!Takes(/*is_open=*/false)) return;
  End(
      absl::InvalidArgumentError("a message needs one of open, batch, credit_bytes, cancel_request_id, "
                                 "shared_memory_mapped, shared_memory_returned"));
}

void StreamCore::ClientIsDone() {
  {
    absl::MutexLock lock(&mutex_);
    client_is_done_ = true;
  }
  Pump();
}

void StreamCore::Sent() {
  {
    absl::MutexLock lock(&mutex_);
    sending_ = false;
    taken_at_ = Clock::now();
    if (whole_bytes_ > 0) CountUnsentLocked(-static_cast<int64_t>(std::exchange(whole_bytes_, 0)));
  }
  Pump();
}

bool StreamCore::finished() {
  absl::MutexLock lock(&mutex_);
  return finished_;
}

void StreamCore::EndUnlessOpened(Clock::time_point before) {
  {
    absl::MutexLock lock(&mutex_);
    if (opened_ || created_ >= before) return;
  }
  End(absl::DeadlineExceededError("no `open` came in time"));
}

std::optional<StreamCore::Clock::time_point> StreamCore::holding_since() {
  absl::MutexLock lock(&mutex_);
  if (end_status_) return std::nullopt;
  // Of a message of a gigabyte nothing is seen to be taken until all of it is.
  if (whole_bytes_ > 0) return taken_at_ + std::chrono::milliseconds(whole_bytes_ * 1000 / kSlowestReader);
  if (answers_.empty() && (waiting_.empty() || CoveredLocked(waiting_.front()))) return std::nullopt;
  return taken_at_;
}

void StreamCore::EndForOthers() {
  End(absl::UnavailableError(
      "this client takes none of its features, and others wait for the memory they need; open a new stream when it can "
      "read and grant credit"));
}

bool StreamCore::Takes(bool is_open) {
  bool opened;
  {
    absl::MutexLock lock(&mutex_);
    if (end_status_) return false;
    opened = opened_;
  }
  if (opened != is_open) return true;
  End(absl::InvalidArgumentError(is_open ? "`open` came twice on one stream; it is the first message only"
                                         : "the first message on a stream must be `open`"));
  return false;
}

void StreamCore::Proceed(const Status& status) {
  if (status.ok()) {
    Pump();
  } else {
    End(status);
  }
}

Status StreamCore::TakeOpen(const StreamOpen& open) {
  DISTILL_ASSIGN_OR_RETURN(OpenedModel opened, FindModel(open, engine_->models()));
  if (kind_.logged) {
    LogInfo("stream opened", {{"client", open.client},
                              {"peer", peer_},
                              {"model", open.model},
                              {"taps", opened.taps->size()},
                              {"exclusive", open.exclusive_batches}});
  }
  std::unique_ptr<StreamRing> ring;
  if (set_->rings() != nullptr && WantsRing(open, set_->boot_id())) {
    StatusOr<std::unique_ptr<StreamRing>> made = StreamRing::Create(set_->rings(), &set_->budget(), open);
    if (made.ok()) {
      ring = *std::move(made);
    } else {
      LogInfo("a stream of this host goes without shared memory",
              {{"client", open.client}, {"reason", made.status().message()}});
    }
  }
  absl::MutexLock lock(&mutex_);
  opened_ = true;
  client_ = open.client;
  opened_model_ = std::move(opened);
  exclusive_ = open.exclusive_batches;
  ring_ = std::move(ring);
  offer_unsent_ = ring_ != nullptr;
  AddCreditLocked(open.credit_bytes);
  return OkStatus();
}

Status StreamCore::TakeBatch(uint64_t request_id, const std::vector<uint32_t>& shape, Buffer pixels) {
  absl::MutexLock lock(&mutex_);
  if (unanswered_.count(request_id) > 0) {
    return absl::InvalidArgumentError(
        StrCat("request id ", request_id, " is still unanswered; ids must be unique on a stream"));
  }
  if (Status refused = CheckBatchLocked(shape, pixels); !refused.ok()) {
    FailLocked(request_id, std::move(refused));
    // Errors need no credit, but a client that never reads must not make them pile up.
    if (failures_.size() > 4 * set_->limits().max_unanswered + 1024) {
      return absl::ResourceExhaustedError(
          StrCat(failures_.size(), " error responses wait to be read; the client does not read its stream"));
    }
    return OkStatus();
  }
  const uint64_t answer_bytes = shape[0] * opened_model_.image_answer_bytes;
  if (unanswered_.empty()) taken_at_ = Clock::now();
  unanswered_[request_id].pixel_bytes = pixels.size;
  waiting_bytes_ += pixels.size;
  waiting_.push_back({request_id, ImageBatch{shape[0], shape[1], shape[2], shape[3], std::move(pixels)}, answer_bytes});
  return OkStatus();
}

Status StreamCore::CheckBatchLocked(const std::vector<uint32_t>& shape, const Buffer& pixels) {
  if (set_->draining()) return Draining();
  const StreamLimits& limits = set_->limits();
  const ModelSpec& spec = Model().served.spec;
  if (shape.size() != 4) {
    return absl::InvalidArgumentError(
        StrCat("a batch shape of ", shape.size(), " axes; it must have four: N, C, H, W"));
  }
  const std::string text = ShapeText(shape);
  if (shape[0] < 1 || shape[0] > kMaxBatchImages) {
    return absl::InvalidArgumentError(StrCat("batch shape ", text, ": N must be in 1..", kMaxBatchImages));
  }
  if (shape[1] != spec.in_channels || shape[2] != spec.image_height || shape[3] != spec.image_width) {
    return absl::InvalidArgumentError(StrCat("batch shape ", text, ": model '", Model().served.name,
                                             "' takes images of C, H, W = ", spec.in_channels, ", ", spec.image_height,
                                             ", ", spec.image_width));
  }
  // No overflow: N is small, and C, H, W are the model's own.
  const uint64_t bytes = uint64_t{shape[0]} * spec.in_channels * spec.image_height * spec.image_width;
  if (pixels.size != bytes) {
    return absl::InvalidArgumentError(
        StrCat("batch shape ", text, " needs a payload of ", bytes, " bytes, got ", pixels.size));
  }
  if (unanswered_.size() >= limits.max_unanswered) {
    return absl::ResourceExhaustedError(
        StrCat(unanswered_.size(), " batches are unanswered on this stream, the most allowed; wait for answers"));
  }
  if (waiting_bytes_ + bytes > limits.max_waiting_bytes && waiting_bytes_ > 0) {
    return absl::ResourceExhaustedError(StrCat(waiting_bytes_, " bytes of pixels are unanswered on this stream; ",
                                               bytes, " more exceed the limit of ", limits.max_waiting_bytes,
                                               "; wait for answers"));
  }
  const uint64_t most = kind_.max_answer_bytes > 0 ? kind_.max_answer_bytes : limits.max_answer_bytes;
  if (const uint64_t answer = shape[0] * opened_model_.image_answer_bytes; answer > most) {
    return absl::ResourceExhaustedError(StrCat("the answer to ", shape[0], " images would have ", answer,
                                               " bytes, the limit is ", most, "; send smaller batches"));
  }
  if (!set_->budget().TakePixels(bytes, Clock::now())) {
    return absl::UnavailableError(StrCat("the memory for pixels and features of all streams together, ",
                                         set_->budget().bytes(),
                                         " bytes, is full; take another teacher, or wait "
                                         "for answers"));
  }
  return OkStatus();
}

void StreamCore::TakeCancel(uint64_t request_id) {
  bool in_engine = false;
  {
    absl::MutexLock lock(&mutex_);
    auto entry = unanswered_.find(request_id);
    if (entry == unanswered_.end() || entry->second.cancelled) return;
    const size_t queued = std::erase_if(to_submit_, [&](const TeacherRequest& r) { return r.tag == request_id; });
    if (entry->second.submitted && queued == 0) {
      entry->second.cancelled = true;  // ends when the engine's callback comes
      in_engine = true;
    } else {
      std::erase_if(waiting_, [&](const Waiting& w) { return w.request_id == request_id; });
      std::erase_if(answers_, [&](const Answer& a) { return a.request_id == request_id; });
      EndRequestLocked(request_id, absl::CancelledError("cancelled by the client"));
    }
  }
  // It may be on its way into the engine just now; SubmitAll() asks again then.
  if (in_engine) engine_->Cancel(id_, request_id);
}

Status StreamCore::TakeMapped(bool mapped) {
  absl::MutexLock lock(&mutex_);
  if (ring_ == nullptr || offer_unsent_ || ring_->mapped()) {
    return absl::InvalidArgumentError("`shared_memory_mapped` came without an offer, or once too often");
  }
  LogInfo(mapped ? "features go through shared memory"
                 : "the client cannot have shared memory; its features go as to others",
          {{"client", client_}, {"peer", peer_}, {"ring_bytes", ring_->offer().bytes}});
  if (mapped) {
    ring_->SetMapped();
    set_->shared_streams().Add(1);
  } else {
    DropRingLocked();
  }
  return OkStatus();
}

Status StreamCore::TakeReturned(uint64_t bytes) {
  absl::MutexLock lock(&mutex_);
  if (ring_ == nullptr || !ring_->mapped() || !ring_->writer()->Return(bytes)) {
    return absl::InvalidArgumentError(
        StrCat("`shared_memory_returned` of ", bytes, " bytes, which are more than there were to return"));
  }
  taken_at_ = Clock::now();
  return OkStatus();
}

void StreamCore::OnAnswer(uint64_t request_id, StatusOr<FeatureBatch> answer) {
  {
    absl::MutexLock lock(&mutex_);
    auto entry = unanswered_.find(request_id);
    if (end_status_ || entry == unanswered_.end()) {
      // The stream is over; only the count of how requests ended is left to do.
      if (entry != unanswered_.end()) EndRequestLocked(request_id, absl::CancelledError("the stream ended"));
    } else if (entry->second.cancelled) {
      EndRequestLocked(request_id, absl::CancelledError("cancelled by the client"));
    } else if (!answer.ok()) {
      EndRequestLocked(request_id, answer.status());
    } else {
      entry->second.submitted = false;
      uint64_t bytes = 0;
      for (const WireTensor& tensor : answer->taps) bytes += tensor.bytes.size;
      if (answers_.empty()) taken_at_ = Clock::now();
      CountUnsentLocked(static_cast<int64_t>(bytes) - static_cast<int64_t>(entry->second.reserved));
      entry->second.reserved = bytes;
      answers_.push_back({request_id, *std::move(answer)});
    }
  }
  Pump();
}

void StreamCore::End(Status status) {
  bool first = false, break_off = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!end_status_) {
      first = true;
      end_status_ = std::move(status);
      AbandonLocked();
      break_off = breaking_off_ = sending_;
    }
  }
  if (break_off) {
    transport_->BreakOff();
    absl::MutexLock lock(&mutex_);
    breaking_off_ = false;
  }
  // Only the opener of the stream has anything in the engine; its callbacks come back here at once.
  if (first && engine_ != nullptr) engine_->CancelClient(id_);
  Pump();
}

void StreamCore::Pump() {
  bool submit = false;
  std::optional<StreamMessage> message;
  bool abandon = false;
  bool freed = false;
  std::optional<Status> finish;
  std::string client;
  Filling filling;
  {
    absl::MutexLock lock(&mutex_);
    if (!finished_) {
      if (!end_status_) AdmitLocked();
      if (!sending_) {
        if (!end_status_) {
          message = NextMessageLocked();
          abandon = end_status_.has_value();
          filling = std::exchange(filling_, {});
        }
        if (end_status_ && !breaking_off_) {
          finish = end_status_;
          client = client_;
          finished_ = true;
          DropRingLocked();
        }
        sending_ = message.has_value();
      }
      submit = !to_submit_.empty() && !submitting_;
      if (submit) submitting_ = true;
    }
    freed = std::exchange(freed_, false);
  }
  if (submit) SubmitAll();
  if (filling.ring != nullptr) {
    CountFeatureCopy(filling.bytes.size);
    filling.ring->Fill(*message->piece, filling.bytes.data);
    filling = {};  // the answer's memory may go
  }
  if (message) transport_->Send(*std::move(message));
  if (abandon && engine_ != nullptr) engine_->CancelClient(id_);
  if (finish) {
    if (kind_.logged) {
      LogInfo("stream closed", {{"client", client},
                                {"peer", peer_},
                                {"code", absl::StatusCodeToString(finish->code())},
                                {"reason", finish->message()}});
    }
    transport_->Finish(*finish);
  }
  if (freed) set_->Freed();
}

void StreamCore::AdmitLocked() {
  while (!waiting_.empty()) {
    Waiting& next = waiting_.front();
    if (unsent_bytes_ > 0 && unsent_bytes_ + next.answer_bytes > set_->limits().max_unsent_bytes) break;
    if (!set_->budget().TakeFeatures(id_, next.answer_bytes, CoveredLocked(next), Clock::now())) {
      in_row_ = true;  // its turn comes with a Poke()
      return;
    }
    in_row_ = false;
    freed_ = true;  // the next in the row may fit as well
    Unanswered& request = unanswered_[next.request_id];
    request.submitted = true;
    request.reserved = next.answer_bytes;
    unsent_bytes_ += next.answer_bytes;
    TeacherRequest out;
    out.model = opened_model_.model;
    out.client = id_;
    out.tag = next.request_id;
    out.taps = opened_model_.taps;
    out.images = std::move(next.images);
    out.exclusive = exclusive_;
    to_submit_.push_back(std::move(out));
    waiting_.pop_front();
  }
  // Nothing that it could use its turn for.
  if (std::exchange(in_row_, false)) {
    set_->budget().Forget(id_);
    freed_ = true;
  }
}

bool StreamCore::CoveredLocked(const Waiting& next) const {
  return credit_ >= next.answer_bytes && credit_ - next.answer_bytes >= unsent_bytes_;
}

void StreamCore::SubmitAll() {
  while (true) {
    std::optional<TeacherRequest> next;
    {
      absl::MutexLock lock(&mutex_);
      if (to_submit_.empty()) {
        submitting_ = false;
        return;
      }
      next = std::move(to_submit_.front());
      to_submit_.pop_front();
    }
    const uint64_t id = next->tag;
    // The callback holds the stream: it may come after the transport is gone.
    engine_->Submit(*std::move(next), [self = shared_from_this(), id](StatusOr<FeatureBatch> answer) {
      self->OnAnswer(id, std::move(answer));
    });
    bool cancelled = false, ended = false;
    {
      absl::MutexLock lock(&mutex_);
      ended = end_status_.has_value();
      const auto entry = unanswered_.find(id);
      cancelled = entry != unanswered_.end() && entry->second.cancelled;
    }
    if (ended) {
      engine_->CancelClient(id_);
    } else if (cancelled) {
      engine_->Cancel(id_, id);
    }
  }
}

std::optional<StreamMessage> StreamCore::NextMessageLocked() {
  if (!failures_.empty()) {
    StreamMessage message;
    message.request_id = failures_.front().request_id;
    message.error = std::move(failures_.front().status);
    failures_.pop_front();
    return message;
  }
  if (std::exchange(offer_unsent_, false)) {
    StreamMessage message;
    message.offer = ring_->offer();
    return message;
  }
  if (answers_.empty()) {
    if (unanswered_.empty()) {
      if (client_is_done_) {
        end_status_ = OkStatus();
      } else if (set_->draining()) {
        end_status_ = Draining();
      }
    }
    return std::nullopt;
  }
  if (kind_.whole_answers) return WholeAnswerLocked();
  Answer& answer = answers_.front();
  const WireTensor& tensor = answer.batch.taps[answer.tap];
  const uint64_t left = tensor.bytes.size - answer.offset;
  if (left > 0 && credit_ == 0) {
    if (client_is_done_) {
      end_status_ =
          absl::FailedPreconditionError(StrCat(unsent_bytes_,
                                               " bytes of features are unsent, the credit is used up, and the client "
                                               "has closed its side or gone away, so it can grant no more"));
      AbandonLocked();
    } else if (!credit_wait_since_) {
      credit_wait_since_ = Clock::now();
    }
    return std::nullopt;
  }
  StopCreditClockLocked();
  const std::optional<uint64_t> next_size = NextSizeLocked(left);
  if (!next_size.has_value()) return std::nullopt;
  const uint64_t size = *next_size;
  StreamMessage message;
  message.request_id = answer.request_id;
  message.tap_index = static_cast<uint32_t>(answer.tap);
  message.shape = tensor.shape;
  message.dtype = tensor.encoding.dtype;
  message.layout = tensor.layout;
  message.total_bytes = tensor.bytes.size;
  message.offset = answer.offset;
  if (answer.offset == 0) message.model_digest = answer.batch.model_digest;
  message.payload = Buffer{tensor.bytes.data + answer.offset, size, tensor.bytes.owner};
  if (size > 0 && UsesRingLocked()) {
    message.piece = ring_->writer()->Take(size);
    filling_ = {ring_->writer(), std::exchange(message.payload, {})};
    set_->shared_bytes().Add(size);
  }
  credit_ -= size;
  CountUnsentLocked(-static_cast<int64_t>(size));
  unanswered_[answer.request_id].reserved -= size;
  set_->sent_bytes().Add(size);
  answer.offset += size;
  if (size == left) {
    answer.offset = 0;
    if (++answer.tap == answer.batch.taps.size()) {
      message.last = true;
      message.queue_seconds = answer.batch.queue_seconds;
      message.compute_seconds = answer.batch.compute_seconds;
      EndRequestLocked(answer.request_id, OkStatus());
      answers_.pop_front();
    }
  }
  return message;
}

// A client that is done can return nothing any more: it gets the rest in messages.
bool StreamCore::UsesRingLocked() const { return ring_ != nullptr && ring_->mapped() && !client_is_done_; }

std::optional<uint64_t> StreamCore::NextSizeLocked(uint64_t left) const {
  const uint64_t wanted = std::min(left, credit_);
  if (wanted == 0 || !UsesRingLocked()) return std::min(wanted, kChunkBytes);
  const uint64_t room = ring_->writer()->room();
  if (room == 0) return std::nullopt;
  return std::min({wanted, room, ring_->piece_bytes()});
}

void StreamCore::DropRingLocked() {
  if (ring_ == nullptr) return;
  if (ring_->mapped()) set_->shared_streams().Add(-1);
  ring_.reset();
  offer_unsent_ = false;
  freed_ = true;
}

StreamMessage StreamCore::WholeAnswerLocked() {
  Answer& answer = answers_.front();
  StreamMessage message;
  message.request_id = answer.request_id;
  message.whole = std::move(answer.batch);
  // Stays on the books; the request leaves them.
  whole_bytes_ = std::exchange(unanswered_[answer.request_id].reserved, 0);
  set_->sent_bytes().Add(whole_bytes_);
  taken_at_ = Clock::now();
  EndRequestLocked(answer.request_id, OkStatus());
  answers_.pop_front();
  return message;
}

void StreamCore::AbandonLocked() {
  set_->budget().Forget(id_);
  in_row_ = false;
  freed_ = true;
  DropRingLocked();
  for (const TeacherRequest& request : to_submit_) unanswered_[request.tag].submitted = false;
  to_submit_.clear();
  waiting_.clear();
  answers_.clear();
  std::vector<uint64_t> over;
  for (const auto& [id, request] : unanswered_) {
    if (!request.submitted) over.push_back(id);
  }
  for (uint64_t id : over) EndRequestLocked(id, absl::CancelledError("the stream ended"));
  failures_.clear();
  StopCreditClockLocked();
}

void StreamCore::EndRequestLocked(uint64_t request_id, Status status) {
  auto entry = unanswered_.find(request_id);
  waiting_bytes_ -= entry->second.pixel_bytes;
  set_->budget().GivePixels(entry->second.pixel_bytes);
  freed_ = true;
  CountUnsentLocked(-static_cast<int64_t>(entry->second.reserved));
  unanswered_.erase(entry);
  if (status.ok()) {
    set_->CountRequest(Model().served.name, status);
  } else {
    FailLocked(request_id, std::move(status));
  }
}

void StreamCore::FailLocked(uint64_t request_id, Status status) {
  set_->CountRequest(Model().served.name, status);
  failures_.push_back({request_id, std::move(status)});
}

void StreamCore::CountUnsentLocked(int64_t bytes) {
  unsent_bytes_ += static_cast<uint64_t>(bytes);
  set_->budget().AddFeatures(bytes);
  if (bytes < 0) freed_ = true;
}

void StreamCore::AddCreditLocked(uint64_t bytes) {
  credit_ =
      bytes > std::numeric_limits<uint64_t>::max() - credit_ ? std::numeric_limits<uint64_t>::max() : credit_ + bytes;
}

void StreamCore::StopCreditClockLocked() {
  if (credit_wait_since_) {
    set_->credit_wait().Add(std::chrono::duration<double>(Clock::now() - *credit_wait_since_).count());
  }
  credit_wait_since_.reset();
}

}  // namespace distill
