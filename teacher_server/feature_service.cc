#include "teacher_server/feature_service.h"

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "common/log.h"
#include "common/nearest_name.h"
#include "common/plan/plan_codec.h"
#include "common/rpc/channel.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/wire/proto_codec.h"
#include "distill/v1/features.grpc.pb.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

Status Draining() { return absl::UnavailableError("this teacher is shutting down; send the batch to another one"); }

double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Value of the `result` label of distill_teacher_requests_total.
std::string_view ResultLabel(const Status& status) {
  switch (status.code()) {
    case StatusCode::kOk:
      return "ok";
    case StatusCode::kCancelled:
      return "cancelled";
    case StatusCode::kInvalidArgument:
    case StatusCode::kResourceExhausted:
    case StatusCode::kUnavailable:
      return "refused";
    default:
      return "error";
  }
}

class Stream;

class FeatureServiceImpl final : public FeatureService {
 public:
  FeatureServiceImpl(const Options& options, MetricsRegistry* metrics)
      : options(options),
        sent_bytes(metrics->GetCounter("distill_teacher_sent_bytes_total", "Payload bytes handed to the transport.")),
        credit_wait(
            metrics->GetCounter("distill_teacher_credit_wait_seconds_total",
                                "Time that computed features waited for credit of their client, over all streams.")),
        metrics_(metrics),
        streams_(metrics->GetGauge("distill_teacher_streams", "Open feature streams.")),
        rpc_(this) {}

  grpc::Service* service() override { return &rpc_; }
  void SetEngine(TeacherEngine* engine) override { engine_.store(engine, std::memory_order_release); }
  void Drain() override;
  bool WaitIdle(std::chrono::milliseconds timeout) override {
    absl::MutexLock lock(&mutex_);
    return AwaitFor(&mutex_, absl::Condition(+[](std::set<Stream*>* live) { return live->empty(); }, &live_),
                    absl::FromChrono(timeout));
  }

  // Null while loading.
  TeacherEngine* engine() const { return engine_.load(std::memory_order_acquire); }
  bool draining() const { return draining_.load(); }
  void Join(Stream* stream);
  void Leave(Stream* stream);
  void CountRequest(const std::string& model, const Status& status) {
    metrics_
        ->GetCounter("distill_teacher_requests_total", "Batches that ended, by how.",
                     {{"model", model}, {"result", std::string(ResultLabel(status))}})
        .Add();
  }

  const Options options;
  Counter& sent_bytes;
  Counter& credit_wait;

 private:
  class Rpc final : public v1::FeatureService::WithRawCallbackMethod_StreamFeatures<
                        v1::FeatureService::WithCallbackMethod_ListModels<v1::FeatureService::Service>> {
   public:
    explicit Rpc(FeatureServiceImpl* impl) : impl_(impl) {}
    grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StreamFeatures(
        grpc::CallbackServerContext* context) override;
    grpc::ServerUnaryReactor* ListModels(grpc::CallbackServerContext* context, const v1::ListModelsRequest* request,
                                         v1::ListModelsResponse* response) override;

   private:
    FeatureServiceImpl* const impl_;  // not owned: it owns this
  };

  MetricsRegistry* const metrics_;  // not owned: outlives the service
  Gauge& streams_;
  // Written once, read by every stream: null while loading.
  std::atomic<TeacherEngine*> engine_{nullptr};
  // Only ever goes to true; streams read it under their own lock and are poked after it was set.
  std::atomic<bool> draining_{false};
  std::atomic<uint64_t> next_stream_id_{1};
  absl::Mutex mutex_;
  std::set<Stream*> live_ ABSL_GUARDED_BY(mutex_);  // a stream leaves before it is destroyed
  Rpc rpc_;
};

// One client's stream. gRPC calls the On... functions, each kind one at a time; the engine's callbacks come from its
// threads.
//
// Lifetime: `self_` holds the object until OnDone; engine callbacks hold references of their own and find `finished_`
// set. Reads: one is always under way until the client half-closes or the stream ends, because credits and cancels must
// get through. Writes: one at a time. `writing_` belongs to whoever set it: Pump() sets it under the lock and starts
// the operation after unlocking; OnWriteDone gives it back. Finish() goes through the same gate, so it never overlaps a
// write.
class Stream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                     public std::enable_shared_from_this<Stream> {
 public:
  static Stream* Start(FeatureServiceImpl* service, uint64_t id, std::string peer) {
    auto stream = std::make_shared<Stream>(service, id, std::move(peer));
    stream->self_ = stream;
    service->Join(stream.get());
    if (service->draining()) {
      stream->End(Draining());
    } else if (service->engine() == nullptr) {
      stream->End(absl::UnavailableError("this teacher is still loading its models; try again, or take another one"));
    } else {
      stream->StartRead(&stream->received_);
    }
    return stream.get();
  }
  Stream(FeatureServiceImpl* service, uint64_t id, std::string peer)
      : service_(service), id_(id), engine_(service->engine()), peer_(std::move(peer)) {}

