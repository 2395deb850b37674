// The feature service over real gRPC on loopback, with a client of generated code and one that speaks raw bytes.
#include "teacher_server/feature_service.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "common/rpc/channel.h"
#include "common/rpc/server.h"
#include "common/wire/proto_codec.h"
#include "distill/v1/features.grpc.pb.h"
#include "tests/teacher_server/channel_mean_engine.h"

namespace distill {
namespace {

using ::distill::testing::ChannelMeanEngine;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr uint32_t kChannels = 3;
constexpr uint32_t kSide = 64;
constexpr uint64_t kImageMapBytes = 4 * kChannels * kSide * kSide;  // "map" as f32
constexpr uint64_t kPlenty = 1ull << 40;
// A hanging server fails the test instead of stopping the run; no right server comes near it.
constexpr std::chrono::seconds kPatience(60);

ImageBatch MakeImages(uint32_t n, uint32_t seed = 1) {
  std::vector<uint8_t> pixels(n * kChannels * kSide * kSide);
  uint32_t state = seed;
  for (uint8_t& pixel : pixels) pixel = (state = state * 1664525u + 1013904223u) >> 24;
  return ImageBatch{n, kChannels, kSide, kSide, Buffer::FromVector(std::move(pixels))};
}
std::string_view View(const Buffer& buffer) { return {reinterpret_cast<const char*>(buffer.data), buffer.size}; }

struct Tap {
  std::string path;
  v1::WireDtype dtype = v1::WIRE_DTYPE_F32;
  bool subtract_row_max = false;
};
v1::FeatureRequest Open(const std::vector<Tap>& taps, uint64_t credit = kPlenty) {
  v1::FeatureRequest request;
  v1::OpenStream* open = request.mutable_open();
  open->set_model("means");
  open->set_client("test");
  open->set_credit_bytes(credit);
  for (const Tap& tap : taps) {
    v1::TapRequest* out = open->add_taps();
    out->set_tap(tap.path);
    out->set_dtype(tap.dtype);
    out->set_subtract_row_max(tap.subtract_row_max);
  }
  return request;
}
v1::FeatureRequest Batch(uint64_t id, const ImageBatch& images) {
  v1::FeatureRequest request;
  request.mutable_batch()->set_request_id(id);
  for (uint32_t axis : {images.n, images.c, images.h, images.w}) request.mutable_batch()->add_shape(axis);
  request.set_payload(std::string(View(images.pixels)));
  return request;
}
v1::FeatureRequest Credit(uint64_t bytes) {
  v1::FeatureRequest request;
  request.set_credit_bytes(bytes);
  return request;
}
v1::FeatureRequest Cancel(uint64_t id) {
  v1::FeatureRequest request;
  request.set_cancel_request_id(id);
  return request;
}
// A batch that is refused in band. Its error needs no credit: the next response after it shows what else the server had
// to say.
v1::FeatureRequest Fence(uint64_t id) {
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

// One stream of a client that sees bytes only.
class RawClient {
 public:
  explicit RawClient(const std::string& address)
      : stub_(grpc::CreateChannel(address, grpc::InsecureChannelCredentials())) {
    context_.set_deadline(std::chrono::system_clock::now() + kPatience);
    stream_ = stub_.PrepareCall(&context_, "/distill.v1.FeatureService/StreamFeatures", &queue_);
    stream_->StartCall(nullptr);
    Next();
  }
  ~RawClient() {
    context_.TryCancel();
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  bool Send(const std::string& bytes) {
    grpc::Slice slice(bytes);
    stream_->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    return Next();
  }
  bool Send(const grpc::ByteBuffer& message) {
    stream_->Write(message, nullptr);
    return Next();
  }
  std::optional<std::string> Read() {
    grpc::ByteBuffer message;
    stream_->Read(&message, nullptr);
    if (!Next()) return std::nullopt;
    std::vector<grpc::Slice> slices;
    message.Dump(&slices);
    std::string bytes;
    for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
    return bytes;
  }
  grpc::Status Finish() {
    grpc::Status status;
    stream_->Finish(&status, nullptr);
    Next();
    return status;
  }

 private:
  bool Next() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  grpc::GenericStub stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
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
void Add(const v1::FeatureResponse& chunk, Assembled* to) {
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
std::pair<uint64_t, Assembled> ReadAnswer(Client& client) {
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

class FeatureServiceTest : public ::testing::Test {
 protected:
  // `held`: the engine computes nothing before engine_->Release().
  void StartServer(bool held = false, FeatureService::Options options = {}, bool with_engine = true) {
    engine_ = std::make_unique<ChannelMeanEngine>(kChannels, kSide, held);
    service_ = FeatureService::Create(options, &metrics_);
    if (with_engine) service_->SetEngine(engine_.get());
    StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start({}, {service_->service()});
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
  std::unique_ptr<FeatureService> service_;
  std::unique_ptr<ChannelMeanEngine> engine_;
  std::unique_ptr<RpcServer> server_;
};

TEST_F(FeatureServiceTest, GeneratedClientGetsEveryByteInOrderAndInChunks) {
  StartServer();
  Client client(address());
  v1::FeatureRequest open = Open({{"map"}, {"mean"}, {"mean", v1::WIRE_DTYPE_BF16}, {""}});
  open.mutable_open()->set_digest("d1");
  open.mutable_open()->set_exclusive_batches(true);
  client.Send(open);
  const ImageBatch images = MakeImages(50);  // map: 2.3 MiB, three chunks
  client.Send(Batch(77, images));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(id, 77);
  EXPECT_EQ(answer.error, "");
  EXPECT_EQ(answer.taps.size(), 4);
  EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes)) << "map differs";
  EXPECT_EQ(answer.taps[1], View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
  EXPECT_EQ(answer.taps[2], View(ChannelMeanEngine::Expected(images, {"mean", WireDtype::kBf16}).bytes));
  EXPECT_EQ(answer.taps[3], answer.taps[1]);
  EXPECT_THAT(answer.shapes[0], ElementsAre(50, kChannels, kSide, kSide));
  EXPECT_THAT(answer.shapes[3], ElementsAre(50, kChannels));
  EXPECT_EQ(answer.largest_chunk, kChunkBytes);
  EXPECT_EQ(answer.chunks, 3 + 1 + 1 + 1);
  EXPECT_EQ(answer.digest, "d1");
  EXPECT_EQ(answer.queue_seconds, 0.25);
  EXPECT_EQ(answer.compute_seconds, 0.5);
  client.HalfClose();
  EXPECT_TRUE(client.Finish().ok());
  EXPECT_TRUE(engine_->saw_exclusive());
  EXPECT_EQ(Requests("ok"), 1);
}

TEST_F(FeatureServiceTest, MessagesAreByteForByteWhatGeneratedCodeWouldSend) {
  StartServer();
  RawClient client(address());
  const ImageBatch images = MakeImages(30);
  ASSERT_TRUE(client.Send(Open({{"map"}, {"mean"}}).SerializeAsString()));
  v1::FeatureRequest header = Batch(9, images);
  header.clear_payload();
  // One request in one piece, one with the pixels spliced in: the same to the server.
  ASSERT_TRUE(client.Send(EncodeWithPayload(header, images.pixels)));
  Assembled answer;
  bool last = false;
  while (!last) {
    std::optional<std::string> bytes = client.Read();
    ASSERT_TRUE(bytes.has_value());
    v1::FeatureResponse response;
    ASSERT_TRUE(response.ParseFromString(*bytes));
    EXPECT_EQ(response.request_id(), 9);
    EXPECT_TRUE(response.SerializeAsString() == *bytes)
        << "not the bytes protobuf writes, at tap " << response.tap_index() << " offset " << response.offset();
    Add(response, &answer);
    last = response.last();
  }
  EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes)) << "map differs";
  EXPECT_EQ(answer.taps[1], View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
}

TEST_F(FeatureServiceTest, CreditIsHonouredToTheByte) {
  StartServer();
  Client client(address());
  const uint64_t first = kChunkBytes + 1000, second = 7;
  client.Send(Open({{"map"}}, first));
  const ImageBatch images = MakeImages(50);
  const uint64_t total = 50 * kImageMapBytes;
  client.Send(Batch(1, images));

  Assembled answer;
  auto read = [&](uint64_t bytes) {
    const uint64_t goal = answer.taps[0].size() + bytes;
    while (answer.taps[0].size() < goal) {
      std::optional<v1::FeatureResponse> response = client.Read();
      ASSERT_TRUE(response.has_value());
      ASSERT_EQ(response->error(), "");
      Add(*response, &answer);
    }
    EXPECT_EQ(answer.taps[0].size(), goal) << "more than the credit";
  };
  auto expect_silence = [&](uint64_t fence) {
    client.Send(Fence(fence));
    std::optional<v1::FeatureResponse> response = client.Read();
    ASSERT_TRUE(response.has_value());
    EXPECT_EQ(response->request_id(), fence);
    EXPECT_NE(response->error(), "");
  };
  read(first);
  EXPECT_EQ(answer.chunks, 2);  // a whole one and the rest of the credit
  expect_silence(100);
  EXPECT_EQ(SentBytes(), first);
  client.Send(Credit(second));
  read(second);
  expect_silence(101);
  EXPECT_EQ(SentBytes(), first + second);
  client.Send(Credit(total - first - second));
  read(total - first - second);
  EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes)) << "map differs";
  EXPECT_EQ(SentBytes(), total);
  // Credit adds up across answers, and more than can be counted is as good as unlimited.
  client.Send(Credit(~0ull));
  client.Send(Credit(~0ull));
  client.Send(Batch(2, images));
  EXPECT_EQ(ReadAnswer(client).first, 2);
}

TEST_F(FeatureServiceTest, ACancelledBatchThatWaitsIsNeverComputed) {
  StartServer(/*held=*/true);
  Client client(address());
  client.Send(Open({{"mean"}}));
  for (uint64_t id : {1, 2, 3}) client.Send(Batch(id, MakeImages(1, id)));
  client.Send(Cancel(2));
  client.Send(Cancel(99));  // unknown: nothing happens
  std::optional<v1::FeatureResponse> response = client.Read();
  ASSERT_TRUE(response.has_value());
  EXPECT_EQ(response->request_id(), 2);
  EXPECT_EQ(response->error_code(), grpc::StatusCode::CANCELLED);
  engine_->Release();
  EXPECT_EQ(ReadAnswer(client).first, 1);
  EXPECT_EQ(ReadAnswer(client).first, 3);
  EXPECT_THAT(engine_->computed(), ElementsAre(1, 3));
  EXPECT_EQ(Requests("cancelled"), 1);
  client.Send(Cancel(1));  // answered: nothing happens
  client.HalfClose();
  EXPECT_TRUE(client.Finish().ok());
}

TEST_F(FeatureServiceTest, ABatchCanBeCancelledInTheMiddleOfItsAnswer) {
  StartServer();
  Client client(address());
  client.Send(Open({{"map"}}, 5000));
  client.Send(Batch(1, MakeImages(4)));
  std::optional<v1::FeatureResponse> part = client.Read();
  ASSERT_TRUE(part.has_value());
  EXPECT_EQ(part->payload().size(), 5000);
  client.Send(Cancel(1));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(id, 1);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::CANCELLED);
  // The credit is not spent on the cancelled one.
  const ImageBatch images = MakeImages(1, 2);
  client.Send(Batch(1, images));  // the id is free again
  client.Send(Credit(kImageMapBytes));
  auto [next, next_answer] = ReadAnswer(client);
  EXPECT_EQ(next, 1);
  EXPECT_TRUE(next_answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes)) << "map differs";
}

TEST_F(FeatureServiceTest, AnOversizeMessageEndsItsStreamOnly) {
  StartServer();
  Client client(address(), /*max_send_bytes=*/-1);
  client.Send(Open({{"mean"}}));
  v1::FeatureRequest request = Batch(1, MakeImages(1));
  request.set_payload(std::string(kMaxMessageBytes + 1, 'x'));
  client.Send(request);
  EXPECT_EQ(client.Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  ExpectAlive();
}

TEST_F(FeatureServiceTest, MalformedBytesEndTheirStreamOnly) {
  StartServer();
  const std::string open = Open({{"mean"}}).SerializeAsString();
  for (const std::string& bytes :
       {std::string("\xff\xff\xff\xff"), open.substr(0, open.size() / 2), std::string("\x7a\xff\xff\xff\x7f")}) {
    RawClient client(address());
    client.Send(bytes);
    EXPECT_EQ(client.Read(), std::nullopt);
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("malformed"));
  }
  ExpectAlive();
}

TEST_F(FeatureServiceTest, AWrongOpenIsRefusedWithTheReason) {
  StartServer();
  auto change = [](auto set) {
    v1::FeatureRequest request = Open({{"map"}});
    set(request.mutable_open());
    return request;
  };
  v1::FeatureRequest with_payload = Open({{"map"}});
  with_payload.set_payload("x");
  const struct {
    v1::FeatureRequest request;
    grpc::StatusCode code;
    std::string text;
  } kCases[] = {
      {change([](v1::OpenStream* o) { o->set_model("meanz"); }), grpc::StatusCode::NOT_FOUND, "did you mean 'means'"},
      {change([](v1::OpenStream* o) { o->set_digest("d2"); }), grpc::StatusCode::FAILED_PRECONDITION,
       "has digest d1, the client expects d2"},
      {change([](v1::OpenStream* o) { o->mutable_taps(0)->set_tap("maps"); }), grpc::StatusCode::INVALID_ARGUMENT,
       "did you mean 'map'"},
      {change([](v1::OpenStream* o) { o->clear_taps(); }), grpc::StatusCode::INVALID_ARGUMENT, "no taps"},
      {change([](v1::OpenStream* o) { o->mutable_taps(0)->set_dtype(v1::WIRE_DTYPE_U8); }),
       grpc::StatusCode::INVALID_ARGUMENT, "dtype 4"},
      {change([](v1::OpenStream* o) { o->mutable_taps(0)->clear_dtype(); }), grpc::StatusCode::INVALID_ARGUMENT,
       "dtype 0"},
      {Open({{"mean", v1::WIRE_DTYPE_F32, true}}), grpc::StatusCode::INVALID_ARGUMENT,
       "subtract_row_max needs a feature map"},
      {Open(std::vector<Tap>(kMaxTaps + 1, Tap{"mean"})), grpc::StatusCode::INVALID_ARGUMENT, "at most 256"},
      {with_payload, grpc::StatusCode::INVALID_ARGUMENT, "without a batch"},
      {Batch(1, MakeImages(1)), grpc::StatusCode::INVALID_ARGUMENT, "must be `open`"},
      {Credit(5), grpc::StatusCode::INVALID_ARGUMENT, "must be `open`"},
      {v1::FeatureRequest(), grpc::StatusCode::INVALID_ARGUMENT, "must be `open`"},
  };
  for (const auto& c : kCases) {
    Client client(address());
    client.Send(c.request);
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), c.code) << c.text;
    EXPECT_THAT(status.error_message(), HasSubstr(c.text));
  }
  ExpectAlive();
}

