#include "teacher_server/inference_v2/infer_calls.h"

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/channel.h"
#include "teacher_server/inference_v2/infer_response.h"
#include "teacher_server/inference_v2/infer_task.h"
#include "teacher_server/inference_v2/inference_service.h"

namespace distill {
namespace {

// Cancels a call that may be over by then: its context is there until its reactor's OnDone().
class CallCanceller {
 public:
  explicit CallCanceller(grpc::CallbackServerContext* context) : context_(context) {}
  void Cancel() {
    absl::MutexLock lock(&mutex_);
    if (context_ != nullptr) context_->TryCancel();
  }
  // From OnDone().
  void IsOver() {
    absl::MutexLock lock(&mutex_);
    context_ = nullptr;
  }

 private:
  absl::Mutex mutex_;
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mutex_);  // not owned; null when the call is over
};

class UnaryCall final : public grpc::ServerUnaryReactor, public InferTask {
 public:
  UnaryCall(StreamSet* streams, InferStatistics* statistics, grpc::CallbackServerContext* context,
            grpc::ByteBuffer* response)
      : InferTask(streams, statistics), canceller_(context), response_(response) {}

  void OnCancel() override { GiveUp(); }
  void OnDone() override {
    canceller_.IsOver();
    if (has_answer_) {
      Taken();  // and Done() deletes it
    } else {
      Leave();
      delete this;
    }
  }

 private:
  void Answer(grpc::ByteBuffer message) override {
    has_answer_ = true;
    response_->Swap(&message);
    ServerUnaryReactor::Finish(grpc::Status::OK);
  }
  void Fail(const Status& status) override { ServerUnaryReactor::Finish(ToGrpc(status)); }
  void Done() override { delete this; }
  void BreakOff() override { canceller_.Cancel(); }

  CallCanceller canceller_;
  grpc::ByteBuffer* const response_;  // gRPC's, as long as the call lasts
  bool has_answer_ = false;           // set before the reactor's Finish(), read after
};

// A request is taken in, computed and answered; the answers go out in the order of the requests. The object lives until
// gRPC is done with the call and every request has ended.
class StreamCall final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                         public std::enable_shared_from_this<StreamCall> {
 public:
  StreamCall(StreamSet* streams, InferStatistics* statistics, grpc::CallbackServerContext* context)
      : streams_(streams), statistics_(statistics), peer_(context->peer()), canceller_(context) {}

  void Start() {
    self_ = shared_from_this();
    StartRead(&received_);
  }

  void OnReadDone(bool ok) override {
    if (ok) TakeIn();
    {
      absl::MutexLock lock(&mutex_);
      reading_ = false;
      if (!ok) client_is_done_ = true;
    }
    Pump(/*may_read=*/true);
  }
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override {
    canceller_.IsOver();
    self_.reset();  // perhaps the last
  }

 private:
  // One request. Keeps itself, and the call, until it has ended.
  class Request final : public InferTask, public std::enable_shared_from_this<Request> {
   public:
    Request(std::shared_ptr<StreamCall> call, StreamSet* streams, InferStatistics* statistics)
        : InferTask(streams, statistics), call_(std::move(call)) {}
    void Begin(const grpc::ByteBuffer& message, const std::string& peer) {
      self_ = shared_from_this();
      Start(message, peer, /*streamed=*/true);
    }
    // Its answer went, or never will. REQUIRES: it has one, and Begin() has returned.
    void IsSent() {
      const auto self = shared_from_this();
      if (has_answer_) {
        Taken();
      } else {
        Leave();
        self_.reset();
      }
    }

    // Of the call, under its lock.
    bool begun = false, ready = false;
    grpc::ByteBuffer answer;

   private:
    void Answer(grpc::ByteBuffer message) override {
      has_answer_ = true;
      call_->IsReady(this, std::move(message));
    }
    void Fail(const Status& status) override { call_->IsReady(this, EncodeInferError(id(), status)); }
    void Done() override { self_.reset(); }
    void BreakOff() override { call_->canceller_.Cancel(); }

    const std::shared_ptr<StreamCall> call_;
    std::shared_ptr<Request> self_;
    bool has_answer_ = false;  // set before IsReady(), read by IsSent()
  };

  void TakeIn();
  void IsReady(Request* request, grpc::ByteBuffer answer);
  // Starts what may start. `may_read`: only gRPC's own callbacks of reads and writes may start a read: the call is not
  // over before they return.
  void Pump(bool may_read);

