// The Open Inference Protocol over real gRPC on loopback, with clients of generated code. NVIDIA's own client is in
// tritonclient_test.py.
#include "teacher_server/inference_v2/inference_service.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "inference/inference.grpc.pb.h"
#include "teacher_server/feature_service.h"
#include "tests/teacher_server/channel_mean_engine.h"
#include "tests/teacher_server/feature_service_fixture.h"

namespace distill::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Stub = inference::GRPCInferenceService::Stub;

// For `outputs` of `images`, raw.
inference::ModelInferRequest Ask(const ImageBatch& images, const std::vector<std::string>& outputs,
                                 const std::string& id = "") {
  inference::ModelInferRequest request;
  request.set_model_name("means");
  request.set_id(id);
  auto* const input = request.add_inputs();
  input->set_name("images");
  input->set_datatype("UINT8");
  for (uint32_t axis : {images.n, images.c, images.h, images.w}) input->add_shape(axis);
  for (const std::string& output : outputs) request.add_outputs()->set_name(output);
  request.add_raw_input_contents(std::string(View(images.pixels)));
  return request;
}

class InferenceServiceTest : public ::testing::Test {
 protected:
  // `held`: the engine computes nothing before engine_->Release().
  void Serve(bool held = false, StreamLimits limits = {}, bool with_engine = true) {
    engine_ = std::make_unique<ChannelMeanEngine>(kChannels, kSide, held);
    streams_ = std::make_unique<StreamSet>(limits, &metrics_);
    features_ = CreateFeatureService(streams_.get());
    inference_ = CreateInferenceService(streams_.get());
    if (with_engine) streams_->SetEngine(engine_.get());
    StatusOr<std::unique_ptr<RpcServer>> server =
        RpcServer::Start({.max_message_bytes = kMaxInferenceMessageBytes}, {features_.get(), inference_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = Connect();
  }
  std::unique_ptr<Stub> Connect() {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    channel_ = grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(), arguments);
    return inference::GRPCInferenceService::NewStub(channel_);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop(std::chrono::milliseconds(0));
    if (engine_ != nullptr) engine_->Stop();
  }
  static void Deadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + kPatience);
  }
  grpc::Status Infer(const inference::ModelInferRequest& request, inference::ModelInferResponse* response) {
    grpc::ClientContext context;
    Deadline(&context);
    return stub_->ModelInfer(&context, request, response);
  }
  // A request gets its right answer, and nothing is left over.
  void ExpectAlive() {
    const ImageBatch images = MakeImages(2, 99);
    inference::ModelInferResponse response;
    const grpc::Status status = Infer(Ask(images, {"mean"}), &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.raw_output_contents(0), View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
    ExpectIdle();
  }
  void ExpectIdle() {
    EXPECT_TRUE(streams_->WaitIdle(kPatience));
    // What was being computed for a client that went away is given back when it is computed.
    const auto end = std::chrono::steady_clock::now() + kPatience;
    while (streams_->budget().used() > 0 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    EXPECT_EQ(streams_->budget().used(), 0);
  }
  double Requests(const std::string& result) {
    return metrics_
        .GetCounter("distill_teacher_requests_total", "Batches that ended, by how.",
                    {{"model", "means"}, {"result", result}})
        .Value();
  }

  MetricsRegistry metrics_;
  std::unique_ptr<ChannelMeanEngine> engine_;
  std::unique_ptr<StreamSet> streams_;
  std::unique_ptr<grpc::Service> features_, inference_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<Stub> stub_;
};

TEST_F(InferenceServiceTest, OutputsComeRawInTheOrderAskedFor) {
  Serve();
  const ImageBatch images = MakeImages(5);
  inference::ModelInferRequest request = Ask(images, {"map", "mean", "output"}, "r7");
  (*request.mutable_parameters())["exclusive"].set_bool_param(true);
  inference::ModelInferResponse response;
  const grpc::Status status = Infer(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.model_name(), "means");
  EXPECT_EQ(response.model_version(), "1");
  EXPECT_EQ(response.id(), "r7");
  EXPECT_EQ(response.parameters().at("model_digest").string_param(), "d1");
  ASSERT_EQ(response.outputs_size(), 3);
  EXPECT_EQ(response.outputs(0).name(), "map");
  EXPECT_EQ(response.outputs(0).datatype(), "FP32");
  EXPECT_THAT(response.outputs(0).shape(), ElementsAre(5, kChannels, kSide, kSide));
  EXPECT_THAT(response.outputs(2).shape(), ElementsAre(5, kChannels));
  ASSERT_EQ(response.raw_output_contents_size(), 3);
  EXPECT_TRUE(response.raw_output_contents(0) == View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
  EXPECT_EQ(response.raw_output_contents(1), View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
  EXPECT_TRUE(engine_->saw_exclusive());
  ExpectIdle();
  EXPECT_EQ(Requests("ok"), 1);
}

TEST_F(InferenceServiceTest, SixteenBitsOnRequest) {
  Serve();
  const ImageBatch images = MakeImages(2);
  inference::ModelInferRequest request = Ask(images, {"mean"});
  (*request.mutable_parameters())["output_datatype"].set_string_param("BF16");
  inference::ModelInferResponse response;
  ASSERT_TRUE(Infer(request, &response).ok());
  EXPECT_EQ(response.outputs(0).datatype(), "BF16");
  EXPECT_EQ(response.raw_output_contents(0),
            View(ChannelMeanEngine::Expected(images, {"mean", {WireDtype::kBf16}}).bytes));
}

TEST_F(InferenceServiceTest, WhoSendsNumbersGetsNumbers) {
  Serve();
  const ImageBatch images = MakeImages(2);
  inference::ModelInferRequest request = Ask(images, {"mean"});
  request.clear_raw_input_contents();
  auto* const numbers = request.mutable_inputs(0)->mutable_contents()->mutable_uint_contents();
  numbers->Add(images.pixels.data, images.pixels.data + images.pixels.size);
  inference::ModelInferResponse response;
  const grpc::Status status = Infer(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.raw_output_contents_size(), 0);
  const auto& values = response.outputs(0).contents().fp32_contents();
  const WireTensor expected = ChannelMeanEngine::Expected(images, {"mean"});
  ASSERT_EQ(values.size() * sizeof(float), expected.bytes.size);
  EXPECT_EQ(std::memcmp(values.data(), expected.bytes.data, expected.bytes.size), 0);
}

TEST_F(InferenceServiceTest, TellsWhatItServes) {
  Serve();
  grpc::ClientContext ready, metadata, config, unknown, server;
  inference::ModelReadyRequest name;
  name.set_name("means");
  inference::ModelReadyResponse is_ready;
  ASSERT_TRUE(stub_->ModelReady(&ready, name, &is_ready).ok());
  EXPECT_TRUE(is_ready.ready());
  name.set_name("other");
  ASSERT_TRUE(stub_->ModelReady(&unknown, name, &is_ready).ok());
  EXPECT_FALSE(is_ready.ready());

  inference::ModelMetadataRequest model;
  model.set_name("means");
  inference::ModelMetadataResponse told;
  ASSERT_TRUE(stub_->ModelMetadata(&metadata, model, &told).ok());
  ASSERT_EQ(told.inputs_size(), 1);
  EXPECT_EQ(told.inputs(0).name(), "images");
  EXPECT_EQ(told.inputs(0).datatype(), "UINT8");
  EXPECT_THAT(told.inputs(0).shape(), ElementsAre(-1, kChannels, kSide, kSide));
  ASSERT_EQ(told.outputs_size(), 3);
  EXPECT_EQ(told.outputs(0).name(), "output");
  EXPECT_EQ(told.outputs(1).name(), "map");
  EXPECT_THAT(told.outputs(1).shape(), ElementsAre(-1, kChannels, kSide, kSide));

  inference::ModelConfigRequest asked;
  asked.set_name("means");
  inference::ModelConfigResponse configured;
  ASSERT_TRUE(stub_->ModelConfig(&config, asked, &configured).ok());
  EXPECT_EQ(configured.config().max_batch_size(), kMaxBatchImages);
  EXPECT_THAT(configured.config().output(1).dims(), ElementsAre(kChannels, kSide, kSide));
  EXPECT_EQ(configured.config().parameters().at("model_digest").string_value(), "d1");

  inference::ServerMetadataResponse about;
  ASSERT_TRUE(stub_->ServerMetadata(&server, {}, &about).ok());
  EXPECT_EQ(about.name(), "distillery");
  EXPECT_THAT(about.extensions(), ::testing::Contains("statistics"));
}

TEST_F(InferenceServiceTest, EachFailureHasItsCode) {
  Serve();
  using Request = inference::ModelInferRequest;
  const struct {
    std::function<void(Request*)> change;
    grpc::StatusCode code;
    std::string text;
  } kCases[] = {
      {[](Request* r) { r->set_model_name("no"); }, grpc::StatusCode::NOT_FOUND, "served: means"},
      {[](Request* r) { r->mutable_outputs(0)->set_name("no"); }, grpc::StatusCode::INVALID_ARGUMENT, "it has output"},
      {[](Request* r) { r->mutable_inputs(0)->set_shape(0, 3); }, grpc::StatusCode::INVALID_ARGUMENT, "holds"},
      {[](Request* r) { (*r->mutable_parameters())["model_digest"].set_string_param("d2"); },
       grpc::StatusCode::FAILED_PRECONDITION, "has digest d1"},
  };
  for (const auto& c : kCases) {
    Request request = Ask(MakeImages(1), {"mean"});
    c.change(&request);
    inference::ModelInferResponse response;
    const grpc::Status status = Infer(request, &response);
    EXPECT_EQ(status.error_code(), c.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.text));
  }
  ExpectAlive();
  EXPECT_EQ(Requests("refused"), 2);  // an unknown model is counted nowhere; another digest as an error
  EXPECT_THAT(engine_->computed(), ElementsAre(1));
}

TEST_F(InferenceServiceTest, WhatIsTooLargeIsRefusedAndTheServerGoesOn) {
  StreamLimits limits;
  limits.memory_budget = 8 * kImageMapBytes;
  Serve(/*held=*/false, limits);
  inference::ModelInferRequest request = Ask(MakeImages(1), {"mean"}, std::string(kMaxMessageBytes + 1, 'x'));
  inference::ModelInferResponse response;
  grpc::Status status = Infer(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_THAT(status.error_message(), HasSubstr("beside its raw tensors"));
  // An answer larger than the whole budget passes when it is alone; two of them go one after the other.
  std::vector<std::thread> clients;
  for (uint32_t c = 0; c < 2; ++c) {
    clients.emplace_back([&, c] {
      const ImageBatch images = MakeImages(100, c + 1);
      inference::ModelInferResponse large;
      const grpc::Status done = Infer(Ask(images, {"map"}), &large);
      // The pixels have a half of their own, which one of the two may find full.
      if (done.error_code() == grpc::StatusCode::UNAVAILABLE) return;
      ASSERT_TRUE(done.ok()) << done.error_message();
      EXPECT_TRUE(large.raw_output_contents(0) == View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectAlive();
}

TEST_F(InferenceServiceTest, PixelsThatDoNotFitAreRefusedForNow) {
  StreamLimits limits;
  limits.memory_budget = 2 * kChannels * kSide * kSide;  // one image's pixels in its half
  Serve(/*held=*/true, limits);
  std::thread first([&] {
    inference::ModelInferResponse response;
    EXPECT_TRUE(Infer(Ask(MakeImages(1), {"mean"}), &response).ok());
  });
  while (engine_->QueueLength() < 1) std::this_thread::yield();
  inference::ModelInferResponse response;
  const grpc::Status status = Infer(Ask(MakeImages(1), {"mean"}), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("is full"));
  engine_->Release();
  first.join();
  ExpectAlive();
}

TEST_F(InferenceServiceTest, ARequestThatIsGivenUpIsNeverComputed) {
  Serve(/*held=*/true);
  {  // by its deadline
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(200));
    inference::ModelInferResponse response;
    EXPECT_EQ(stub_->ModelInfer(&context, Ask(MakeImages(1), {"mean"}), &response).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  {  // by the client
    grpc::ClientContext context;
    std::thread client([&] {
      inference::ModelInferResponse response;
      EXPECT_EQ(stub_->ModelInfer(&context, Ask(MakeImages(1), {"mean"}), &response).error_code(),
                grpc::StatusCode::CANCELLED);
    });
    while (engine_->QueueLength() < 1) std::this_thread::yield();
    context.TryCancel();
    client.join();
  }
  ExpectIdle();
  EXPECT_EQ(engine_->QueueLength(), 0);
  engine_->Release();
  ExpectAlive();
  EXPECT_EQ(engine_->computed().size(), 1);
  EXPECT_GE(Requests("cancelled"), 1);  // the first one may never have arrived
}

TEST_F(InferenceServiceTest, AStreamAnswersInOrderAndOutlivesItsErrors) {
  Serve();
  grpc::ClientContext context;
  Deadline(&context);
  const auto stream = stub_->ModelStreamInfer(&context);
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) {
      inference::ModelInferRequest request =
          Ask(MakeImages(1 + i % 5, i + 1), {i % 2 == 0 ? "mean" : "map"}, std::to_string(i));
      if (i % 10 == 3) request.set_model_name("no");
      EXPECT_TRUE(stream->Write(request));
    }
    stream->WritesDone();
  });
  inference::ModelStreamInferResponse response;
  int i = 0;
  for (; stream->Read(&response); ++i) {
    EXPECT_EQ(response.infer_response().id(), std::to_string(i));
    if (i % 10 == 3) {
      EXPECT_THAT(response.error_message(), HasSubstr("NOT_FOUND: this teacher does not serve model 'no'"));
      continue;
    }
    ASSERT_EQ(response.error_message(), "");
    EXPECT_TRUE(response.infer_response().parameters().at("triton_final_response").bool_param());
    const WireTensor expected =
        ChannelMeanEngine::Expected(MakeImages(1 + i % 5, i + 1), {i % 2 == 0 ? "mean" : "map"});
    EXPECT_TRUE(response.infer_response().raw_output_contents(0) == View(expected.bytes)) << i;
  }
  writer.join();
  EXPECT_EQ(i, 100);
  EXPECT_TRUE(stream->Finish().ok());
  ExpectIdle();
}

// Back-pressure: what a stream has under way is bounded, however much its client writes.
TEST_F(InferenceServiceTest, AStreamTakesOnlySoManyRequestsIn) {
  Serve(/*held=*/true);
  grpc::ClientContext context;
  Deadline(&context);
  const auto stream = stub_->ModelStreamInfer(&context);
  constexpr int kRequests = 3 * kMostAhead;
  std::thread writer([&] {
    for (int i = 0; i < kRequests; ++i) EXPECT_TRUE(stream->Write(Ask(MakeImages(1), {"mean"}, std::to_string(i))));
    stream->WritesDone();
  });
  while (engine_->QueueLength() < kMostAhead) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // in which a server without bounds would read on
  EXPECT_EQ(engine_->QueueLength(), kMostAhead);
  engine_->Release();
  inference::ModelStreamInferResponse response;
  int answers = 0;
  while (stream->Read(&response)) ++answers;
  writer.join();
  EXPECT_EQ(answers, kRequests);
  EXPECT_TRUE(stream->Finish().ok());
  ExpectIdle();
}

TEST_F(InferenceServiceTest, AClientMayVanishAtAnyTime) {
  Serve();
  const ImageBatch images = MakeImages(32);
  for (int reads = 0; reads < 6; ++reads) {
    const std::unique_ptr<Stub> stub = Connect();
    grpc::ClientContext context;
    Deadline(&context);
    const auto stream = stub->ModelStreamInfer(&context);
    for (int i = 0; i < 8; ++i) stream->Write(Ask(images, {"map"}));
    inference::ModelStreamInferResponse response;
    for (int i = 0; i < reads; ++i) EXPECT_TRUE(stream->Read(&response));
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
  // In the middle of one large answer, of a channel that goes with its client.
  for (int wait_ms : {0, 1, 5, 20, 50}) {
    const std::unique_ptr<Stub> stub = Connect();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(wait_ms));
    inference::ModelInferResponse response;
    stub->ModelInfer(&context, Ask(images, {"map"}), &response);
  }
  ExpectIdle();
  ExpectAlive();
}

// Bytes that no generated client would write.
TEST_F(InferenceServiceTest, MalformedBytesAreRefused) {
  Serve();
  const std::string whole = Ask(MakeImages(1), {"mean"}).SerializeAsString();
  std::string many;  // more raw tensors than anybody has
  for (int i = 0; i < 100; ++i) many += std::string("\x3a\x00", 2);
  const struct {
    std::string bytes;
    std::string text;
  } kCases[] = {{"\xff\xff\xff\xff", "malformed message of 4 bytes"},
                {whole.substr(0, whole.size() - 1), "is cut to"},
                {std::string("\x3a\xff\xff\xff\xff\x0f", 6), "is cut to"},
                {many, "more than 16 payloads"},
                {"", "does not serve model ''"}};
  for (const auto& c : kCases) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    Deadline(&context);
    grpc::CompletionQueue queue;
    grpc::Slice slice(c.bytes);
    const grpc::ByteBuffer request(&slice, 1);
    const auto call = stub.PrepareUnaryCall(&context, "/inference.GRPCInferenceService/ModelInfer", request, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    EXPECT_THAT(status.error_message(), HasSubstr(c.text));
    EXPECT_EQ(status.error_code(), c.bytes.empty() ? grpc::StatusCode::NOT_FOUND : grpc::StatusCode::INVALID_ARGUMENT);
  }
  ExpectAlive();
}

TEST_F(InferenceServiceTest, StatisticsAddUp) {
  Serve();
  inference::ModelInferResponse response;
  for (uint32_t n : {1, 2, 3}) ASSERT_TRUE(Infer(Ask(MakeImages(n), {"mean"}), &response).ok());
  EXPECT_FALSE(Infer(Ask(MakeImages(1), {"no"}), &response).ok());
  grpc::ClientContext context;
  inference::ModelStatisticsResponse statistics;
  ASSERT_TRUE(stub_->ModelStatistics(&context, {}, &statistics).ok());
  ASSERT_EQ(statistics.model_stats_size(), 1);
  const inference::ModelStatistics& model = statistics.model_stats(0);
  EXPECT_EQ(model.name(), "means");
  EXPECT_EQ(model.inference_count(), 6);
  EXPECT_EQ(model.execution_count(), 3);
  EXPECT_GT(model.last_inference(), 0);
  EXPECT_EQ(model.inference_stats().success().count(), 3);
  EXPECT_EQ(model.inference_stats().fail().count(), 1);
  EXPECT_EQ(model.inference_stats().queue().ns(), 3 * 250'000'000);
  EXPECT_EQ(model.inference_stats().compute_infer().ns(), 3 * 500'000'000);
}

TEST_F(InferenceServiceTest, LoadingAndDrainingAreToldAndRefused) {
  Serve(/*held=*/false, {}, /*with_engine=*/false);
  const auto ready = [&] {
    grpc::ClientContext live_context, context;
    inference::ServerLiveResponse live;
    EXPECT_TRUE(stub_->ServerLive(&live_context, {}, &live).ok());
    EXPECT_TRUE(live.live());
    inference::ServerReadyResponse response;
    EXPECT_TRUE(stub_->ServerReady(&context, {}, &response).ok());
    return response.ready();
  };
  EXPECT_FALSE(ready());
  inference::ModelInferResponse response;
  grpc::Status status = Infer(Ask(MakeImages(1), {"mean"}), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("loading"));
  streams_->SetEngine(engine_.get());
  EXPECT_TRUE(ready());
  grpc::ClientContext context;
  Deadline(&context);
  const auto stream = stub_->ModelStreamInfer(&context);
  inference::ModelStreamInferResponse answer;
  stream->Write(Ask(MakeImages(1), {"mean"}));
  ASSERT_TRUE(stream->Read(&answer));
  streams_->Drain();
  EXPECT_FALSE(ready());
  status = Infer(Ask(MakeImages(1), {"mean"}), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
  // The stream ends once it has nothing to answer: before this request, if it was about to look, or with its refusal.
  stream->Write(Ask(MakeImages(1), {"mean"}));
  if (stream->Read(&answer)) {
    EXPECT_THAT(answer.error_message(), HasSubstr("UNAVAILABLE: this teacher is shutting down"));
    EXPECT_FALSE(stream->Read(&answer));
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  ExpectIdle();
}

// Both protocols at once, over one engine and one budget.
TEST_F(InferenceServiceTest, StudentsAndOtherClientsShareTheTeacher) {
  StreamLimits limits;
  limits.memory_budget = 64 * kImageMapBytes;
  Serve(/*held=*/false, limits);
  std::vector<std::thread> clients;
  for (uint32_t c = 0; c < 2; ++c) {
    clients.emplace_back([&, c] {
      Client student(server_->address());
      student.Send(Open({{"map"}}));
      for (uint64_t step = 0; step < 20; ++step) {
        const ImageBatch images = MakeImages(4, 100 * c + step + 1);
        student.Send(Batch(step, images));
        auto [id, answer] = ReadAnswer(student);
        if (answer.error_code == grpc::StatusCode::UNAVAILABLE) continue;
        EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
      }
      student.HalfClose();
      EXPECT_TRUE(student.Finish().ok());
    });
    clients.emplace_back([&, c] {
      for (uint32_t step = 0; step < 20; ++step) {
        const ImageBatch images = MakeImages(4, 1000 * c + step + 1);
        inference::ModelInferResponse response;
        const grpc::Status status = Infer(Ask(images, {"map"}), &response);
        if (status.error_code() == grpc::StatusCode::UNAVAILABLE) continue;
        ASSERT_TRUE(status.ok()) << status.error_message();
        EXPECT_TRUE(response.raw_output_contents(0) == View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
      }
    });
  }
  for (std::thread& client : clients) client.join();
  ExpectAlive();
}

}  // namespace
}  // namespace distill::testing
