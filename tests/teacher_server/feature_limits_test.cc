// The feature service over real gRPC: what it refuses, and how much of its memory clients may hold.
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/teacher_server/feature_service_fixture.h"

namespace distill::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FeatureLimitsTest : public FeatureServiceFixture {};

TEST_F(FeatureLimitsTest, AWrongOpenIsRefusedWithTheReason) {
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
      {change([](v1::OpenStream* o) { o->mutable_taps(0)->mutable_encoding()->set_dtype(v1::WIRE_DTYPE_U8); }),
       grpc::StatusCode::INVALID_ARGUMENT, "dtype 4"},
      {change([](v1::OpenStream* o) { o->mutable_taps(0)->clear_encoding(); }), grpc::StatusCode::INVALID_ARGUMENT,
       "dtype 0"},
      {Open({{"mean", v1::WIRE_DTYPE_F32, true}}), grpc::StatusCode::INVALID_ARGUMENT,
       "less_row_max needs a feature map"},
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

TEST_F(FeatureLimitsTest, AMessageOutOfPlaceEndsTheStream) {
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
  ASSERT_TRUE(streams_->WaitIdle(kPatience));
  engine_->Release();
  ExpectAlive();
  EXPECT_THAT(engine_->computed(), ElementsAre(5));
}

TEST_F(FeatureLimitsTest, AWrongBatchIsRefusedInBandAndTheStreamGoesOn) {
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

TEST_F(FeatureLimitsTest, TooManyUnansweredBatchesAreRefusedInBand) {
  StreamLimits limits;
  limits.max_unanswered = 2;
  StartServer(/*held=*/true, limits);
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

TEST_F(FeatureLimitsTest, BytesOfPixelsAndOfAnswersAreBounded) {
  StreamLimits limits;
  limits.max_waiting_bytes = 3 * kChannels * kSide * kSide;  // three images
  limits.max_answer_bytes = 5 * kImageMapBytes;
  StartServer(/*held=*/true, limits);
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

TEST_F(FeatureLimitsTest, AClientWithoutCreditDoesNotMakeTheServerComputeAhead) {
  StreamLimits limits;
  limits.max_unsent_bytes = 2 * kImageMapBytes;
  StartServer(/*held=*/false, limits);
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

// One budget over all streams, whatever their number: clients that fetch nothing hold at most half of it, and the
// others have the rest.
TEST_F(FeatureLimitsTest, ClientsWithoutCreditShareOneBudgetAndHoldUpNobodyElse) {
  StreamLimits limits;
  limits.memory_budget = 16 * kImageMapBytes;
  StartServer(/*held=*/false, limits);
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

TEST_F(FeatureLimitsTest, PixelsBeyondTheBudgetAreSentElsewhereInBand) {
  StreamLimits limits;
  limits.memory_budget = 8 * kChannels * kSide * kSide;
  StartServer(/*held=*/true, limits);
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
TEST_F(FeatureLimitsTest, AClientThatTakesNothingIsEndedWhenOthersWaitForItsMemory) {
  StreamLimits limits;
  limits.memory_budget = 6 * kImageMapBytes;
  limits.slow_client_timeout = std::chrono::milliseconds(100);
  StartServer(/*held=*/false, limits);
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

TEST_F(FeatureLimitsTest, StreamsAreLimitedAndMustOpenInTime) {
  StreamLimits limits;
  limits.max_streams = 2;
  limits.open_timeout = std::chrono::milliseconds(200);
  StartServer(/*held=*/false, limits);
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
TEST_F(FeatureLimitsTest, NamesOfAnyLengthAreRefusedBeforeTheyAreRepeated) {
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

}  // namespace
}  // namespace distill::testing
