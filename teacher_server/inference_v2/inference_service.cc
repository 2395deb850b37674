#include "teacher_server/inference_v2/inference_service.h"

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <string>
#include <vector>

#include "absl/strings/str_join.h"
#include "common/rpc/channel.h"
#include "common/wire/limits.h"
#include "inference/inference.grpc.pb.h"
#include "teacher_server/inference_v2/infer_calls.h"
#include "teacher_server/inference_v2/infer_statistics.h"
#include "teacher_server/inference_v2/served_model.h"

namespace distill {
namespace {

constexpr char kPlatform[] = "distillery";

using Rpc = inference::GRPCInferenceService;
using Handled = Rpc::WithCallbackMethod_ServerLive<Rpc::WithCallbackMethod_ServerReady<
    Rpc::WithCallbackMethod_ModelReady<Rpc::WithCallbackMethod_ServerMetadata<Rpc::WithCallbackMethod_ModelMetadata<
        Rpc::WithCallbackMethod_ModelConfig<Rpc::WithCallbackMethod_ModelStatistics<
            Rpc::WithRawCallbackMethod_ModelInfer<Rpc::WithRawCallbackMethod_ModelStreamInfer<Rpc::Service>>>>>>>>>;

void AddShape(const std::vector<uint32_t>& shape, google::protobuf::RepeatedField<int64_t>* to) {
  to->Add(shape.begin(), shape.end());
}
std::vector<uint32_t> ImageShape(const ModelSpec& spec) {
  return {spec.in_channels, spec.image_height, spec.image_width};
}

void ToMetadata(const TeacherModel& model, inference::ModelMetadataResponse* to) {
  to->set_name(model.served.name);
  to->add_versions(kModelVersion);
  to->set_platform(kPlatform);
  const auto add = [](const std::string& name, const char* datatype, const std::vector<uint32_t>& shape, auto* tensor) {
    tensor->set_name(name);
    tensor->set_datatype(datatype);
    tensor->add_shape(-1);
    AddShape(shape, tensor->mutable_shape());
  };
  add(kInputName, "UINT8", ImageShape(model.served.spec), to->add_inputs());
  for (const ModelOutput& output : OutputsOf(model)) add(output.name, "FP32", output.shape, to->add_outputs());
}

void ToConfig(const TeacherModel& model, inference::ModelConfig* to) {
  const ModelSpec& spec = model.served.spec;
  to->set_name(model.served.name);
  to->set_platform(kPlatform);
  to->set_backend(kPlatform);
  to->set_max_batch_size(kMaxBatchImages);
  inference::ModelInput* const input = to->add_input();
  input->set_name(kInputName);
  input->set_data_type(inference::TYPE_UINT8);
  AddShape(ImageShape(spec), input->mutable_dims());
  for (const ModelOutput& served : OutputsOf(model)) {
    inference::ModelOutput* const output = to->add_output();
    output->set_name(served.name);
    output->set_data_type(inference::TYPE_FP32);
    AddShape(served.shape, output->mutable_dims());
  }
  to->mutable_dynamic_batching();
  to->mutable_model_transaction_policy();
  auto& parameters = *to->mutable_parameters();
  parameters["model_digest"].set_string_value(model.served.digest);
  parameters["mean"].set_string_value(absl::StrJoin(spec.mean, " "));
  parameters["std"].set_string_value(absl::StrJoin(spec.std, " "));
}

void ToProto(const std::string& model, const InferStatistics::Totals& totals, inference::ModelStatistics* to) {
  to->set_name(model);
  to->set_version(kModelVersion);
  to->set_last_inference(totals.last_unix_ms);
  to->set_inference_count(totals.images);
  to->set_execution_count(totals.answered);
  const auto set = [](uint64_t count, InferStatistics::Duration time, inference::StatisticDuration* duration) {
    duration->set_count(count);
    duration->set_ns(time.count());
  };
  inference::InferStatistics* const infer = to->mutable_inference_stats();
  set(totals.answered, totals.times.total, infer->mutable_success());
  set(totals.failed, totals.failed_time, infer->mutable_fail());
  set(totals.answered, totals.times.queue, infer->mutable_queue());
  set(totals.answered, totals.times.input, infer->mutable_compute_input());
  set(totals.answered, totals.times.infer, infer->mutable_compute_infer());
  set(totals.answered, totals.times.output, infer->mutable_compute_output());
}

class InferenceService final : public Handled {
 public:
  using Context = grpc::CallbackServerContext;
  using Reactor = grpc::ServerUnaryReactor;