TEST_F(FeatureServiceTest, AMessageOutOfPlaceEndsTheStream) {
  StartServer(/*held=*/true);
  const struct {
    std::vector<v1::FeatureRequest> requests;
    std::string text;
  } kCases[] = {
      {{Open({{"map"}}), Open({{"map"}})}, "`open` came twice"},
      {{Open({{"map"}}), v1::FeatureRequest()}, "needs one of open, batch"},
      {{Open({{"map"}}), Batch(4, MakeImages(1)), Batch(4, MakeImages(1))}, "request id 4 is still unanswered"},
  };
  for (const auto& c : kCases) {
    Client client(address());
    for (const v1::FeatureRequest& request : c.requests) client.Send(request);
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr(c.text));
  }
  // What such a stream left behind in the queue is gone with it.
  ASSERT_TRUE(service_->WaitIdle(kPatience));
  engine_->Release();
  ExpectAlive();
  EXPECT_THAT(engine_->computed(), ElementsAre(5));
}

TEST_F(FeatureServiceTest, AWrongBatchIsRefusedInBandAndTheStreamGoesOn) {
  StartServer();
  auto change = [](auto set) {
    v1::FeatureRequest request = Batch(1, MakeImages(1));
    set(&request);
    return request;
  };
  const struct {
    v1::FeatureRequest request;
    std::string text;
  } kCases[] = {
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->mutable_shape()->RemoveLast(); }),
       "must have four: N, C, H, W"},
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->set_shape(0, 0); }), "N must be in 1..4096"},
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->set_shape(0, 4097); }), "N must be in 1..4096"},
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->set_shape(0, 2); }),
       "needs a payload of 24576 bytes, got 12288"},
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->set_shape(1, 1); }),
       "takes images of C, H, W = 3, 64, 64"},
      {change([](v1::FeatureRequest* r) { r->mutable_batch()->set_shape(3, 4000000000); }),
       "takes images of C, H, W = 3, 64, 64"},
      {change([](v1::FeatureRequest* r) { r->mutable_payload()->push_back('x'); }), "got 12289"},
      {change([](v1::FeatureRequest* r) { r->clear_payload(); }), "got 0"},
  };
  Client client(address());
  client.Send(Open({{"mean"}}));
  for (const auto& c : kCases) {
    client.Send(c.request);
    auto [id, answer] = ReadAnswer(client);
    EXPECT_EQ(id, 1);
    EXPECT_EQ(answer.error_code, grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(answer.error, HasSubstr(c.text));
  }
  client.Send(Batch(1, MakeImages(1)));
  EXPECT_EQ(ReadAnswer(client).second.error, "");
  EXPECT_EQ(Requests("refused"), std::size(kCases));
}

