#include "teacher_server/feature_service.h"

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <thread>
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
#include "teacher_server/memory_budget.h"

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
        budget(options.memory_budget),
        sent_bytes(metrics->GetCounter("distill_teacher_sent_bytes_total", "Payload bytes handed to the transport.")),
        credit_wait(
            metrics->GetCounter("distill_teacher_credit_wait_seconds_total",
                                "Time that computed features waited for credit of their client, over all streams.")),
        metrics_(metrics),
        streams_(metrics->GetGauge("distill_teacher_streams", "Open feature streams.")),
        budget_used_(metrics->GetGauge("distill_teacher_memory_budget_used_bytes",
                                       "Pixels and unsent features of all streams.")),
        slow_clients_(metrics->GetCounter("distill_teacher_slow_clients_total",
                                          "Streams that were ended because they took none of their features while "
                                          "others waited for the memory.")),
        rpc_(this),
        watch_([this] { Watch(); }) {
    metrics->GetGauge("distill_teacher_memory_budget_bytes", "Most bytes of pixels and unsent features of all streams.")
        .Set(static_cast<double>(options.memory_budget));
  }
  ~FeatureServiceImpl() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    watch_.join();
  }

  grpc::Service* service() override { return &rpc_; }
  void SetEngine(TeacherEngine* engine) override { engine_.store(engine, std::memory_order_release); }
  void Drain() override;
  bool WaitIdle(std::chrono::milliseconds timeout) override {
    absl::MutexLock lock(&mutex_);
    return AwaitFor(&mutex_,
                    absl::Condition(
                        +[](std::set<Stream*>* live) { return live->empty(); }, &live_),
                    absl::FromChrono(timeout));
  }

  // Null while loading.
  TeacherEngine* engine() const { return engine_.load(std::memory_order_acquire); }
  bool draining() const { return draining_.load(); }
  // False: there are as many streams as may be; it is counted all the same, until Leave().
  bool Join(Stream* stream);
  void Leave(Stream* stream);
  // Memory was given back: those whose turn it is try again. Under no lock.
  void Freed();
  void CountRequest(const std::string& model, const Status& status) {
    metrics_
        ->GetCounter("distill_teacher_requests_total", "Batches that ended, by how.",
                     {{"model", model}, {"result", std::string(ResultLabel(status))}})
        .Add();
  }

  const Options options;
  MemoryBudget budget;
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

  // The thread "feature-watch": ends streams that never open, and those that hold what others wait for.
  void Watch();
  std::vector<std::shared_ptr<Stream>> Live();
  // The stream of that id; null when it has left.
  std::shared_ptr<Stream> Find(uint64_t id);

  MetricsRegistry* const metrics_;  // not owned: outlives the service
  Gauge& streams_;
  Gauge& budget_used_;
  Counter& slow_clients_;
  // Written once, read by every stream: null while loading.
  std::atomic<TeacherEngine*> engine_{nullptr};
  // Only ever goes to true; streams read it under their own lock and are poked after it was set.
  std::atomic<bool> draining_{false};
  std::atomic<uint64_t> next_stream_id_{1};
  absl::Mutex mutex_;
  std::set<Stream*> live_ ABSL_GUARDED_BY(mutex_);  // a stream leaves before it is destroyed
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // One thread at a time pokes; what is freed meanwhile makes it look once more.
  bool poking_ ABSL_GUARDED_BY(mutex_) = false;
  bool freed_again_ ABSL_GUARDED_BY(mutex_) = false;
  Rpc rpc_;
  std::thread watch_;  // joined by the destructor; last: it reads all of the above
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
    const bool room = service->Join(stream.get());
    if (service->draining()) {
      stream->End(Draining());
    } else if (!room) {
      stream->End(absl::UnavailableError(StrCat("this teacher has ", service->options.max_streams,
                                                " streams open, the most allowed; take another one, or try again")));
    } else if (service->engine() == nullptr) {
      stream->End(absl::UnavailableError("this teacher is still loading its models; try again, or take another one"));
    } else {
      stream->StartRead(&stream->received_);
    }
    return stream.get();
  }
  Stream(FeatureServiceImpl* service, uint64_t id, std::string peer)
      : service_(service), id_(id), engine_(service->engine()), peer_(std::move(peer)) {}

  // The service drains, or it is this stream's turn for memory; called with `this` kept alive by the caller.
  void Poke() { Pump(); }
  uint64_t id() const { return id_; }
  // Ends the stream when it was made before `before` and has not opened.
  void EndUnlessOpened(Clock::time_point before) {
    {
      absl::MutexLock lock(&mutex_);
      if (opened_ || created_ >= before) return;
    }
    End(absl::DeadlineExceededError("no `open` came in time"));
  }
  // When the client last took something, if memory is held until it takes features, or grants credit.
  std::optional<Clock::time_point> holding_since() {
    absl::MutexLock lock(&mutex_);
    if (end_status_) return std::nullopt;
    if (answers_.empty() && (waiting_.empty() || CoveredLocked(waiting_.front()))) return std::nullopt;
    return taken_at_;
  }
  void EndForOthers() {
    End(
        absl::UnavailableError("this client takes none of its features, and others wait for the memory they need; open "
                               "a new stream when it can read and grant credit"));
  }

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
      taken_at_ = Clock::now();
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
    bool submitted = false;    // in to_submit_ or given to the engine, whose callback has not come
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

  static Status CheckName(std::string_view what, const std::string& text) {
    if (text.size() <= kMaxNameBytes) return OkStatus();
    return absl::InvalidArgumentError(
        StrCat("`open`: ", what, " has ", text.size(), " bytes; at most ", kMaxNameBytes, " are allowed"));
  }

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
    for (const auto& [name, text] : {std::pair("model", &open.model()), std::pair("digest", &open.digest()),
                                     std::pair("client", &open.client())}) {
      DISTILL_RETURN_IF_ERROR(CheckName(name, *text));
    }
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
      DISTILL_RETURN_IF_ERROR(CheckName("tap", asked.tap()));
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
    if (unanswered_.empty()) taken_at_ = Clock::now();
    unanswered_[batch.request_id()].pixel_bytes = pixels.size;
    waiting_bytes_ += pixels.size;
    waiting_.push_back({batch.request_id(),
                        ImageBatch{batch.shape(0), batch.shape(1), batch.shape(2), batch.shape(3), std::move(pixels)},
                        answer_bytes});
    return OkStatus();
  }

  // Why a batch is refused in band. OK: its pixels are taken out of the budget.
  Status CheckBatchLocked(const v1::BatchRequest& batch, const Buffer& pixels, const ModelSpec& spec)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (service_->draining()) return Draining();
    const FeatureService::Options& limits = service_->options;
    if (batch.shape_size() != 4) {
      return absl::InvalidArgumentError(
          StrCat("a batch shape of ", batch.shape_size(), " axes; it must have four: N, C, H, W"));
    }
    const std::string shape = StrCat("[", absl::StrJoin(batch.shape(), ", "), "]");
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
    if (!service_->budget.TakePixels(bytes, Clock::now())) {
      return absl::UnavailableError(StrCat("the memory for pixels and features of all streams together, ",
                                           service_->budget.bytes(),
                                           " bytes, is full; take another teacher, or wait "
                                           "for answers"));
    }
    return OkStatus();
  }

  void HandleCancel(uint64_t request_id) {
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
        if (answers_.empty()) taken_at_ = Clock::now();
        CountUnsentLocked(static_cast<int64_t>(bytes) - static_cast<int64_t>(entry->second.reserved));
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
    service_->budget.Forget(id_);
    in_row_ = false;
    freed_ = true;
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

  // Starts whatever may start: submits waiting batches, writes the next message, or finishes the stream. Then others
  // get the memory that this freed.
  void Pump() {
    bool submit = false;
    bool write = false;
    bool abandon = false;
    bool freed = false;
    std::optional<Status> finish;
    {
      absl::MutexLock lock(&mutex_);
      if (!finished_) {
        if (!end_status_) AdmitLocked();
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
        submit = !to_submit_.empty() && !submitting_;
        if (submit) submitting_ = true;
      }
      freed = std::exchange(freed_, false);
    }
    if (submit) SubmitAll();
    if (write) StartWrite(&outgoing_);
    if (abandon && engine_ != nullptr) engine_->CancelClient(id_);
    if (finish) {
      LogInfo("stream closed", {{"client", ClientName()},
                                {"peer", peer_},
                                {"code", absl::StatusCodeToString(finish->code())},
                                {"reason", finish->message()}});
      Finish(ToGrpc(*finish));
    }
    if (freed) service_->Freed();
  }

  // Gives what was admitted to the engine, in order: one thread at a time does so, the one that set `submitting_`. A
  // cancel, or the stream's end, that comes while a request is on its way finds nothing in the engine, and is repeated.
  void SubmitAll() {
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
      // The callback holds the stream: it may come after OnDone.
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

  // The client has granted credit for this answer and all that are under way.
  bool CoveredLocked(const Waiting& next) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return credit_ >= next.answer_bytes && credit_ - next.answer_bytes >= unsent_bytes_;
  }

  void AdmitLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!waiting_.empty()) {
      Waiting& next = waiting_.front();
      if (unsent_bytes_ > 0 && unsent_bytes_ + next.answer_bytes > service_->options.max_unsent_bytes) break;
      if (!service_->budget.TakeFeatures(id_, next.answer_bytes, CoveredLocked(next), Clock::now())) {
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
      out.model = model_index_;
      out.client = id_;
      out.tag = next.request_id;
      out.taps = taps_;
      out.images = std::move(next.images);
      out.exclusive = exclusive_;
      to_submit_.push_back(std::move(out));
      waiting_.pop_front();
    }
    // Nothing that it could use its turn for.
    if (std::exchange(in_row_, false)) {
      service_->budget.Forget(id_);
      freed_ = true;
    }
  }

  // Moves the bytes of features under way, here and in the budget.
  void CountUnsentLocked(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    unsent_bytes_ += static_cast<uint64_t>(bytes);
    service_->budget.AddFeatures(bytes);
    if (bytes < 0) freed_ = true;
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
    CountUnsentLocked(-static_cast<int64_t>(size));
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
    service_->budget.GivePixels(entry->second.pixel_bytes);
    freed_ = true;
    CountUnsentLocked(-static_cast<int64_t>(entry->second.reserved));
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
  const Clock::time_point created_ = Clock::now();
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
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);           // not yet admitted
  std::deque<TeacherRequest> to_submit_ ABSL_GUARDED_BY(mutex_);  // admitted, not yet given to the engine
  bool submitting_ ABSL_GUARDED_BY(mutex_) = false;               // a thread is in SubmitAll()
  bool in_row_ ABSL_GUARDED_BY(mutex_) = false;                   // waits for its turn in the budget
  bool freed_ ABSL_GUARDED_BY(mutex_) = false;                    // memory that others may wait for, not yet told
  std::deque<Answer> answers_ ABSL_GUARDED_BY(mutex_);            // computed, in the order of sending
  std::deque<Failure> failures_ ABSL_GUARDED_BY(mutex_);          // go before answers: they need no credit
  std::optional<Clock::time_point> credit_wait_since_ ABSL_GUARDED_BY(mutex_);
  // When the client last took a message, or an answer was there for it to take.
  Clock::time_point taken_at_ ABSL_GUARDED_BY(mutex_) = created_;
};

