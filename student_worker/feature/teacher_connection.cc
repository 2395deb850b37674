#include "student_worker/feature/teacher_connection.h"

#include <algorithm>
#include <utility>

#include "common/rpc/channel.h"
#include "common/shared_memory/boot_id.h"
#include "common/str_cat.h"
#include "common/wire/proto_codec.h"
#include "distill/v1/features.pb.h"

namespace distill {
namespace {

// gRPC keeps the pointer for the life of the call.
const char kMethod[] = "/distill.v1.FeatureService/StreamFeatures";

// While the loop copies a message out, gRPC's threads take the next ones from the socket: so many may wait for the
// loop. More would only lie in memory, which a teacher that minds no credit could fill.
constexpr int kReadAhead = 4;

// A teacher's descriptor comes at once, or the teacher hangs.
constexpr std::chrono::seconds kJoinPatience{2};
// The teacher is told of this part of a ring at a time, so that messages about it are few.
constexpr uint64_t kReturnedPart = 4;

// Into the event's fields, `chunk` among them when it says all.
StatusOr<FeatureChunk> ParseResponse(const grpc::ByteBuffer& message, TeacherConnection::Event* event) {
  v1::FeatureResponse header;
  FeatureChunk chunk;
  DISTILL_RETURN_IF_ERROR(DecodeWithPayload(message, &header, &chunk.payload));
  if (header.shared_memory().has_offer()) {
    const v1::SharedMemoryOffer& offer = header.shared_memory().offer();
    event->kind = TeacherConnection::Event::Kind::kOffer;
    event->socket = offer.socket();
    event->secret = offer.secret();
    event->ring_bytes = offer.bytes();
    return chunk;
  }
  if (header.shared_memory().has_piece()) {
    if (chunk.payload.size > 0) return absl::DataLossError("a chunk has a payload and bytes in shared memory");
    event->piece = RingPiece{header.shared_memory().piece().offset(), header.shared_memory().piece().size()};
  }
  chunk.request_id = header.request_id();
  chunk.tap_index = header.tap_index();
  chunk.shape.assign(header.shape().begin(), header.shape().end());
  chunk.dtype = static_cast<uint32_t>(header.dtype());
  chunk.layout = static_cast<uint32_t>(header.layout());
  chunk.total_bytes = header.total_bytes();
  chunk.offset = header.offset();
  chunk.last = header.last();
  chunk.model_digest = header.model_digest();
  chunk.error = header.error();
  chunk.error_code = header.error_code();
  chunk.queue_seconds = header.queue_seconds();
  chunk.compute_seconds = header.compute_seconds();
  return chunk;
}

}  // namespace

TeacherConnection::TeacherConnection(std::shared_ptr<grpc::Channel> channel, std::string address,
                                     std::function<void(Event)> post, std::string shared_memory_folder)
    : address_(std::move(address)),
      post_(std::move(post)),
      channel_(std::move(channel)),
      shared_memory_folder_(std::move(shared_memory_folder)),
      stub_(channel_) {}

void TeacherConnection::Start(const OpenStream& open) {
  stub_.PrepareBidiStreamingCall(&context_, kMethod, grpc::StubOptions(), this);
  AddHold();  // reads and writes are started from the pool's loop, outside of reactions; Close() removes it
  StartRead(&read_);
  StartCall();
  v1::FeatureRequest request;
  v1::OpenStream* proto = request.mutable_open();
  proto->set_model(open.model);
  proto->set_digest(open.digest);
  proto->set_client(open.client);
  for (const TapRequest& tap : open.taps) {
    v1::TapRequest* wanted = proto->add_taps();
    wanted->set_tap(tap.tap);
    wanted->mutable_encoding()->set_dtype(static_cast<v1::WireDtype>(tap.encoding.dtype));
    wanted->mutable_encoding()->set_less_row_max(tap.encoding.less_row_max);
  }
  proto->set_exclusive_batches(open.exclusive_batches);
  proto->set_credit_bytes(open.credit_bytes);
  most_ring_bytes_ = std::min(open.shared_memory_bytes, kMostRingBytes);
  if (most_ring_bytes_ > 0) {
    proto->set_boot_id(BootId());
    proto->set_shared_memory_bytes(most_ring_bytes_);
  }
  Send(EncodeWithPayload(request, Buffer()));
}

void TeacherConnection::SendCredit(uint64_t bytes) {
  v1::FeatureRequest request;
  request.set_credit_bytes(bytes);
  Send(EncodeWithPayload(request, Buffer()));
}

void TeacherConnection::SendBatch(uint64_t request_id, const ImageBatch& images) {
  v1::FeatureRequest request;
  v1::BatchRequest* batch = request.mutable_batch();
  batch->set_request_id(request_id);
  for (uint32_t side : {images.n, images.c, images.h, images.w}) batch->add_shape(side);
  Send(EncodeWithPayload(request, images.pixels));
}

void TeacherConnection::SendCancel(uint64_t request_id) {
  v1::FeatureRequest request;
  request.set_cancel_request_id(request_id);
  Send(EncodeWithPayload(request, Buffer()));
}

Status TeacherConnection::Join(const Event& offer, std::chrono::steady_clock::time_point now) {
  if (offer.ring_bytes == 0 || offer.ring_bytes > std::exchange(most_ring_bytes_, 0)) {
    return absl::DataLossError(
        StrCat("an offer of ", offer.ring_bytes, " bytes of shared memory, which was not asked for"));
  }
  if (closed_) return OkStatus();
  ring_bytes_ = offer.ring_bytes;
  join_deadline_ = now + kJoinPatience;
  join_ = DescriptorRequest::Start(shared_memory_folder_, offer.socket, offer.secret);
  return OkStatus();
}

std::optional<Status> TeacherConnection::PollJoin(std::chrono::steady_clock::time_point now) {
  if (!join_.has_value()) return std::nullopt;
  StatusOr<std::shared_ptr<const RingReader>> ring = std::shared_ptr<const RingReader>();
  if (!join_->ok()) {
    ring = join_->status();
  } else {
    StatusOr<std::optional<OwnedFd>> answer = (*join_)->Poll();
    if (!answer.ok()) {
      ring = answer.status();
    } else if (answer->has_value()) {
      ring = RingReader::Open(**std::move(answer), ring_bytes_);
    } else if (now >= join_deadline_) {
      ring = absl::DeadlineExceededError("the teacher's Unix socket is silent");
    } else {
      return std::nullopt;
    }
  }
  join_.reset();
  v1::FeatureRequest request;
  request.set_shared_memory_mapped(ring.ok());
  Send(EncodeWithPayload(request, Buffer()));
  if (ring.ok()) ring_ = *ring;
  return ring.status();
}

StatusOr<ScatteredBuffer> TeacherConnection::Locate(const RingPiece& piece) const {
  if (ring_ == nullptr) return absl::DataLossError("bytes in shared memory, of which there is none");
  DISTILL_ASSIGN_OR_RETURN(const std::span<const uint8_t> bytes, ring_->At(piece));
  return ScatteredBuffer::From(Buffer{bytes.data(), bytes.size(), ring_});
}

void TeacherConnection::Return(const RingPiece& piece) {
  read_bytes_ += piece.size;
  if (closed_ || read_bytes_ < ring_bytes_ / kReturnedPart) return;
  v1::FeatureRequest request;
  request.set_shared_memory_returned(std::exchange(read_bytes_, 0));
  Send(EncodeWithPayload(request, Buffer()));
}

void TeacherConnection::Send(grpc::ByteBuffer message) {
  queue_.push_back(std::move(message));
  if (!writing_) WriteNext();
}

void TeacherConnection::Handled() {
  // Whoever brings the count down from the most has the paused reading to itself.
  if (unhandled_.fetch_sub(1) == kReadAhead && !closed_) StartRead(&read_);
}

void TeacherConnection::WriteNext() {
  writing_ = false;
  write_.Clear();  // lets go of the pixels that were sent
  if (closed_ || queue_.empty()) return;
  writing_ = true;
  write_.Swap(&queue_.front());
  queue_.pop_front();
  StartWrite(&write_);
}

void TeacherConnection::Close(bool cancel) {
  if (cancel) context_.TryCancel();
  if (closed_) return;
  closed_ = true;
  queue_.clear();
  join_.reset();
  RemoveHold();
}

void TeacherConnection::OnReadDone(bool ok) {
  if (!ok) {
    post_(Event{Event::Kind::kReadEnd, this});
    return;
  }
  Event event{Event::Kind::kChunk, this};
  event.chunk = ParseResponse(read_, &event);
  read_.Clear();
  // In this order, so that chunks stay in theirs: once this one is counted, the loop may start the next read, whose end
  // another thread posts. The object lives on, because gRPC calls OnDone after this has returned.
  post_(std::move(event));
  if (unhandled_.fetch_add(1) + 1 < kReadAhead) StartRead(&read_);
}

void TeacherConnection::OnWriteDone(bool ok) {
  // A failed write means that the call is ending; the failed read that follows says so.
  if (ok) post_(Event{Event::Kind::kWritten, this});
}

void TeacherConnection::OnDone(const grpc::Status& status) {
  // Posting is the last thing done here: the loop may destroy this object at once.
  Event event{Event::Kind::kClosed, this, FeatureChunk(), FromGrpc(status, "StreamFeatures", address_)};
  const std::function<void(Event)> post = post_;
  post(std::move(event));
}

}  // namespace distill