TEST_F(FeatureServiceTest, TooManyUnansweredBatchesAreRefusedInBand) {
  FeatureService::Options options;
  options.max_unanswered = 2;
  StartServer(/*held=*/true, options);
  Client client(address());
  client.Send(Open({{"mean"}}));
  for (uint64_t id : {1, 2, 3}) client.Send(Batch(id, MakeImages(1)));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(id, 3);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::RESOURCE_EXHAUSTED);
  engine_->Release();
  EXPECT_EQ(ReadAnswer(client).first, 1);
  EXPECT_EQ(ReadAnswer(client).first, 2);
}

TEST_F(FeatureServiceTest, BytesOfPixelsAndOfAnswersAreBounded) {
  FeatureService::Options options;
  options.max_waiting_bytes = 3 * kChannels * kSide * kSide;  // three images
  options.max_answer_bytes = 5 * kImageMapBytes;
  StartServer(/*held=*/true, options);
  Client client(address());
  client.Send(Open({{"map"}}));
  client.Send(Batch(1, MakeImages(6)));  // its answer is too large
  auto [first, too_large] = ReadAnswer(client);
  EXPECT_EQ(first, 1);
  EXPECT_EQ(too_large.error_code, grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(too_large.error, HasSubstr("smaller batches"));
  client.Send(Batch(2, MakeImages(2)));
  client.Send(Batch(3, MakeImages(2)));
  auto [third, too_many] = ReadAnswer(client);
  EXPECT_EQ(third, 3);
  EXPECT_EQ(too_many.error_code, grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(too_many.error, HasSubstr("pixels"));
  engine_->Release();
  EXPECT_EQ(ReadAnswer(client).first, 2);
}

TEST_F(FeatureServiceTest, AClientWithoutCreditDoesNotMakeTheServerComputeAhead) {
  FeatureService::Options options;
  options.max_unsent_bytes = 2 * kImageMapBytes;
  StartServer(/*held=*/false, options);
  Client client(address());
  client.Send(Open({{"map"}}, /*credit=*/0));
  for (uint64_t id = 1; id <= 5; ++id) client.Send(Batch(id, MakeImages(1, id)));
  engine_->WaitComputed(2);
  client.Send(Fence(100));
  EXPECT_EQ(ReadAnswer(client).first, 100);
  EXPECT_THAT(engine_->computed(), ElementsAre(1, 2));
  // Other streams are not held up.
  ExpectAlive();
  client.Send(Credit(kPlenty));
  for (uint64_t id = 1; id <= 5; ++id) {
    auto [answered, answer] = ReadAnswer(client);
    EXPECT_EQ(answered, id);
    EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(MakeImages(1, id), {"map"}).bytes))
        << "map of " << id << " differs";
  }
}