bool FeatureServiceImpl::Join(Stream* stream) {
  streams_.Add(1);
  absl::MutexLock lock(&mutex_);
  live_.insert(stream);
  return live_.size() <= options.max_streams;
}

void FeatureServiceImpl::Leave(Stream* stream) {
  streams_.Add(-1);
  absl::MutexLock lock(&mutex_);
  live_.erase(stream);
}

// A stream in live_ is held by its own self_: it leaves before it lets go.
std::vector<std::shared_ptr<Stream>> FeatureServiceImpl::Live() {
  absl::MutexLock lock(&mutex_);
  std::vector<std::shared_ptr<Stream>> live;
  for (Stream* stream : live_) live.push_back(stream->shared_from_this());
  return live;
}

std::shared_ptr<Stream> FeatureServiceImpl::Find(uint64_t id) {
  absl::MutexLock lock(&mutex_);
  for (Stream* stream : live_) {
    if (stream->id() == id) return stream->shared_from_this();
  }
  return nullptr;
}

void FeatureServiceImpl::Drain() {
  draining_.store(true);
  for (const auto& stream : Live()) stream->Poke();
}

void FeatureServiceImpl::Freed() {
  {
    absl::MutexLock lock(&mutex_);
    freed_again_ = true;
    if (poking_) return;
    poking_ = true;
  }
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (!std::exchange(freed_again_, false)) {
        poking_ = false;
        return;
      }
    }
    for (uint64_t id : budget.NextWaiting()) {
      if (const std::shared_ptr<Stream> next = Find(id)) {
        next->Poke();
      } else {
        budget.Forget(id);
      }
    }
  }
}