  StreamSet* const streams_;           // not owned: outlive the RpcServer, hence all calls
  InferStatistics* const statistics_;  // not owned: the same
  const std::string peer_;
  CallCanceller canceller_;
  grpc::ByteBuffer received_;         // gRPC's while a read is under way
  std::shared_ptr<StreamCall> self_;  // until OnDone()

  absl::Mutex mutex_;
  bool reading_ ABSL_GUARDED_BY(mutex_) = true;
  bool client_is_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;                     // Finish was, or is about to be called
  std::shared_ptr<Request> writing_ ABSL_GUARDED_BY(mutex_);          // whose answer is gRPC's
  std::deque<std::shared_ptr<Request>> row_ ABSL_GUARDED_BY(mutex_);  // the others, in the order of the requests
};

void StreamCall::TakeIn() {
  const auto request = std::make_shared<Request>(shared_from_this(), streams_, statistics_);
  {
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    row_.push_back(request);
  }
  request->Begin(received_, peer_);
  received_.Clear();
  bool give_up = false, sent = false;
  {
    absl::MutexLock lock(&mutex_);
    request->begun = true;
    // The call ended meanwhile, and left this one to whoever began it.
    give_up = cancelled_ || finished_;
    sent = finished_ && request->ready;
  }
  if (sent) {
    request->IsSent();
  } else if (give_up) {
    request->GiveUp();
  }
}

void StreamCall::IsReady(Request* request, grpc::ByteBuffer answer) {
  bool sent = false;
  {
    absl::MutexLock lock(&mutex_);
    request->answer.Swap(&answer);
    request->ready = true;
    sent = finished_ && request->begun;
  }
  if (sent) {
    request->IsSent();
  } else {
    Pump(/*may_read=*/false);
  }
}

void StreamCall::OnWriteDone(bool ok) {
  std::shared_ptr<Request> sent;
  {
    absl::MutexLock lock(&mutex_);
    sent = std::exchange(writing_, nullptr);
    if (!ok) cancelled_ = true;
  }
  sent->answer.Clear();
  sent->IsSent();
  Pump(/*may_read=*/true);
}

void StreamCall::OnCancel() {
  std::vector<std::shared_ptr<Request>> under_way;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    for (const auto& request : row_) {
      if (request->begun) under_way.push_back(request);
    }
  }
  for (const auto& request : under_way) request->GiveUp();
  Pump(/*may_read=*/false);
}

void StreamCall::Pump(bool may_read) {
  const auto self = shared_from_this();
  std::shared_ptr<Request> write;
  bool read = false;
  std::optional<Status> finish;
  std::deque<std::shared_ptr<Request>> left;
  {
    absl::MutexLock lock(&mutex_);
    if (finished_) return;
    if (writing_ == nullptr && !cancelled_ && !row_.empty() && row_.front()->begun && row_.front()->ready) {
      write = writing_ = std::move(row_.front());
      row_.pop_front();
    }
    if (writing_ == nullptr) {
      if (cancelled_) {
        finish = absl::CancelledError("the client went away");
      } else if (row_.empty() && client_is_done_) {
        finish = OkStatus();
      } else if (row_.empty() && streams_->draining()) {
        finish = absl::UnavailableError("this teacher is shutting down; ask another one");
      }
    }
    if (finish.has_value()) {
      finished_ = true;
      left.swap(row_);
      // Those that have not begun, or have no answer yet, find that the call is over.
      std::erase_if(left, [](const auto& request) { return !request->begun || !request->ready; });
    } else if (may_read && !reading_ && !client_is_done_ && !cancelled_ &&
               row_.size() + (writing_ != nullptr ? 1 : 0) < kMostAhead) {
      read = reading_ = true;
    }
  }
  if (write != nullptr) StartWrite(&write->answer);
  if (read) StartRead(&received_);
  for (const auto& request : left) request->IsSent();
  if (finish.has_value()) ServerBidiReactor::Finish(ToGrpc(*finish));
}

}  // namespace

grpc::ServerUnaryReactor* StartModelInfer(StreamSet* streams, InferStatistics* statistics,
                                          grpc::CallbackServerContext* context, grpc::ByteBuffer* request,
                                          grpc::ByteBuffer* response) {
  UnaryCall* const call = new UnaryCall(streams, statistics, context, response);  // deletes itself
  call->Start(*request, context->peer(), /*streamed=*/false);
  request->Clear();  // gRPC would keep it as long as the call lasts
  return call;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* StartModelStreamInfer(
    StreamSet* streams, InferStatistics* statistics, grpc::CallbackServerContext* context) {
  const auto call = std::make_shared<StreamCall>(streams, statistics, context);
  call->Start();
  return call.get();
}

}  // namespace distill
