// The feature service over real gRPC: bytes on the wire, and its life from loading to draining.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "common/wire/proto_codec.h"
#include "tests/teacher_server/feature_service_fixture.h"

namespace distill::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FeatureServiceTest : public FeatureServiceFixture {};

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

  streams_->Drain();
  EXPECT_EQ(idle.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  Client late(address());
  EXPECT_EQ(late.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  busy.Send(Batch(2, MakeImages(1)));
  auto [refused, answer] = ReadAnswer(busy);
  EXPECT_EQ(refused, 2);
  EXPECT_EQ(answer.error_code, grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(streams_->WaitIdle(std::chrono::milliseconds(0)));
  engine_->Release();
  auto [finished, result] = ReadAnswer(busy);
  EXPECT_EQ(finished, 1);
  EXPECT_EQ(result.error, "");
  EXPECT_EQ(busy.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(streams_->WaitIdle(kPatience));
}

TEST_F(FeatureServiceTest, WhileLoadingClientsAreToldToTryAgain) {
  StartServer(/*held=*/false, {}, /*with_engine=*/false);
  Client early(address());
  const grpc::Status status = early.Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("loading"));
  streams_->SetEngine(engine_.get());
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
}  // namespace distill::testing
