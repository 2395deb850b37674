// Shared memory from the teacher's side, with a client of generated code that speaks for itself: what is offered to
// whom, what travels through the ring and what over gRPC, and what a client cannot do.
#include <gmock/gmock.h>
#include <sched.h>

#include "absl/time/clock.h"
#include "common/shared_memory/boot_id.h"
#include "common/shared_memory/descriptor_request.h"
#include "common/shared_memory/memory_ring.h"
#include "common/str_cat.h"
#include "tests/teacher_server/feature_service_fixture.h"

namespace distill::testing {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kRing = kLeastRingBytes;
constexpr int kPieces = 4;
constexpr uint64_t kPiece = kRing / kPieces;

v1::FeatureRequest OpenShared(const std::vector<Tap>& taps, uint64_t credit = kPlenty) {
  v1::FeatureRequest request = Open(taps, credit);
  request.mutable_open()->set_boot_id(BootId());
  request.mutable_open()->set_shared_memory_bytes(kRing);
  return request;
}
v1::FeatureRequest Mapped(bool mapped = true) {
  v1::FeatureRequest request;
  request.set_shared_memory_mapped(mapped);
  return request;
}
v1::FeatureRequest Returned(uint64_t bytes) {
  v1::FeatureRequest request;
  request.set_shared_memory_returned(bytes);
  return request;
}

// The next message, which is an offer, and the memory.
std::shared_ptr<const RingReader> Join(Client& client) {
  const std::optional<v1::FeatureResponse> response = client.Read();
  if (!response || !response->shared_memory().has_offer()) {
    ADD_FAILURE() << "no offer";
    return nullptr;
  }
  const v1::SharedMemoryOffer& offer = response->shared_memory().offer();
  auto request = DescriptorRequest::Start("", offer.socket(), offer.secret());
  if (!request.ok()) {
    ADD_FAILURE() << request.status();
    return nullptr;
  }
  while (true) {
    auto fd = request->Poll();
    if (!fd.ok()) {
      ADD_FAILURE() << fd.status();
      return nullptr;
    }
    if (fd->has_value()) return RingReader::Open(**std::move(fd), offer.bytes()).value();
    sched_yield();
  }
}

// The bytes of a chunk, wherever they are.
std::string BytesOf(const v1::FeatureResponse& chunk, const RingReader& ring) {
  if (!chunk.shared_memory().has_piece()) return chunk.payload();
  EXPECT_TRUE(chunk.payload().empty());
  const v1::SharedMemoryPiece& piece = chunk.shared_memory().piece();
  const auto bytes = ring.At({piece.offset(), piece.size()}).value();
  return std::string(bytes.begin(), bytes.end());
}

class SharedMemoryTest : public FeatureServiceFixture {
 protected:
  void StartSharing(bool held = false, StreamLimits limits = {}) {
    rings_ = DescriptorServer::Start("").value();
    StartServer(held, limits);
  }
  double SharedBytes() {
    return metrics_
        .GetCounter("distill_teacher_shared_memory_bytes_total",
                    "Those of the payload bytes that went through shared memory.")
        .Value();
  }
  double SharedStreams() {
    return metrics_
        .GetGauge("distill_teacher_shared_memory_streams", "Streams whose features go through shared memory.")
        .Value();
  }
  // A wrong word ends the stream, and nothing else.
  void ExpectRefused(Client& client, const std::string& text) {
    const grpc::Status status = client.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(text));
    ExpectAlive();
  }
  // At most a minute.
  bool BudgetIsEmpty() {
    for (int i = 0; i < 12000 && streams_->budget().used() > 0; ++i) absl::SleepFor(absl::Milliseconds(5));
    return streams_->budget().used() == 0;
  }
};