  // The service drains; called with `this` kept alive by the caller.
  void Poke() { Pump(); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      {
        absl::MutexLock lock(&mutex_);
        reads_done_ = true;
      }
      Pump();
      return;
    }
    v1::FeatureRequest request;
    Buffer payload;
    Status status = DecodeWithPayload(received_, &request, &payload);
    received_.Clear();
    if (status.ok()) {
      status = Handle(request, std::move(payload));
    } else {
      status = Annotate(status, "malformed FeatureRequest");
    }
    if (!status.ok()) {
      End(status);
      return;
    }
    Pump();
    bool read_on;
    {
      absl::MutexLock lock(&mutex_);
      read_on = !finished_;
    }
    // A Finish() that slips in between is harmless: the read then completes with ok = false, before OnDone.
    if (read_on) StartRead(&received_);
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      writing_ = false;
      outgoing_.Clear();
    }
    if (ok) {
      Pump();
    } else {
      End(absl::CancelledError("the client went away"));
    }
  }

  void OnCancel() override { End(absl::CancelledError("the client went away")); }

  void OnDone() override {
    service_->Leave(this);
    const std::shared_ptr<Stream> last = std::move(self_);  // destroyed here unless the engine still holds a callback
  }

 private:
  // A batch that has not ended: waiting here, in the engine, or (partly) unsent.
  struct Unanswered {
    uint64_t pixel_bytes = 0;  // counted in waiting_bytes_
    uint64_t reserved = 0;     // counted in unsent_bytes_; 0 while it waits here
    bool submitted = false;    // given to the engine, whose callback has not come
    bool cancelled = false;    // the engine's answer is to be dropped
  };
  struct Answer {
    uint64_t request_id;
    FeatureBatch batch;
    size_t tap = 0;
    uint64_t offset = 0;  // of the next byte to send, in this tap
  };
  struct Failure {
    uint64_t request_id;
    Status status;
  };
  struct Waiting {
    uint64_t request_id;
    ImageBatch images;
    uint64_t answer_bytes;
  };

  // Each returns an error that ends the stream.
  Status Handle(const v1::FeatureRequest& request, Buffer payload) {
    if (request.kind_case() != v1::FeatureRequest::kBatch && payload.size > 0) {
      return absl::InvalidArgumentError(
          StrCat("a payload of ", payload.size, " bytes came without a batch; only `batch` messages carry one"));
    }
    {
      absl::MutexLock lock(&mutex_);
      if (end_status_) return OkStatus();  // whatever comes after the end is dropped
      const bool is_open = request.kind_case() == v1::FeatureRequest::kOpen;
      if (opened_ && is_open)
        return absl::InvalidArgumentError("`open` came twice on one stream; it is the first message only");
      if (!opened_ && !is_open) return absl::InvalidArgumentError("the first message on a stream must be `open`");
    }
    switch (request.kind_case()) {
      case v1::FeatureRequest::kOpen:
        return HandleOpen(request.open());
      case v1::FeatureRequest::kBatch:
        return HandleBatch(request.batch(), std::move(payload));
      case v1::FeatureRequest::kCreditBytes: {
        absl::MutexLock lock(&mutex_);
        AddCreditLocked(request.credit_bytes());
        return OkStatus();
      }
      case v1::FeatureRequest::kCancelRequestId:
        HandleCancel(request.cancel_request_id());
        return OkStatus();
      case v1::FeatureRequest::KIND_NOT_SET:
        break;
    }
    return absl::InvalidArgumentError("a message needs one of open, batch, credit_bytes, cancel_request_id");
  }

  Status HandleOpen(const v1::OpenStream& open) {
    const std::vector<TeacherModel>& models = engine_->models();
    size_t index = 0;
    while (index < models.size() && models[index].served.name != open.model()) ++index;
    if (index == models.size()) {
      std::vector<std::string> names;
      for (const TeacherModel& model : models) names.push_back(model.served.name);
      return absl::NotFoundError(StrCat("this teacher does not serve model '", open.model(), "'",
                                        DidYouMean(open.model(), names), " (served: ", absl::StrJoin(names, ", "),
                                        ")"));
    }
    const TeacherModel& model = models[index];
    if (!open.digest().empty() && open.digest() != model.served.digest) {
      return absl::FailedPreconditionError(
          StrCat("model '", open.model(), "' here has digest ", model.served.digest, ", the client expects ",
                 open.digest(), ": the weights or the architecture differ; submit the job again to use them"));
    }
    if (open.taps().empty())
      return absl::InvalidArgumentError("`open` names no taps; use one with an empty path for the output");
    if (open.taps_size() > kMaxTaps) {
      return absl::InvalidArgumentError(
          StrCat("`open` names ", open.taps_size(), " taps; at most ", kMaxTaps, " are allowed"));
    }
    auto taps = std::make_shared<std::vector<TapRequest>>();
    std::vector<std::vector<uint32_t>> shapes;
    uint64_t image_answer_bytes = 0;
    for (const v1::TapRequest& asked : open.taps()) {
      const std::vector<uint32_t>* shape =
          asked.tap().empty() && !model.output_shape.empty() ? &model.output_shape : nullptr;
      for (const ServedTap& tap : model.taps) {
        if (shape == nullptr && tap.path == asked.tap()) shape = &tap.shape;
      }
      if (shape == nullptr) {
        std::vector<std::string> paths;
        for (const ServedTap& tap : model.taps) paths.push_back(tap.path);
        return absl::InvalidArgumentError(StrCat("model '", open.model(), "' has no tap '", asked.tap(), "'",
                                                 DidYouMean(asked.tap(), paths), "; `distillctl taps ", open.model(),
                                                 "` lists them"));
      }
      if (asked.dtype() != v1::WIRE_DTYPE_F32 && asked.dtype() != v1::WIRE_DTYPE_F16 &&
          asked.dtype() != v1::WIRE_DTYPE_BF16) {
        return absl::InvalidArgumentError(StrCat("tap '", asked.tap(), "': dtype ", static_cast<int>(asked.dtype()),
                                                 " cannot be asked for; use WIRE_DTYPE_F32, _F16 or _BF16"));
      }
      if (asked.subtract_row_max() && shape->size() != 3) {
        return absl::InvalidArgumentError(
            StrCat("tap '", asked.tap(), "': subtract_row_max needs a feature map [C, H, W], this tap has shape [",
                   absl::StrJoin(*shape, ", "), "]"));
      }
      taps->push_back({asked.tap(), static_cast<WireDtype>(asked.dtype()), asked.subtract_row_max()});
      image_answer_bytes += ByteSize(*shape, taps->back().dtype);
    }
    LogInfo("stream opened", {{"client", open.client()},
                              {"peer", peer_},
                              {"model", open.model()},
                              {"taps", taps->size()},
                              {"exclusive", open.exclusive_batches()}});
    absl::MutexLock lock(&mutex_);
    opened_ = true;
    client_ = open.client();
    model_index_ = index;
    taps_ = std::move(taps);
    exclusive_ = open.exclusive_batches();
    image_answer_bytes_ = image_answer_bytes;
    AddCreditLocked(open.credit_bytes());
    return OkStatus();
  }

  Status HandleBatch(const v1::BatchRequest& batch, Buffer pixels) {
    const ModelSpec& spec = Model().served.spec;
    absl::MutexLock lock(&mutex_);
    if (unanswered_.count(batch.request_id()) > 0) {
      return absl::InvalidArgumentError(
          StrCat("request id ", batch.request_id(), " is still unanswered; ids must be unique on a stream"));
    }
    if (Status refused = CheckBatchLocked(batch, pixels, spec); !refused.ok()) {
      FailLocked(batch.request_id(), std::move(refused));
      // Errors need no credit, but a client that never reads must not make them pile up.
      if (failures_.size() > 4 * service_->options.max_unanswered + 1024) {
        return absl::ResourceExhaustedError(
            StrCat(failures_.size(), " error responses wait to be read; the client does not read its stream"));
      }
      return OkStatus();
    }
    const uint64_t answer_bytes = batch.shape(0) * image_answer_bytes_;
    unanswered_[batch.request_id()].pixel_bytes = pixels.size;
    waiting_bytes_ += pixels.size;
    waiting_.push_back({batch.request_id(),
                        ImageBatch{batch.shape(0), batch.shape(1), batch.shape(2), batch.shape(3), std::move(pixels)},
                        answer_bytes});
    return OkStatus();
  }

  // Why a batch is refused in band.
  Status CheckBatchLocked(const v1::BatchRequest& batch, const Buffer& pixels, const ModelSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (service_->draining()) return Draining();
    const FeatureService::Options& limits = service_->options;
    const std::string shape = StrCat("[", absl::StrJoin(batch.shape(), ", "), "]");
    if (batch.shape_size() != 4) {
      return absl::InvalidArgumentError(StrCat("batch shape ", shape, " must have four axes N, C, H, W"));
    }
    if (batch.shape(0) < 1 || batch.shape(0) > kMaxBatchImages) {
      return absl::InvalidArgumentError(StrCat("batch shape ", shape, ": N must be in 1..", kMaxBatchImages));
    }
    if (batch.shape(1) != spec.in_channels || batch.shape(2) != spec.image_height ||
        batch.shape(3) != spec.image_width) {
      return absl::InvalidArgumentError(StrCat("batch shape ", shape, ": model '", Model().served.name,
                                               "' takes images of C, H, W = ", spec.in_channels, ", ",
                                               spec.image_height, ", ", spec.image_width));
    }
    // No overflow: N is small, and C, H, W are the model's own.
    const uint64_t bytes = uint64_t{batch.shape(0)} * spec.in_channels * spec.image_height * spec.image_width;
    if (pixels.size != bytes) {
      return absl::InvalidArgumentError(
          StrCat("batch shape ", shape, " needs a payload of ", bytes, " bytes, got ", pixels.size));
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
    if (const uint64_t answer = batch.shape(0) * image_answer_bytes_; answer > limits.max_answer_bytes) {
      return absl::ResourceExhaustedError(StrCat("the answer to ", batch.shape(0), " images would have ", answer,
                                                 " bytes, the limit is ", limits.max_answer_bytes,
                                                 "; send smaller batches"));
    }
    return OkStatus();
  }

  void HandleCancel(uint64_t request_id) {
    bool in_engine = false;
    {
      absl::MutexLock lock(&mutex_);
      auto entry = unanswered_.find(request_id);
      if (entry == unanswered_.end() || entry->second.cancelled) return;
      if (entry->second.submitted) {
        entry->second.cancelled = true;  // ends when the engine's callback comes
        in_engine = true;
      } else {
        std::erase_if(waiting_, [&](const Waiting& w) { return w.request_id == request_id; });
        std::erase_if(answers_, [&](const Answer& a) { return a.request_id == request_id; });
        EndRequestLocked(request_id, absl::CancelledError("cancelled by the client"));
      }
    }
    if (in_engine) engine_->Cancel(id_, request_id);
  }

  // The engine's callback.
  void OnAnswer(uint64_t request_id, StatusOr<FeatureBatch> answer) {
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
        unsent_bytes_ += bytes - entry->second.reserved;
        entry->second.reserved = bytes;
        answers_.push_back({request_id, *std::move(answer)});
      }
    }
    Pump();
  }

  // Ends the stream with `status` as soon as the running write is done. The first call counts.
  void End(Status status) {
    bool first = false;
    {
      absl::MutexLock lock(&mutex_);
      if (!end_status_) {
        first = true;
        end_status_ = std::move(status);
        AbandonLocked();
      }
    }
    // Only the opener of the stream has anything in the engine; its callbacks come back here at once.
    if (first && engine_ != nullptr) engine_->CancelClient(id_);
    Pump();
  }

  // Forgets everything that is not in the engine's hands.
  void AbandonLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
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

  // Starts whatever may start: submits waiting batches, writes the next message, or finishes the stream.
  void Pump() {
    std::vector<TeacherRequest> submit;
    bool write = false;
    bool abandon = false;
    std::optional<Status> finish;
    {
      absl::MutexLock lock(&mutex_);
      if (finished_) return;
      if (!end_status_) AdmitLocked(&submit);
      if (!writing_) {
        if (!end_status_) {
          write = NextMessageLocked();
          abandon = end_status_.has_value();
        }
        if (end_status_) {
          finish = end_status_;
          finished_ = true;
        }
        writing_ = write;
      }
    }
    // The callbacks hold the stream: they may come after OnDone.
    for (TeacherRequest& request : submit) {
      const uint64_t id = request.tag;
      engine_->Submit(std::move(request), [self = shared_from_this(), id](StatusOr<FeatureBatch> answer) {
        self->OnAnswer(id, std::move(answer));
      });
    }
    if (write) StartWrite(&outgoing_);
    if (abandon && engine_ != nullptr) engine_->CancelClient(id_);
    if (finish) {
      LogInfo("stream closed", {{"client", ClientName()},
                                {"peer", peer_},
                                {"code", absl::StatusCodeToString(finish->code())},
                                {"reason", finish->message()}});
      Finish(ToGrpc(*finish));
    }
  }

  void AdmitLocked(std::vector<TeacherRequest>* submit) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!waiting_.empty()) {
      Waiting& next = waiting_.front();
      if (unsent_bytes_ > 0 && unsent_bytes_ + next.answer_bytes > service_->options.max_unsent_bytes) return;
      Unanswered& request = unanswered_[next.request_id];
      request.submitted = true;
      request.reserved = next.answer_bytes;
      unsent_bytes_ += next.answer_bytes;
      TeacherRequest out;
      out.model = model_index_;
      out.client = id_;
      out.tag = next.request_id;
      out.taps = taps_;
      out.images = std::move(next.images);
      out.exclusive = exclusive_;
      submit->push_back(std::move(out));
      waiting_.pop_front();
    }
  }

  // Fills outgoing_ with the next message; false when there is none now. Sets end_status_ when there can be none any
  // more.
  bool NextMessageLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!failures_.empty()) {
      v1::FeatureResponse response;
      response.set_request_id(failures_.front().request_id);
      response.set_error(std::string(failures_.front().status.message()));
      response.set_error_code(static_cast<uint32_t>(failures_.front().status.code()));
      failures_.pop_front();
      outgoing_ = EncodeWithPayload(response, Buffer{});
      return true;
    }
    if (answers_.empty()) {
      if (unanswered_.empty()) {
        if (reads_done_) {
          end_status_ = OkStatus();
        } else if (service_->draining()) {
          end_status_ = Draining();
        }
      }
      return false;
    }
    Answer& answer = answers_.front();
    const WireTensor& tensor = answer.batch.taps[answer.tap];
    const uint64_t left = tensor.bytes.size - answer.offset;
    if (left > 0 && credit_ == 0) {
      if (reads_done_) {
        end_status_ =
            absl::FailedPreconditionError(StrCat(unsent_bytes_,
                                                 " bytes of features are unsent, the credit is used up, and the "
                                                 "client has closed its side or gone away, so it can grant no more"));
        AbandonLocked();
      } else if (!credit_wait_since_) {
        credit_wait_since_ = Clock::now();
      }
      return false;
    }
    StopCreditClockLocked();
    const uint64_t size = std::min({left, credit_, kChunkBytes});
    v1::FeatureResponse response;
    response.set_request_id(answer.request_id);
    response.set_tap_index(answer.tap);
    for (uint32_t axis : tensor.shape) response.add_shape(axis);
    response.set_dtype(static_cast<v1::WireDtype>(tensor.dtype));
    response.set_total_bytes(tensor.bytes.size);
    response.set_offset(answer.offset);
    if (answer.offset == 0) response.set_model_digest(answer.batch.model_digest);
    const Buffer payload{tensor.bytes.data + answer.offset, size, tensor.bytes.owner};
    credit_ -= size;
    unsent_bytes_ -= size;
    unanswered_[answer.request_id].reserved -= size;
    service_->sent_bytes.Add(size);
    answer.offset += size;
    if (size == left) {
      answer.offset = 0;
      if (++answer.tap == answer.batch.taps.size()) {
        response.set_last(true);
        response.set_queue_seconds(answer.batch.queue_seconds);
        response.set_compute_seconds(answer.batch.compute_seconds);
        EndRequestLocked(answer.request_id, OkStatus());
        outgoing_ = EncodeWithPayload(response, payload);
        answers_.pop_front();
        return true;
      }
    }
    outgoing_ = EncodeWithPayload(response, payload);
    return true;
  }

  // Takes the request off the books; an error is queued for the client.
  void EndRequestLocked(uint64_t request_id, Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    auto entry = unanswered_.find(request_id);
    waiting_bytes_ -= entry->second.pixel_bytes;
    unsent_bytes_ -= entry->second.reserved;
    unanswered_.erase(entry);
    if (status.ok()) {
      service_->CountRequest(Model().served.name, status);
    } else {
      FailLocked(request_id, std::move(status));
    }
  }
  void FailLocked(uint64_t request_id, Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    service_->CountRequest(Model().served.name, status);
    failures_.push_back({request_id, std::move(status)});
  }
  void AddCreditLocked(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    credit_ =
        bytes > std::numeric_limits<uint64_t>::max() - credit_ ? std::numeric_limits<uint64_t>::max() : credit_ + bytes;
  }
  void StopCreditClockLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (credit_wait_since_) service_->credit_wait.Add(SecondsSince(*credit_wait_since_));
    credit_wait_since_.reset();
  }
  // REQUIRES: opened.
  const TeacherModel& Model() const { return engine_->models()[model_index_]; }
  std::string ClientName() {
    absl::MutexLock lock(&mutex_);
    return client_;
  }

  FeatureServiceImpl* const service_;  // not owned: destroyed after the RpcServer, hence after all streams
  const uint64_t id_;                  // the engine's name for this client
  TeacherEngine* const engine_;        // not owned: outlives all streams; null on a stream that is refused at once
  const std::string peer_;
  std::shared_ptr<Stream> self_;  // set before the first operation, reset in OnDone
  grpc::ByteBuffer received_;     // gRPC's while a read is under way

  // Written once, before `opened_` is set, on the reading side; later only read.
  size_t model_index_ = 0;
  std::shared_ptr<const std::vector<TapRequest>> taps_;
  bool exclusive_ = false;
  uint64_t image_answer_bytes_ = 0;

  absl::Mutex mutex_;
  grpc::ByteBuffer outgoing_;  // guarded while !writing_, else gRPC's
  bool opened_ ABSL_GUARDED_BY(mutex_) = false;
  std::string client_ ABSL_GUARDED_BY(mutex_);
  bool reads_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;             // Finish() was or is about to be called
  std::optional<Status> end_status_ ABSL_GUARDED_BY(mutex_);  // decided how the stream ends
  uint64_t credit_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // pixels of unanswered_
  uint64_t unsent_bytes_ ABSL_GUARDED_BY(mutex_) = 0;   // sum of `reserved` over unanswered_
  std::map<uint64_t, Unanswered> unanswered_ ABSL_GUARDED_BY(mutex_);
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);   // not yet given to the engine
  std::deque<Answer> answers_ ABSL_GUARDED_BY(mutex_);    // computed, in the order of sending
  std::deque<Failure> failures_ ABSL_GUARDED_BY(mutex_);  // go before answers: they need no credit
  std::optional<Clock::time_point> credit_wait_since_ ABSL_GUARDED_BY(mutex_);
};

