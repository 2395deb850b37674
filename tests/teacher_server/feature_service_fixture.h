// The feature service over real gRPC on loopback, for tests: a client of generated code and the server with an engine
// that can be worked out by hand.
#ifndef DISTILL_TESTS_TEACHER_SERVER_FEATURE_SERVICE_FIXTURE_H_
#define DISTILL_TESTS_TEACHER_SERVER_FEATURE_SERVICE_FIXTURE_H_

#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/metrics/metrics.h"
#include "common/rpc/server.h"
#include "distill/v1/features.grpc.pb.h"
#include "teacher_server/feature_service.h"
#include "tests/teacher_server/channel_mean_engine.h"

namespace distill::testing {

inline constexpr uint32_t kChannels = 3;
inline constexpr uint32_t kSide = 64;
inline constexpr uint64_t kImageMapBytes = 4 * kChannels * kSide * kSide;  // "map" as f32
inline constexpr uint64_t kPlenty = 1ull << 40;
// A hanging server fails the test instead of stopping the run; no right server comes near it.
inline constexpr std::chrono::seconds kPatience(60);

inline ImageBatch MakeImages(uint32_t n, uint32_t seed = 1) {
  std::vector<uint8_t> pixels(n * kChannels * kSide * kSide);
  uint32_t state = seed;
  for (uint8_t& pixel : pixels) pixel = (state = state * 1664525u + 1013904223u) >> 24;
  return ImageBatch{n, kChannels, kSide, kSide, Buffer::FromVector(std::move(pixels))};
}
inline std::string_view View(const Buffer& buffer) { return {reinterpret_cast<const char*>(buffer.data), buffer.size}; }

struct Tap {
  std::string path;
  v1::WireDtype dtype = v1::WIRE_DTYPE_F32;
  bool less_row_max = false;
};
inline v1::FeatureRequest Open(const std::vector<Tap>& taps, uint64_t credit = kPlenty) {
  v1::FeatureRequest request;
  v1::OpenStream* open = request.mutable_open();
  open->set_model("means");
  open->set_client("test");
  open->set_credit_bytes(credit);
  for (const Tap& tap : taps) {
    v1::TapRequest* out = open->add_taps();
    out->set_tap(tap.path);
    out->mutable_encoding()->set_dtype(tap.dtype);
    out->mutable_encoding()->set_less_row_max(tap.less_row_max);
  }
  return request;
}
inline v1::FeatureRequest Batch(uint64_t id, const ImageBatch& images) {
  v1::FeatureRequest request;
  request.mutable_batch()->set_request_id(id);
  for (uint32_t axis : {images.n, images.c, images.h, images.w}) request.mutable_batch()->add_shape(axis);
  request.set_payload(std::string(View(images.pixels)));
  return request;
}
inline v1::FeatureRequest Credit(uint64_t bytes) {
  v1::FeatureRequest request;
  request.set_credit_bytes(bytes);
  return request;
}
inline v1::FeatureRequest Cancel(uint64_t id) {
  v1::FeatureRequest request;
  request.set_cancel_request_id(id);
  return request;
}
// A batch that is refused in band. Its error needs no credit: the next response after it shows what else the server had
// to say.
inline v1::FeatureRequest Fence(uint64_t id) {
  v1::FeatureRequest request;
  request.mutable_batch()->set_request_id(id);
  return request;
}

// One stream of a generated client.
class Client {
 public:
  explicit Client(const std::string& address, int max_send_bytes = kMaxMessageBytes) {
    grpc::ChannelArguments args;
    args.SetMaxSendMessageSize(max_send_bytes);
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stub_ = v1::FeatureService::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args));
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
    stream_ = stub_->StreamFeatures(&context_);
  }
  bool Send(const v1::FeatureRequest& request) { return stream_->Write(request); }
  void HalfClose() { stream_->WritesDone(); }
  void Disconnect() { context_.TryCancel(); }
  std::optional<v1::FeatureResponse> Read() {
    v1::FeatureResponse response;
    if (!stream_->Read(&response)) return std::nullopt;
    return response;
  }
  // The stream's end; reads what is left.
  grpc::Status Finish() {
    while (Read()) {
    }
    return stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::FeatureService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::FeatureRequest, v1::FeatureResponse>> stream_;
};