TEST_F(SharedMemoryTest, AnswersGoThroughTheRingOfAClientOfThisHost) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}, {"mean"}}));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  client.Send(Mapped());
  for (uint64_t id = 0; id < 3; ++id) {
    const ImageBatch images = MakeImages(4, static_cast<uint32_t>(id));  // three rings of maps
    client.Send(Batch(id, images));
    Assembled answer;
    for (bool last = false; !last;) {
      auto chunk = client.Read();
      ASSERT_TRUE(chunk.has_value());
      ASSERT_EQ(chunk->error(), "");
      EXPECT_TRUE(chunk->shared_memory().has_piece());
      EXPECT_LE(chunk->shared_memory().piece().size(), kPiece);
      chunk->set_payload(BytesOf(*chunk, *ring) + chunk->payload());
      client.Send(Returned(chunk->shared_memory().piece().size()));
      Add(*chunk, &answer);
      last = chunk->last();
    }
    EXPECT_EQ(answer.taps[0], View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
    EXPECT_EQ(answer.taps[1], View(ChannelMeanEngine::Expected(images, {"mean"}).bytes));
    EXPECT_EQ(answer.digest, "d1");
  }
  EXPECT_EQ(SharedStreams(), 1);
  EXPECT_EQ(SharedBytes(), SentBytes());
  EXPECT_EQ(SharedBytes(), 3 * (4 * kImageMapBytes + 4 * 4 * kChannels));
  client.HalfClose();
  EXPECT_TRUE(client.Finish().ok());
  EXPECT_TRUE(BudgetIsEmpty());
  EXPECT_EQ(SharedStreams(), 0);
}

TEST_F(SharedMemoryTest, NothingLiesThereBeforeTheClientHasMappedIt) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  const ImageBatch images = MakeImages(1);
  client.Send(Batch(1, images));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(answer.taps[0], View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
  EXPECT_EQ(SharedBytes(), 0);
  client.Send(Mapped());
  client.Send(Batch(2, images));
  const auto chunk = client.Read();
  ASSERT_TRUE(chunk.has_value());
  EXPECT_TRUE(chunk->shared_memory().has_piece());
}

TEST_F(SharedMemoryTest, NothingIsOfferedToAnotherHostOrWhoWishesNone) {
  StartSharing();
  std::vector<v1::FeatureRequest> opens(5, OpenShared({{"mean"}}));
  opens[0].mutable_open()->set_boot_id("another kernel");
  opens[1].mutable_open()->clear_boot_id();
  opens[2].mutable_open()->clear_shared_memory_bytes();
  opens[3].mutable_open()->set_shared_memory_bytes(kLeastRingBytes - 1);
  opens[4].clear_open();
  opens[4] = Open({{"mean"}});
  for (const v1::FeatureRequest& open : opens) {
    Client client(address());
    client.Send(open);
    client.Send(Batch(1, MakeImages(1)));
    const auto chunk = client.Read();
    ASSERT_TRUE(chunk.has_value());
    EXPECT_FALSE(chunk->has_shared_memory());
    EXPECT_TRUE(chunk->last());
  }
}

TEST_F(SharedMemoryTest, NothingIsOfferedWhereItIsOff) {
  StartServer();
  Client client(address());
  client.Send(OpenShared({{"mean"}}));
  client.Send(Batch(1, MakeImages(1)));
  const auto chunk = client.Read();
  ASSERT_TRUE(chunk.has_value());
  EXPECT_FALSE(chunk->has_shared_memory());
}

TEST_F(SharedMemoryTest, AClientThatCannotHaveItGetsMessagesAndTheMemoryIsGivenBack) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}));
  ASSERT_TRUE(client.Read()->shared_memory().has_offer());
  EXPECT_GE(streams_->budget().used(), kRing);
  client.Send(Mapped(false));
  const ImageBatch images = MakeImages(2);
  client.Send(Batch(1, images));
  auto [id, answer] = ReadAnswer(client);
  EXPECT_EQ(answer.taps[0], View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
  EXPECT_TRUE(BudgetIsEmpty());
}