// One budget over all streams, whatever their number: clients that fetch nothing hold at most half of it, and the others
// have the rest.
TEST_F(FeatureServiceTest, ClientsWithoutCreditShareOneBudgetAndHoldUpNobodyElse) {
  FeatureService::Options options;
  options.memory_budget = 16 * kImageMapBytes;
  StartServer(/*held=*/false, options);
  std::vector<std::unique_ptr<Client>> idle;
  for (uint64_t i = 0; i < 12; ++i) {
    idle.push_back(std::make_unique<Client>(address()));
    idle.back()->Send(Open({{"map"}}, /*credit=*/0));
    idle.back()->Send(Batch(i, MakeImages(1, i)));
    idle.back()->Send(Fence(100));
    EXPECT_EQ(ReadAnswer(*idle.back()).first, 100);
  }
  engine_->WaitComputed(1);
  for (int round = 0; round < 3; ++round) ExpectAlive();
  Client reader(address());
  reader.Send(Open({{"map"}}));
  for (uint64_t id = 1; id <= 5; ++id) {
    reader.Send(Batch(id, MakeImages(1, id)));
    auto [answered, answer] = ReadAnswer(reader);
    EXPECT_EQ(answered, id);
    EXPECT_EQ(answer.error, "");
  }
  // Twelve answers would be more than the half of the budget that features have.
  size_t computed = 0;
  for (uint64_t tag : engine_->computed()) computed += tag < 12 ? 1 : 0;
  EXPECT_LE(computed, 4 + 3 + 5);  // a quarter of the budget of the idle ones; ids of the others overlap
  // With credit each of them gets its answer after all.
  for (uint64_t i = 0; i < 12; ++i) idle[i]->Send(Credit(kPlenty));
  for (uint64_t i = 0; i < 12; ++i) {
    auto [id, answer] = ReadAnswer(*idle[i]);
    EXPECT_EQ(id, i);
    EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(MakeImages(1, i), {"map"}).bytes)) << i;
  }
}

