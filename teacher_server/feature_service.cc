#include "teacher_server/feature_service.h"

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <string>
#include <utility>

#include "common/fleet/fleet_codec.h"
#include "common/rpc/channel.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "common/wire/proto_codec.h"
#include "distill/v1/features.grpc.pb.h"
#include "teacher_server/stream_core.h"
#include "teacher_server/stream_set.h"

namespace distill {
namespace {

StreamOpen FromProto(const v1::OpenStream& proto) {
  StreamOpen open;
  open.model = proto.model();
  open.digest = proto.digest();
  open.client = proto.client();
  for (const v1::TapRequest& tap : proto.taps()) {
    open.taps.push_back({tap.tap(), static_cast<int>(tap.encoding().dtype()), tap.encoding().less_row_max()});
  }
  open.exclusive_batches = proto.exclusive_batches();
  open.credit_bytes = proto.credit_bytes();
  open.boot_id = proto.boot_id();
  open.shared_memory_bytes = proto.shared_memory_bytes();
  return open;
}

grpc::ByteBuffer Encode(const StreamMessage& message) {
  v1::FeatureResponse response;
  if (message.offer.has_value()) {
    v1::SharedMemoryOffer* const offer = response.mutable_shared_memory()->mutable_offer();
    offer->set_socket(message.offer->socket);
    offer->set_secret(message.offer->secret);
    offer->set_bytes(message.offer->bytes);
    return EncodeWithPayload(response, Buffer{});
  }
  response.set_request_id(message.request_id);
  if (!message.error.ok()) {
    response.set_error(std::string(message.error.message()));
    response.set_error_code(static_cast<uint32_t>(message.error.code()));
    return EncodeWithPayload(response, Buffer{});
  }
  response.set_tap_index(message.tap_index);
  response.mutable_shape()->Add(message.shape.begin(), message.shape.end());
  response.set_dtype(static_cast<v1::WireDtype>(message.dtype));
  response.set_layout(static_cast<v1::TensorLayout>(message.layout));
  response.set_total_bytes(message.total_bytes);
  response.set_offset(message.offset);
  response.set_model_digest(message.model_digest);
  response.set_last(message.last);
  response.set_queue_seconds(message.queue_seconds);
  response.set_compute_seconds(message.compute_seconds);
  if (message.piece.has_value()) {
    v1::SharedMemoryPiece* const piece = response.mutable_shared_memory()->mutable_piece();
    piece->set_offset(message.piece->offset);
    piece->set_size(message.piece->size);
  }
  return EncodeWithPayload(response, message.payload);
}

// One call of StreamFeatures: bytes to and from a StreamCore. gRPC calls the On... functions, each kind one at a time.
// A read is always under way until the client half-closes or the stream ends, because credits and cancels must get
// through. Destroyed by OnDone, which comes after Finish, and when no operation is under way.
class Call final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>, public StreamTransport {
 public:
  explicit Call(StreamSet* streams) : streams_(streams) {}

  void Start(std::string peer) {
    core_ = streams_->Add(std::move(peer), this);
    if (!core_->finished()) StartRead(&received_);
  }

  void Send(StreamMessage message) override {
    outgoing_ = Encode(message);
    StartWrite(&outgoing_);
  }
  void Finish(const Status& status) override { ServerBidiReactor::Finish(ToGrpc(status)); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      core_->ClientIsDone();
      return;
    }
    Take();
    received_.Clear();
    // A Finish() that slips in between is harmless: the read then completes with ok = false, before OnDone.
    if (!core_->finished()) StartRead(&received_);
  }
  void OnWriteDone(bool ok) override {
    outgoing_.Clear();
    if (!ok) core_->End(absl::CancelledError("the client went away"));
    core_->Sent();
  }
  void OnCancel() override { core_->End(absl::CancelledError("the client went away")); }
  void OnDone() override {
    streams_->Leave(*core_);
    delete this;
  }

 private:
  void Take() {
    // The port lets larger ones in, for the Open Inference Protocol.
    if (received_.Length() > kMaxMessageBytes) {
      core_->End(absl::ResourceExhaustedError(StrCat("a message of ", received_.Length(), " bytes; at most ",
                                                     kMaxMessageBytes, " are allowed; send smaller batches")));
      return;
    }
    v1::FeatureRequest request;
    ScatteredBuffer payload;
    if (const Status status = DecodeWithPayload(received_, &request, &payload); !status.ok()) {
      core_->End(Annotate(status, "malformed FeatureRequest"));
      return;
    }
    if (request.kind_case() != v1::FeatureRequest::kBatch && payload.size > 0) {
      core_->End(absl::InvalidArgumentError(
          StrCat("a payload of ", payload.size, " bytes came without a batch; only `batch` messages carry one")));
      return;
    }
    switch (request.kind_case()) {
      case v1::FeatureRequest::kOpen:
        return core_->Open(FromProto(request.open()));
      case v1::FeatureRequest::kBatch:
        return core_->Batch(request.batch().request_id(),
                            {request.batch().shape().begin(), request.batch().shape().end()}, payload.Joined());
      case v1::FeatureRequest::kCreditBytes:
        return core_->Grant(request.credit_bytes());
      case v1::FeatureRequest::kCancelRequestId:
        return core_->Cancel(request.cancel_request_id());
      case v1::FeatureRequest::kSharedMemoryMapped:
        return core_->RingMapped(request.shared_memory_mapped());
      case v1::FeatureRequest::kSharedMemoryReturned:
        return core_->RingReturned(request.shared_memory_returned());
      case v1::FeatureRequest::KIND_NOT_SET:
        return core_->NothingSaid();
    }
  }

  StreamSet* const streams_;          // not owned: destroyed after the RpcServer, hence after all calls
  std::shared_ptr<StreamCore> core_;  // shared with the set and the engine's callbacks; set before any operation
  grpc::ByteBuffer received_;         // gRPC's while a read is under way
  grpc::ByteBuffer outgoing_;         // gRPC's while a write is under way
};

class FeatureService final : public v1::FeatureService::WithRawCallbackMethod_StreamFeatures<
                                 v1::FeatureService::WithCallbackMethod_ListModels<v1::FeatureService::Service>> {
 public:
  explicit FeatureService(StreamSet* streams) : streams_(streams) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamFeatures(
      grpc::CallbackServerContext* context) override {
    Call* const call = new Call(streams_);  // deletes itself
    call->Start(context->peer());
    return call;
  }
  grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* /*request*/,
                                       v1::ListModelsResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    TeacherEngine* const engine = streams_->engine();
    if (engine == nullptr) {
      reactor->Finish(
          grpc::Status(grpc::StatusCode::UNAVAILABLE, "this teacher is still loading its models; try again"));
      return reactor;
    }
    for (const TeacherModel& model : engine->models()) ToProto(model.served, response->add_models());
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  StreamSet* const streams_;  // not owned: outlives the RpcServer, hence all calls
};

}  // namespace

std::unique_ptr<grpc::Service> CreateFeatureService(StreamSet* streams) {
  return std::make_unique<FeatureService>(streams);
}

}  // namespace distill