TEST_F(SharedMemoryTest, AFullRingWaitsForItsClientAndErrorsOvertake) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  client.Send(Mapped());
  const ImageBatch images = MakeImages(4);
  client.Send(Batch(1, images));
  std::string bytes;
  const auto read_piece = [&](uint64_t size) {
    const auto chunk = client.Read();
    ASSERT_TRUE(chunk.has_value());
    ASSERT_TRUE(chunk->shared_memory().has_piece());
    ASSERT_EQ(chunk->shared_memory().piece().size(), size);
    bytes += BytesOf(*chunk, *ring);
  };
  for (int i = 0; i < kPieces; ++i) read_piece(kPiece);
  client.Send(Fence(99));
  EXPECT_EQ(client.Read()->request_id(), 99);  // no piece came before
  client.Send(Returned(100));
  read_piece(100);
  client.Send(Returned(kPiece));
  read_piece(kPiece);
  client.Send(Returned((kPieces - 1) * kPiece - 100));
  while (bytes.size() < 4 * kImageMapBytes) {
    const auto chunk = client.Read();
    ASSERT_TRUE(chunk.has_value());
    bytes += BytesOf(*chunk, *ring);
    client.Send(Returned(chunk->shared_memory().piece().size()));
  }
  EXPECT_EQ(bytes, View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
}

TEST_F(SharedMemoryTest, CreditBoundsPiecesToo) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}, 1000));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  client.Send(Mapped());
  client.Send(Batch(1, MakeImages(1)));
  EXPECT_EQ(client.Read()->shared_memory().piece().size(), 1000);
  client.Send(Fence(99));
  EXPECT_EQ(client.Read()->request_id(), 99);
  client.Send(Credit(500));
  EXPECT_EQ(client.Read()->shared_memory().piece().size(), 500);
}

TEST_F(SharedMemoryTest, AClientThatHasClosedItsSideGetsTheRestInMessages) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  client.Send(Mapped());
  const ImageBatch images = MakeImages(4);
  client.Send(Batch(1, images));
  std::string bytes;
  for (int i = 0; i < kPieces; ++i) bytes += BytesOf(*client.Read(), *ring);
  client.HalfClose();
  while (const auto chunk = client.Read()) {
    EXPECT_FALSE(chunk->has_shared_memory());
    bytes += chunk->payload();
  }
  EXPECT_TRUE(client.Finish().ok());
  EXPECT_EQ(bytes, View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
}

TEST_F(SharedMemoryTest, WhoGoesAwayInTheMiddleOfAnAnswerLeavesNothing) {
  StartSharing();
  for (const bool mapped : {false, true}) {
    Client client(address());
    client.Send(OpenShared({{"map"}}));
    const auto ring = Join(client);
    ASSERT_NE(ring, nullptr);
    if (mapped) {
      client.Send(Mapped());
      client.Send(Batch(1, MakeImages(4)));
      for (int i = 0; i < kPieces; ++i) ASSERT_TRUE(client.Read()->shared_memory().has_piece());
    }
    client.Disconnect();
    EXPECT_TRUE(BudgetIsEmpty());
    EXPECT_EQ(SharedStreams(), 0);
    ExpectAlive();
  }
}