TEST_F(FeatureServiceTest, PixelsBeyondTheBudgetAreSentElsewhereInBand) {
  FeatureService::Options options;
  options.memory_budget = 8 * kChannels * kSide * kSide;
  StartServer(/*held=*/true, options);
  Client first(address()), second(address());
  first.Send(Open({{"mean"}}));
  first.Send(Batch(1, MakeImages(4)));
  first.Send(Fence(100));
  EXPECT_EQ(ReadAnswer(first).first, 100);
  second.Send(Open({{"mean"}}));
  second.Send(Batch(2, MakeImages(1)));
  auto [id, answer] = ReadAnswer(second);
  EXPECT_EQ(id, 2);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(answer.error, HasSubstr("take another teacher"));
  engine_->Release();
  EXPECT_EQ(ReadAnswer(first).first, 1);
  second.Send(Batch(3, MakeImages(1)));
  EXPECT_EQ(ReadAnswer(second).second.error, "");
}

// It granted credit for everything and reads nothing.
TEST_F(FeatureServiceTest, AClientThatTakesNothingIsEndedWhenOthersWaitForItsMemory) {
  FeatureService::Options options;
  options.memory_budget = 6 * kImageMapBytes;
  options.slow_client_timeout = std::chrono::milliseconds(100);
  StartServer(/*held=*/false, options);
  Client idle(address());
  idle.Send(Open({{"map"}}, /*credit=*/1));
  idle.Send(Batch(1, MakeImages(8)));  // more than the budget: only one can go
  engine_->WaitComputed(1);
  Client reader(address());
  reader.Send(Open({{"map"}}));
  reader.Send(Batch(2, MakeImages(1)));
  auto [id, answer] = ReadAnswer(reader);
  EXPECT_EQ(id, 2);
  EXPECT_EQ(answer.error, "");
  const grpc::Status status = idle.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("takes none of its features"));
  // Alone it may take its time.
  Client alone(address());
  alone.Send(Open({{"map"}}, /*credit=*/1));
  alone.Send(Batch(1, MakeImages(1)));
  EXPECT_EQ(alone.Read()->payload().size(), 1);
  absl::SleepFor(absl::Milliseconds(500));
  alone.Send(Credit(kPlenty));
  EXPECT_TRUE(alone.Read()->last());
}