// One request's answer, put together from its chunks.
struct Assembled {
  std::map<uint32_t, std::string> taps;
  std::map<uint32_t, std::vector<uint32_t>> shapes;
  uint64_t largest_chunk = 0;
  int chunks = 0;
  int error_code = 0;
  std::string error;
  std::string digest;
  double queue_seconds = 0, compute_seconds = 0;
};
// Adds a chunk; fails the test when it is out of order.
inline void Add(const v1::FeatureResponse& chunk, Assembled* to) {
  std::string& bytes = to->taps[chunk.tap_index()];
  EXPECT_EQ(chunk.tap_index(), to->taps.size() - 1) << "taps out of order";
  EXPECT_EQ(chunk.offset(), bytes.size()) << "chunks out of order";
  bytes += chunk.payload();
  EXPECT_LE(bytes.size(), chunk.total_bytes());
  to->shapes[chunk.tap_index()].assign(chunk.shape().begin(), chunk.shape().end());
  to->largest_chunk = std::max<uint64_t>(to->largest_chunk, chunk.payload().size());
  ++to->chunks;
  if (chunk.offset() == 0) to->digest = chunk.model_digest();
  if (chunk.last()) {
    EXPECT_EQ(bytes.size(), chunk.total_bytes());
    to->queue_seconds = chunk.queue_seconds();
    to->compute_seconds = chunk.compute_seconds();
  }
}
// The next answer of the stream, whatever request it is for.
inline std::pair<uint64_t, Assembled> ReadAnswer(Client& client) {
  Assembled answer;
  while (true) {
    std::optional<v1::FeatureResponse> response = client.Read();
    if (!response) {
      ADD_FAILURE() << "the stream ended before the answer did: " << client.Finish().error_message();
      return {0, answer};
    }
    if (!response->error().empty()) {
      answer.error = response->error();
      answer.error_code = response->error_code();
      return {response->request_id(), answer};
    }
    Add(*response, &answer);
    if (response->last()) return {response->request_id(), answer};
  }
}

class FeatureServiceFixture : public ::testing::Test {
 protected:
  // `held`: the engine computes nothing before engine_->Release().
  void StartServer(bool held = false, StreamLimits limits = {}, bool with_engine = true) {
    engine_ = std::make_unique<ChannelMeanEngine>(kChannels, kSide, held);
    streams_ = std::make_unique<StreamSet>(limits, &metrics_, rings_.get());
    service_ = CreateFeatureService(streams_.get());
    if (with_engine) streams_->SetEngine(engine_.get());
    StatusOr<std::unique_ptr<RpcServer>> server =
        RpcServer::Start({.max_message_bytes = kMaxInferenceMessageBytes}, {service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Stop(std::chrono::milliseconds(0));
    if (engine_ != nullptr) engine_->Stop();
  }
  const std::string& address() const { return server_->address(); }
  double SentBytes() {
    return metrics_.GetCounter("distill_teacher_sent_bytes_total", "Payload bytes handed to the transport.").Value();
  }
  double Requests(const std::string& result) {
    return metrics_
        .GetCounter("distill_teacher_requests_total", "Batches that ended, by how.",
                    {{"model", "means"}, {"result", result}})
        .Value();
  }
  // A new stream gets right answers.
  void ExpectAlive() {
    Client client(address());
    client.Send(Open({{"mean"}}));
    const ImageBatch images = MakeImages(2);
    client.Send(Batch(5, images));
    auto [id, answer] = ReadAnswer(client);
    EXPECT_EQ(id, 5);
    EXPECT_EQ(answer.taps[0], View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
    client.HalfClose();
    EXPECT_TRUE(client.Finish().ok());
  }

  MetricsRegistry metrics_;
  std::unique_ptr<DescriptorServer> rings_;  // null: no shared memory; set before StartServer()
  std::unique_ptr<StreamSet> streams_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<ChannelMeanEngine> engine_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace distill::testing

#endif  // DISTILL_TESTS_TEACHER_SERVER_FEATURE_SERVICE_FIXTURE_H_