TEST_F(SharedMemoryTest, AServerThatEndsLeavesItsClientWhatItHasMapped) {
  StartSharing();
  Client client(address());
  client.Send(OpenShared({{"map"}}));
  const auto ring = Join(client);
  ASSERT_NE(ring, nullptr);
  client.Send(Mapped());
  const ImageBatch images = MakeImages(1);
  client.Send(Batch(1, images));
  std::vector<v1::FeatureResponse> chunks;
  while (chunks.empty() || !chunks.back().last()) chunks.push_back(*client.Read());
  server_->Stop(std::chrono::milliseconds(0));
  EXPECT_FALSE(client.Finish().ok());
  std::string bytes;
  for (const auto& chunk : chunks) bytes += BytesOf(chunk, *ring);
  EXPECT_EQ(bytes, View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
}

TEST_F(SharedMemoryTest, WordsAboutMemoryThatWasNotOfferedEndTheStream) {
  StartSharing();
  for (const v1::FeatureRequest& word : {Mapped(), Mapped(false)}) {
    Client client(address());
    client.Send(Open({{"mean"}}));
    client.Send(word);
    ExpectRefused(client, "without an offer");
  }
  Client client(address());
  client.Send(Open({{"mean"}}));
  client.Send(Returned(1));
  ExpectRefused(client, "more than there were to return");
  for (const bool mapped : {false, true}) {
    Client twice(address());
    twice.Send(OpenShared({{"mean"}}));
    ASSERT_TRUE(twice.Read()->shared_memory().has_offer());
    twice.Send(Mapped(mapped));
    twice.Send(Mapped());
    ExpectRefused(twice, "once too often");
  }
}

TEST_F(SharedMemoryTest, NoMoreIsReturnedThanLiesThere) {
  StartSharing();
  for (const uint64_t bytes : {uint64_t{1}, uint64_t{UINT64_MAX}}) {
    Client client(address());
    client.Send(OpenShared({{"mean"}}));
    ASSERT_TRUE(client.Read()->shared_memory().has_offer());
    client.Send(Mapped());
    client.Send(Returned(bytes));
    ExpectRefused(client, StrCat(bytes, " bytes, which are more than there were to return"));
  }
  EXPECT_TRUE(BudgetIsEmpty());
}

TEST_F(SharedMemoryTest, RingsHaveAnEighthOfTheBudgetAndTheNextClientGetsMessages) {
  StreamLimits limits;
  limits.memory_budget = 16 * kRing;
  StartSharing(/*held=*/false, limits);
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 3; ++i) {
    clients.push_back(std::make_unique<Client>(address()));
    clients.back()->Send(OpenShared({{"mean"}}));
    if (i < 2) {
      EXPECT_TRUE(clients.back()->Read()->shared_memory().has_offer());
    }
  }
  clients.back()->Send(Batch(1, MakeImages(1)));
  const auto chunk = clients.back()->Read();
  ASSERT_TRUE(chunk.has_value());
  EXPECT_FALSE(chunk->has_shared_memory());
  EXPECT_TRUE(chunk->last());
  clients.clear();
  EXPECT_TRUE(BudgetIsEmpty());
  Client later(address());
  later.Send(OpenShared({{"mean"}}));
  EXPECT_TRUE(later.Read()->shared_memory().has_offer());
}

// One that reads nothing of its ring holds memory, as one that grants no credit.
TEST_F(SharedMemoryTest, AFullRingThatNobodyReadsEndsWhenOthersNeedTheMemory) {
  StreamLimits limits;
  limits.memory_budget = 32 * kRing;  // 1 MiB for features, less rings
  limits.slow_client_timeout = std::chrono::milliseconds(200);
  StartSharing(/*held=*/false, limits);
  Client slow(address());
  slow.Send(OpenShared({{"map"}}));
  ASSERT_NE(Join(slow), nullptr);
  slow.Send(Mapped());
  slow.Send(Batch(1, MakeImages(20)));  // 983040 bytes
  for (int i = 0; i < kPieces; ++i) ASSERT_TRUE(slow.Read()->shared_memory().has_piece());
  Client other(address());
  other.Send(Open({{"map"}}));
  const ImageBatch images = MakeImages(4);
  other.Send(Batch(1, images));
  auto [id, answer] = ReadAnswer(other);
  EXPECT_EQ(answer.taps[0], View(ChannelMeanEngine::Expected(images, {"map"}).bytes));
  const grpc::Status end = slow.Finish();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE) << end.error_message();
}

}  // namespace
}  // namespace distill::testing