  explicit InferenceService(StreamSet* streams) : streams_(streams) {}

  Reactor* ServerLive(Context* context, const inference::ServerLiveRequest* /*request*/,
                      inference::ServerLiveResponse* response) override {
    response->set_live(true);
    return End(context, OkStatus());
  }
  Reactor* ServerReady(Context* context, const inference::ServerReadyRequest* /*request*/,
                       inference::ServerReadyResponse* response) override {
    response->set_ready(Ready());
    return End(context, OkStatus());
  }
  Reactor* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                      inference::ModelReadyResponse* response) override {
    response->set_ready(Ready() && Find(request->name(), request->version()).ok());
    return End(context, OkStatus());
  }
  Reactor* ServerMetadata(Context* context, const inference::ServerMetadataRequest* /*request*/,
                          inference::ServerMetadataResponse* response) override {
    response->set_name(kPlatform);
    response->set_version(DISTILL_VERSION);
    for (const char* extension : {"model_configuration", "statistics", "parameters", "binary_tensor_data"}) {
      response->add_extensions(extension);
    }
    return End(context, OkStatus());
  }
  Reactor* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                         inference::ModelMetadataResponse* response) override {
    const StatusOr<size_t> model = Find(request->name(), request->version());
    if (model.ok()) ToMetadata(Model(*model), response);
    return End(context, model.status());
  }
  Reactor* ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                       inference::ModelConfigResponse* response) override {
    const StatusOr<size_t> model = Find(request->name(), request->version());
    if (model.ok()) ToConfig(Model(*model), response->mutable_config());
    return End(context, model.status());
  }
  Reactor* ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                           inference::ModelStatisticsResponse* response) override {
    if (request->name().empty()) {
      if (streams_->engine() == nullptr) return End(context, Loading());
      for (size_t i = 0; i < streams_->engine()->models().size(); ++i) AddStatistics(i, response);
      return End(context, OkStatus());
    }
    const StatusOr<size_t> model = Find(request->name(), request->version());
    if (model.ok()) AddStatistics(*model, response);
    return End(context, model.status());
  }
  Reactor* ModelInfer(Context* context, const grpc::ByteBuffer* request, grpc::ByteBuffer* response) override {
    // gRPC's own object, made for this call, and nobody else reads it.
    return StartModelInfer(streams_, &statistics_, context, const_cast<grpc::ByteBuffer*>(request), response);
  }
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(Context* context) override {
    return StartModelStreamInfer(streams_, &statistics_, context);
  }

 private:
  static Status Loading() { return absl::UnavailableError("this teacher is still loading its models; try again"); }
  static Reactor* End(Context* context, const Status& status) {
    Reactor* const reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(status));
    return reactor;
  }
  bool Ready() const { return streams_->engine() != nullptr && !streams_->draining(); }
  StatusOr<size_t> Find(const std::string& name, const std::string& version) const {
    if (streams_->engine() == nullptr) return Loading();
    return FindServedModel(streams_->engine()->models(), name, version);
  }
  // REQUIRES: the engine is there.
  const TeacherModel& Model(size_t model) const { return streams_->engine()->models()[model]; }
  void AddStatistics(size_t model, inference::ModelStatisticsResponse* response) const {
    ToProto(Model(model).served.name, statistics_.Of(model), response->add_model_stats());
  }

  StreamSet* const streams_;  // not owned: outlives the RpcServer, hence all calls
  InferStatistics statistics_;
};

}  // namespace

std::unique_ptr<grpc::Service> CreateInferenceService(StreamSet* streams) {
  return std::make_unique<InferenceService>(streams);
}

}  // namespace distill
