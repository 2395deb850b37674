// One inference request, from the bytes of its message to the bytes of its answer: what ModelInfer and ModelStreamInfer
// share. Each request is a stream of its own among the teacher's (stream_core.h): one batch, one whole answer. So it
// has its share of the memory, its turn at the model, and its end when the server drains.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_TASK_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_TASK_H_

#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/status.h"
#include "teacher_server/inference_v2/infer_request.h"
#include "teacher_server/inference_v2/infer_response.h"
#include "teacher_server/inference_v2/infer_statistics.h"
#include "teacher_server/stream_core.h"
#include "teacher_server/stream_set.h"

namespace distill {

// clang-format off
//   new       --Start-->   running   the request was read and given to the teacher
//   running   --Answer-->  answered  the derived class sends the answer, and then calls Taken(); Done() follows
//   running   --Fail-->    failed    it failed; the derived class says so to the client, and then calls Leave()
// clang-format on
//
// Thread-safe. Answer(), Fail() and Done() are called by any thread, under no lock, the first two perhaps before
// Start() has returned. The object must live until Done() or, if it fails, Leave().
class InferTask : public StreamTransport {
 public:
  // Neither is owned: both outlive the task.
  InferTask(StreamSet* streams, InferStatistics* statistics) : streams_(streams), statistics_(statistics) {}

  // Once. `message`: a ModelInferRequest. `client`: for logs.
  void Start(const grpc::ByteBuffer& message, const std::string& client, bool streamed);
  // The client wants it no more. After Start() has returned.
  void GiveUp();

 protected:
  virtual void Answer(grpc::ByteBuffer message) = 0;
  virtual void Fail(const Status& status) = 0;
  // The answer went, or never will.
  void Taken();
  virtual void Done() = 0;
  // The teacher's streams are without this one.
  void Leave();
  // Of the request; "" when it could not be read. After Answer() or Fail() was called.
  const std::string& id() const { return header_.id; }

 private:
  using Clock = std::chrono::steady_clock;

  void Send(StreamMessage message) final;
  void Finish(const Status& status) final;
  void Ended(Status status);
  StatusOr<InferRequest> Read(const grpc::ByteBuffer& message);
  std::shared_ptr<StreamCore> core();

  StreamSet* const streams_;
  InferStatistics* const statistics_;
  const Clock::time_point arrived_ = Clock::now();
  // Set by Start() before the stream is told of the request; then only read.
  InferHeader header_;
  std::optional<size_t> model_;  // none: unknown
  uint32_t images_ = 0;
  Clock::duration reading_{0};
  // Set by Send(), read by Finish(), which the stream calls later.
  bool answered_ = false;
  Status error_;

  absl::Mutex mutex_;
  std::shared_ptr<StreamCore> core_ ABSL_GUARDED_BY(mutex_);
  // How the stream ended before Start() had it in hand.
  std::optional<Status> ended_early_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_TASK_H_
