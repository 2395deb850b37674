#include "teacher_server/inference_v2/infer_task.h"

#include <limits>
#include <utility>
#include <vector>

#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "common/wire/proto_codec.h"
#include "inference/inference.pb.h"
#include "teacher_server/stream_limits.h"

namespace distill {
namespace {

// Of a message beside its raw tensors: names, parameters, tensors in `contents`.
constexpr size_t kMostHeaderBytes = kMaxMessageBytes;
// There is one input; a few more than that are read, so that the error can say how many there are.
constexpr size_t kMostRawInputs = 16;
// What a whole answer may have: the rest of the largest message is for names and shapes.
constexpr uint64_t kMostRawAnswer = kMaxInferenceMessageBytes - (uint64_t{1} << 20);
constexpr uint64_t kMostTypedAnswer = kMaxMessageBytes;

InferStatistics::Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<InferStatistics::Duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

StatusOr<InferRequest> InferTask::Read(const grpc::ByteBuffer& message) {
  TeacherEngine* const engine = streams_->engine();
  if (engine == nullptr) return absl::UnavailableError("this teacher is still loading its models; try again");
  inference::ModelInferRequest proto;
  std::vector<ScatteredBuffer> raw;
  if (const Status status = DecodeWithPayloads(message, inference::ModelInferRequest::kRawInputContentsFieldNumber,
                                               {kMostRawInputs, kMostHeaderBytes}, &proto, &raw);
      !status.ok()) {
    return Annotate(status, "ModelInferRequest");
  }
  header_.id = proto.id();
  for (size_t i = 0; i < engine->models().size(); ++i) {
    if (engine->models()[i].served.name == proto.model_name()) model_ = i;
  }
  return ReadInferRequest(proto, raw, engine->models());
}

void InferTask::Start(const grpc::ByteBuffer& message, const std::string& client, bool streamed) {
  StatusOr<InferRequest> request = Read(message);
  if (!request.ok()) {
    if (model_.has_value()) {
      streams_->CountRequest(streams_->engine()->models()[*model_].served.name, request.status());
    }
    Ended(request.status());
    return;
  }
  header_.model = request->open.model;
  header_.outputs = request->outputs;
  header_.typed = request->typed;
  header_.streamed = streamed;
  images_ = request->shape[0];
  reading_ = Clock::now() - arrived_;
  const std::shared_ptr<StreamCore> core = streams_->Add(
      client, this,
      {.whole_answers = true, .max_answer_bytes = request->typed ? kMostTypedAnswer : kMostRawAnswer, .logged = false});
  std::optional<Status> ended_early;
  {
    absl::MutexLock lock(&mutex_);
    core_ = core;
    ended_early = ended_early_;
  }
  if (ended_early.has_value()) {
    Ended(*ended_early);
    return;
  }
  // What a whole answer has is bounded by memory alone.
  request->open.credit_bytes = std::numeric_limits<uint64_t>::max();
  request->open.client = client.substr(0, kMaxNameBytes);
  core->Open(request->open);
  core->Batch(/*request_id=*/1, request->shape, std::move(request->pixels));
  core->ClientIsDone();
}

std::shared_ptr<StreamCore> InferTask::core() {
  absl::MutexLock lock(&mutex_);
  return core_;
}

void InferTask::GiveUp() {
  if (const auto core = this->core()) core->End(absl::CancelledError("the client gave the request up"));
}

void InferTask::Taken() {
  // Done() may come before this returns, and with it the end of this object.
  if (const auto core = this->core()) core->Sent();
}

void InferTask::Leave() {
  if (const auto core = this->core()) streams_->Leave(*core);
}

void InferTask::Send(StreamMessage message) {
  if (!message.error.ok()) {
    error_ = std::move(message.error);
    Taken();  // Finish() comes
    return;
  }
  answered_ = true;
  const Clock::time_point start = Clock::now();
  grpc::ByteBuffer encoded = EncodeInferResponse(header_, message.whole);
  const Clock::time_point end = Clock::now();
  statistics_->Answered(*model_, images_,
                        {.total = end - arrived_,
                         .input = reading_,
                         .queue = FromSeconds(message.whole.queue_seconds),
                         .infer = FromSeconds(message.whole.compute_seconds),
                         .output = end - start});
  Answer(std::move(encoded));
}

void InferTask::Finish(const Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    if (core_ == nullptr) {
      ended_early_ = status;
      return;
    }
  }
  if (answered_) {
    Leave();
    Done();
    return;
  }
  Ended(error_.ok() ? status : error_);
}

void InferTask::Ended(Status status) {
  if (status.ok()) status = absl::InternalError("the request ended without an answer");
  if (model_.has_value() && status.code() != StatusCode::kCancelled) {
    statistics_->Failed(*model_, Clock::now() - arrived_);
  }
  Fail(status);
}

}  // namespace distill
