#include "student_worker/feature/teacher_connection.h"

#include "common/rpc/channel.h"
#include "common/wire/proto_codec.h"
#include "distill/v1/features.pb.h"

namespace distill {
namespace {

// gRPC keeps the pointer for the life of the call.
const char kMethod[] = "/distill.v1.FeatureService/StreamFeatures";

// While the loop copies a message out, gRPC's threads take the next ones from the socket: so many may wait for the
// loop. More would only lie in memory, which a teacher that minds no credit could fill.
constexpr int kReadAhead = 4;

StatusOr<FeatureChunk> ParseResponse(const grpc::ByteBuffer& message) {
  v1::FeatureResponse header;
  FeatureChunk chunk;
  DISTILL_RETURN_IF_ERROR(DecodeWithPayload(message, &header, &chunk.payload));
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
                                     std::function<void(Event)> post)
    : address_(std::move(address)), post_(std::move(post)), channel_(std::move(channel)), stub_(channel_) {}

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
  RemoveHold();
}

void TeacherConnection::OnReadDone(bool ok) {
  if (!ok) {
    post_(Event{Event::Kind::kReadEnd, this});
    return;
  }
  Event event{Event::Kind::kChunk, this, ParseResponse(read_)};
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