TEST_F(FeatureServiceTest, StreamsAreLimitedAndMustOpenInTime) {
  FeatureService::Options options;
  options.max_streams = 2;
  options.open_timeout = std::chrono::milliseconds(200);
  StartServer(/*held=*/false, options);
  Client opened(address());
  opened.Send(Open({{"mean"}}));
  opened.Send(Fence(1));
  EXPECT_EQ(ReadAnswer(opened).first, 1);
  {
    Client silent(address());
    const grpc::Status status = silent.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(status.error_message(), HasSubstr("no `open` came in time"));
  }
  Client second(address());
  second.Send(Open({{"mean"}}));
  second.Send(Fence(1));
  EXPECT_EQ(ReadAnswer(second).first, 1);
  Client third(address());
  const grpc::Status status = third.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("2 streams open, the most allowed"));
  opened.Send(Fence(2));
  EXPECT_EQ(ReadAnswer(opened).first, 2);
}

// What a client calls itself, and what it asks for, goes into logs and messages.
TEST_F(FeatureServiceTest, NamesOfAnyLengthAreRefusedBeforeTheyAreRepeated) {
  StartServer();
  const std::string longest(kMaxNameBytes, 'x');
  {
    Client client(address());
    v1::FeatureRequest request = Open({{"mean"}});
    request.mutable_open()->set_client(longest);
    client.Send(request);
    client.HalfClose();
    EXPECT_TRUE(client.Finish().ok());
  }
  const struct {
    std::string what;
    void (*change)(v1::OpenStream*, const std::string&);
  } kCases[] = {
      {"client", [](v1::OpenStream* open, const std::string& text) { open->set_client(text); }},
      {"model", [](v1::OpenStream* open, const std::string& text) { open->set_model(text); }},
      {"digest", [](v1::OpenStream* open, const std::string& text) { open->set_digest(text); }},
      {"tap", [](v1::OpenStream* open, const std::string& text) { open->mutable_taps(0)->set_tap(text); }},
  };
  for (const auto& c : kCases) {
    Client client(address());
    v1::FeatureRequest request = Open({{"mean"}});
    c.change(request.mutable_open(), std::string(10 << 20, 'x'));
    client.Send(request);
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << c.what;
    EXPECT_THAT(status.error_message(), HasSubstr(c.what + " has 10485760 bytes"));
    EXPECT_LT(status.error_message().size(), 200u);
  }
  // A shape of any length, too.
  Client client(address());
  client.Send(Open({{"mean"}}));
  v1::FeatureRequest request = Batch(1, MakeImages(1));
  for (int i = 0; i < 100000; ++i) request.mutable_batch()->add_shape(1);
  client.Send(request);
  EXPECT_LT(ReadAnswer(client).second.error.size(), 200u);
}