void FeatureServiceImpl::Watch() {
  pthread_setname_np(pthread_self(), "feature-watch");
  const auto period =
      std::min({std::chrono::milliseconds(1000), options.open_timeout / 4, options.slow_client_timeout / 4});
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (AwaitFor(&mutex_, absl::Condition(&stopping_), absl::FromChrono(period))) return;
    }
    budget_used_.Set(static_cast<double>(budget.used()));
    const Clock::time_point now = Clock::now();
    const std::vector<std::shared_ptr<Stream>> live = Live();
    for (const auto& stream : live) stream->EndUnlessOpened(now - options.open_timeout);
    const std::optional<Clock::time_point> waiting = budget.waiting_since();
    if (!waiting.has_value() || now - *waiting < options.slow_client_timeout) continue;
    // One at a time, the one that has taken nothing for longest: what it frees may be enough.
    std::shared_ptr<Stream> slowest;
    Clock::time_point since = now - options.slow_client_timeout;
    for (const auto& stream : live) {
      const std::optional<Clock::time_point> holding = stream->holding_since();
      if (!holding.has_value() || *holding > since) continue;
      since = *holding;
      slowest = stream;
    }
    if (slowest == nullptr) continue;
    slow_clients_.Add();
    slowest->EndForOthers();
  }
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
