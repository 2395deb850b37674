// The feature service over real gRPC: credit, cancels, and clients that leave.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "tests/teacher_server/feature_service_fixture.h"

namespace distill::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FeatureFlowTest : public FeatureServiceFixture {};

TEST_F(FeatureFlowTest, CreditIsHonouredToTheByte) {
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

TEST_F(FeatureFlowTest, ACancelledBatchThatWaitsIsNeverComputed) {
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

TEST_F(FeatureFlowTest, ABatchCanBeCancelledInTheMiddleOfItsAnswer) {
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
TEST_F(FeatureFlowTest, ACancelIsNotLostWhileItsBatchIsOnTheWayToTheEngine) {
  StreamLimits limits;
  limits.max_unsent_bytes = kImageMapBytes;  // one at a time, so that another thread than the reader's submits the next
  StartServer(/*held=*/false, limits, /*with_engine=*/false);
  SlowDoorEngine slow(engine_.get());
  streams_->SetEngine(&slow);
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

TEST_F(FeatureFlowTest, ADisconnectedClientsWaitingBatchesAreNeverComputed) {
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
  ASSERT_TRUE(streams_->WaitIdle(kPatience));
  EXPECT_EQ(engine_->QueueLength(), 0);
  engine_->Release();
  ExpectAlive();
  EXPECT_THAT(engine_->computed(), ElementsAre(5));
  EXPECT_EQ(Requests("cancelled"), 3);
}

TEST_F(FeatureFlowTest, AClientMayDisconnectInTheMiddleOfAnAnswer) {
  StartServer();
  for (uint64_t credit : {uint64_t{1000}, 2 * kChunkBytes, kPlenty}) {  // waiting for credit, or for the transport
    Client client(address());
    client.Send(Open({{"map"}}, credit));
    for (uint64_t id : {1, 2}) client.Send(Batch(id, MakeImages(100)));
    EXPECT_TRUE(client.Read().has_value());
    client.Disconnect();
  }
  ASSERT_TRUE(streams_->WaitIdle(kPatience));
  EXPECT_EQ(
      metrics_.GetGauge("distill_teacher_streams", "Open feature streams, and inference requests under way.").Value(),
      0);
  ExpectAlive();
}

TEST_F(FeatureFlowTest, AfterHalfCloseAnswersComeAsFarAsTheCreditReaches) {
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

}  // namespace
}  // namespace distill::testing