// An engine in which request 2 is on its way for as long as its cancel takes.
class SlowDoorEngine final : public TeacherEngine {
 public:
  explicit SlowDoorEngine(TeacherEngine* inner) : inner_(inner) {}
  const std::vector<TeacherModel>& models() const override { return inner_->models(); }
  void Submit(TeacherRequest request, Callback done) override {
    {
      absl::MutexLock lock(&mutex_);
      submitted_.push_back(request.tag);
      if (request.tag == 2) {
        auto cancelled = [this] { return cancels_ > 0; };
        mutex_.AwaitWithTimeout(absl::Condition(&cancelled), absl::FromChrono(kPatience));
        held_ = std::move(done);
        return;
      }
    }
    inner_->Submit(std::move(request), std::move(done));
  }
  void Cancel(uint64_t client, uint64_t tag) override {
    Callback held;
    {
      absl::MutexLock lock(&mutex_);
      if (tag == 2) {
        ++cancels_;
        held = std::exchange(held_, nullptr);
      }
    }
    if (held) held(absl::CancelledError("dropped"));
    inner_->Cancel(client, tag);
  }
  void CancelClient(uint64_t client) override { inner_->CancelClient(client); }
  uint32_t QueueLength() const override { return inner_->QueueLength(); }
  bool Drain(std::chrono::milliseconds timeout) override { return inner_->Drain(timeout); }
  void Stop() override { inner_->Stop(); }
  std::vector<uint64_t> submitted() {
    absl::MutexLock lock(&mutex_);
    return submitted_;
  }

 private:
  TeacherEngine* const inner_;  // not owned
  absl::Mutex mutex_;
  int cancels_ = 0;
  Callback held_;
  std::vector<uint64_t> submitted_;
};

// The first cancel finds nothing in the engine, because the request is not there yet.
TEST_F(FeatureServiceTest, ACancelIsNotLostWhileItsBatchIsOnTheWayToTheEngine) {
  FeatureService::Options options;
  options.max_unsent_bytes =
      kImageMapBytes;  // one at a time, so that another thread than the reader's submits the next
  StartServer(/*held=*/false, options, /*with_engine=*/false);
  SlowDoorEngine slow(engine_.get());
  service_->SetEngine(&slow);
  Client client(address());
  client.Send(Open({{"map"}}, /*credit=*/0));
  for (uint64_t id : {1, 2, 3, 4}) client.Send(Batch(id, MakeImages(1, id)));
  engine_->WaitComputed(1);
  client.Send(Credit(kPlenty));
  EXPECT_EQ(ReadAnswer(client).first, 1);
  client.Send(Cancel(2));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(id, 2);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::CANCELLED);
  EXPECT_EQ(ReadAnswer(client).first, 3);
  EXPECT_EQ(ReadAnswer(client).first, 4);
  const std::vector<uint64_t> submitted = slow.submitted();
  EXPECT_TRUE(std::is_sorted(submitted.begin(), submitted.end()));  // one client's requests in order
  client.HalfClose();
  EXPECT_TRUE(client.Finish().ok());
  server_->Stop(std::chrono::milliseconds(0));
}

TEST_F(FeatureServiceTest, ADisconnectedClientsWaitingBatchesAreNeverComputed) {
  StartServer(/*held=*/true);
  {
    Client client(address());
    client.Send(Open({{"mean"}}));
    for (uint64_t id : {1, 2, 3}) client.Send(Batch(id, MakeImages(1)));
    client.Send(Fence(100));
    EXPECT_EQ(ReadAnswer(client).first, 100);
    EXPECT_EQ(engine_->QueueLength(), 3);
    client.Disconnect();
  }
  ASSERT_TRUE(service_->WaitIdle(kPatience));
  EXPECT_EQ(engine_->QueueLength(), 0);
  engine_->Release();
  ExpectAlive();
  EXPECT_THAT(engine_->computed(), ElementsAre(5));
  EXPECT_EQ(Requests("cancelled"), 3);
}

TEST_F(FeatureServiceTest, AClientMayDisconnectInTheMiddleOfAnAnswer) {
  StartServer();
  for (uint64_t credit : {uint64_t{1000}, 2 * kChunkBytes, kPlenty}) {  // waiting for credit, or for the transport
    Client client(address());
    client.Send(Open({{"map"}}, credit));
    for (uint64_t id : {1, 2}) client.Send(Batch(id, MakeImages(100)));
    EXPECT_TRUE(client.Read().has_value());
    client.Disconnect();
  }
  ASSERT_TRUE(service_->WaitIdle(kPatience));
  EXPECT_EQ(metrics_.GetGauge("distill_teacher_streams", "Open feature streams.").Value(), 0);
  ExpectAlive();
}