void FeatureServiceImpl::Join(Stream* stream) {
  streams_.Add(1);
  absl::MutexLock lock(&mutex_);
  live_.insert(stream);
}

void FeatureServiceImpl::Leave(Stream* stream) {
  streams_.Add(-1);
  absl::MutexLock lock(&mutex_);
  live_.erase(stream);
}

void FeatureServiceImpl::Drain() {
  draining_.store(true);
  std::vector<std::shared_ptr<Stream>> live;
  {
    absl::MutexLock lock(&mutex_);
    // A stream in live_ is held by its own self_: it leaves before it lets go.
    for (Stream* stream : live_) live.push_back(stream->shared_from_this());
  }
  for (const auto& stream : live) stream->Poke();
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* FeatureServiceImpl::Rpc::StreamFeatures(
    grpc::CallbackServerContext* context) {
  return Stream::Start(impl_, impl_->next_stream_id_.fetch_add(1), context->peer());
}

grpc::ServerUnaryReactor* FeatureServiceImpl::Rpc::ListModels(grpc::CallbackServerContext* context,
                                                              const v1::ListModelsRequest* /*request*/,
                                                              v1::ListModelsResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  TeacherEngine* engine = impl_->engine();
  if (engine == nullptr) {
    reactor->Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "this teacher is still loading its models; try again"));
    return reactor;
  }
  for (const TeacherModel& model : engine->models()) {
    v1::ServedModel* out = response->add_models();
    out->set_name(model.served.name);
    out->set_digest(model.served.digest);
    ToProto(model.served.spec, out->mutable_spec());
    out->set_parameters(model.served.parameters);
    out->set_bytes(model.served.bytes);
    for (const ServedTap& tap : model.served.taps) {
      v1::TapInfo* info = out->add_taps();
      info->set_path(tap.path);
      info->set_type(tap.type);
      for (uint32_t axis : tap.shape) info->add_shape(axis);
      info->set_stage_end(tap.stage_end);
    }
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace

std::unique_ptr<FeatureService> FeatureService::Create(const Options& options, MetricsRegistry* metrics) {
  return std::make_unique<FeatureServiceImpl>(options, metrics);
}

}  // namespace distill