TEST_F(FeatureServiceTest, AfterHalfCloseAnswersComeAsFarAsTheCreditReaches) {
  StartServer(/*held=*/true);
  Client enough(address()), short_of(address());
  enough.Send(Open({{"map"}}, 2 * kImageMapBytes));
  short_of.Send(Open({{"map"}}, 2 * kImageMapBytes - 1));
  for (Client* client : {&enough, &short_of}) {
    client->Send(Batch(1, MakeImages(1)));
    client->Send(Batch(2, MakeImages(1)));
    client->HalfClose();
  }
  engine_->Release();
  EXPECT_EQ(ReadAnswer(enough).first, 1);
  EXPECT_EQ(ReadAnswer(enough).first, 2);
  EXPECT_TRUE(enough.Finish().ok());
  EXPECT_EQ(ReadAnswer(short_of).first, 1);
  const grpc::Status status = short_of.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), AllOf(HasSubstr("1 bytes of features are unsent"), HasSubstr("credit")));
}

TEST_F(FeatureServiceTest, DrainingFinishesWhatRunsAndSendsClientsElsewhere) {
  StartServer(/*held=*/true);
  Client busy(address()), idle(address());
  idle.Send(Open({{"mean"}}));
  idle.Send(Fence(100));
  EXPECT_EQ(ReadAnswer(idle).first, 100);
  busy.Send(Open({{"mean"}}));
  busy.Send(Batch(1, MakeImages(1)));
  busy.Send(Fence(100));
  EXPECT_EQ(ReadAnswer(busy).first, 100);

  service_->Drain();
  EXPECT_EQ(idle.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client late(address());
  EXPECT_EQ(late.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  busy.Send(Batch(2, MakeImages(1)));
  auto [refused, answer] = ReadAnswer(busy);
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(service_->WaitIdle(std::chrono::milliseconds(0)));
  engine_->Release();
  auto [finished, result] = ReadAnswer(busy);
  EXPECT_EQ(finished, 1);
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(busy.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(service_->WaitIdle(kPatience));
}

TEST_F(FeatureServiceTest, WhileLoadingClientsAreToldToTryAgain) {
  StartServer(/*held=*/false, {}, /*with_engine=*/false);
  Client early(address());
  const grpc::Status status = early.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("loading"));
  service_->SetEngine(engine_.get());
  ExpectAlive();
}

TEST_F(FeatureServiceTest, ListModelsTellsWhatIsServed) {
  StartServer();
  auto stub = v1::FeatureService::NewStub(grpc::CreateChannel(address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::ListModelsResponse response;
  const grpc::Status status = stub->ListModels(&context, {}, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(response.models_size(), 1);
  EXPECT_EQ(response.models(0).name(), "means");
  EXPECT_EQ(response.models(0).digest(), "d1");
  EXPECT_EQ(response.models(0).spec().image_height(), kSide);
  ASSERT_EQ(response.models(0).taps_size(), 2);
  EXPECT_EQ(response.models(0).taps(0).path(), "map");
  EXPECT_THAT(response.models(0).taps(0).shape(), ElementsAre(kChannels, kSide, kSide));
  EXPECT_TRUE(response.models(0).taps(1).stage_end());
}

TEST_F(FeatureServiceTest, ManyClientsAtOnceEachGetTheirOwnAnswers) {
  StartServer();
  std::vector<std::thread> threads;
  for (uint32_t c = 0; c < 6; ++c) {
    threads.emplace_back([this, c] {
      Client client(address());
      client.Send(Open({{"map"}, {"mean"}}, 0));
      for (uint64_t step = 0; step < 10; ++step) {
        const ImageBatch images = MakeImages(1 + (step + c) % 7, 100 * c + step);
        client.Send(Batch(step, images));
        client.Send(Credit(images.n * (kImageMapBytes + 4 * kChannels)));
        auto [id, answer] = ReadAnswer(client);
        EXPECT_EQ(id, step);
        EXPECT_TRUE(answer.taps[0] == View(ChannelMeanEngine::Expected(images, {"map"}).bytes))
            << "client " << c << " step " << step;
        EXPECT_TRUE(answer.taps[1] == View(ChannelMeanEngine::Expected(images, {"mean"}).bytes))
            << "client " << c << " step " << step;
      }
      client.HalfClose();
      EXPECT_TRUE(client.Finish().ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Requests("ok"), 60);
}

}  // namespace
}  // namespace distill
