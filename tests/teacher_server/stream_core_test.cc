// The stream's state machine without gRPC: what a client says goes in as calls, what it gets is written down.
#include "teacher_server/stream_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics.h"
#include "teacher_server/stream_set.h"
#include "tests/teacher_server/channel_mean_engine.h"

namespace distill::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint32_t kChannels = 2;
constexpr uint32_t kSide = 4;
constexpr uint64_t kImageMapBytes = 4 * kChannels * kSide * kSide;  // tap "map" as f32
constexpr uint64_t kPlenty = 1ull << 40;

Buffer Pixels(uint32_t n) { return Buffer::FromVector(std::vector<uint8_t>(n * kChannels * kSide * kSide, 7)); }
std::vector<uint32_t> Shape(uint32_t n) { return {n, kChannels, kSide, kSide}; }

StreamOpen OpenMap(uint64_t credit) {
  StreamOpen open;
  open.model = "means";
  open.client = "test";
  open.taps = {{"map", static_cast<int>(WireDtype::kF32)}};
  open.credit_bytes = credit;
  return open;
}

// A client that takes one message at a time, when the test says so.
class Recorder final : public StreamTransport {
 public:
  void Send(StreamMessage message) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(under_way_) << "a message before the last one was sent";
    EXPECT_FALSE(end_.has_value()) << "a message after the end";
    under_way_ = true;
    messages_.push_back(std::move(message));
  }
  void Finish(const Status& status) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(under_way_) << "the end came while a message was under way";
    EXPECT_FALSE(end_.has_value()) << "the end came twice";
    end_ = status;
  }

  // Waits for the next message and takes it.
  StreamMessage Next(StreamCore* core) {
    StreamMessage message;
    {
      absl::MutexLock lock(&mutex_);
      auto there = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return taken_ < messages_.size(); };
      mutex_.Await(absl::Condition(&there));
      message = messages_[taken_++];
      under_way_ = false;
    }
    core->Sent();
    return message;
  }
  // Waits for a message and leaves it under way.
  void WaitSending() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&under_way_));
  }
  void TakeAway() {
    absl::MutexLock lock(&mutex_);
    under_way_ = false;
    ++taken_;
  }
  void BreakOff() override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(end_.has_value()) << "broken off after the end";
    broken_off_ = true;
  }
  bool broken_off() {
    absl::MutexLock lock(&mutex_);
    return broken_off_;
  }
  bool sending() {
    absl::MutexLock lock(&mutex_);
    return under_way_;
  }
  std::optional<Status> end() {
    absl::MutexLock lock(&mutex_);
    return end_;
  }

 private:
  absl::Mutex mutex_;
  bool under_way_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_off_ ABSL_GUARDED_BY(mutex_) = false;
  size_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<StreamMessage> messages_ ABSL_GUARDED_BY(mutex_);
  std::optional<Status> end_ ABSL_GUARDED_BY(mutex_);
};

class StreamCoreTest : public ::testing::Test {
 protected:
  // `held`: the engine computes nothing before engine_->Release().
  void Serve(bool held = false, const StreamLimits& limits = {}) {
    engine_ = std::make_unique<ChannelMeanEngine>(kChannels, kSide, held);
    streams_ = std::make_unique<StreamSet>(limits, &metrics_);
    streams_->SetEngine(engine_.get());
  }
  std::shared_ptr<StreamCore> Add(Recorder* client, const StreamKind& kind = {}) {
    return streams_->Add("test", client, kind);
  }
  void TearDown() override {
    if (engine_ != nullptr) engine_->Stop();
  }

  MetricsRegistry metrics_;
  std::unique_ptr<ChannelMeanEngine> engine_;
  std::unique_ptr<StreamSet> streams_;
};

TEST_F(StreamCoreTest, AnAnswerComesInPiecesOfExactlyTheCredit) {
  Serve();
  Recorder client;
  const auto core = Add(&client);
  core->Open(OpenMap(/*credit=*/100));
  core->Batch(5, Shape(2), Pixels(2));
  const StreamMessage first = client.Next(core.get());
  EXPECT_EQ(first.request_id, 5);
  EXPECT_EQ(first.offset, 0);
  EXPECT_EQ(first.payload.size, 100);
  EXPECT_EQ(first.total_bytes, 2 * kImageMapBytes);
  EXPECT_THAT(first.shape, ElementsAre(2, kChannels, kSide, kSide));
  EXPECT_EQ(first.model_digest, "d1");
  EXPECT_FALSE(first.last);
  EXPECT_FALSE(client.sending());  // the credit is used up
  core->Grant(1);
  EXPECT_EQ(client.Next(core.get()).payload.size, 1);
  core->Grant(kPlenty);
  const StreamMessage rest = client.Next(core.get());
  EXPECT_EQ(rest.offset, 101);
  EXPECT_EQ(rest.payload.size, 2 * kImageMapBytes - 101);
  EXPECT_TRUE(rest.last);
  EXPECT_EQ(rest.compute_seconds, 0.5);
  core->ClientIsDone();
  EXPECT_EQ(client.end(), OkStatus());
  EXPECT_EQ(streams_->budget().used(), 0);
}

TEST_F(StreamCoreTest, AWholeAnswerIsOneMessageAndOnTheBooksUntilItHasGone) {
  Serve();
  Recorder client;
  const auto core = Add(&client, {.whole_answers = true});
  StreamOpen open = OpenMap(kPlenty);
  open.taps.push_back({"mean", static_cast<int>(WireDtype::kF32)});
  core->Open(open);
  core->Batch(5, Shape(2), Pixels(2));
  core->ClientIsDone();
  client.WaitSending();
  const uint64_t bytes = 2 * (kImageMapBytes + 4 * kChannels);
  EXPECT_EQ(streams_->budget().used(), bytes);
  ASSERT_TRUE(core->holding_since().has_value());
  const StreamMessage message = client.Next(core.get());
  EXPECT_EQ(message.request_id, 5);
  ASSERT_EQ(message.whole.taps.size(), 2);
  EXPECT_EQ(message.whole.taps[0].bytes.size, 2 * kImageMapBytes);
  EXPECT_EQ(message.whole.model_digest, "d1");
  EXPECT_EQ(client.end(), OkStatus());
  EXPECT_EQ(streams_->budget().used(), 0);
}

TEST_F(StreamCoreTest, AWholeAnswerThatIsNotTakenIsBrokenOff) {
  Serve();
  Recorder client;
  const auto core = Add(&client, {.whole_answers = true});
  core->Open(OpenMap(kPlenty));
  core->Batch(1, Shape(1), Pixels(1));
  client.WaitSending();
  core->EndForOthers();
  EXPECT_TRUE(client.broken_off());
  EXPECT_FALSE(client.end().has_value());
  EXPECT_EQ(streams_->budget().used(), kImageMapBytes);  // the transport has it still
  client.TakeAway();
  core->Sent();
  EXPECT_EQ(client.end()->code(), StatusCode::kUnavailable);
  EXPECT_EQ(streams_->budget().used(), 0);
}

TEST_F(StreamCoreTest, AKindOfStreamMayHaveAnAnswerLimitOfItsOwn) {
  Serve();
  Recorder client;
  const auto core = Add(&client, {.whole_answers = true, .max_answer_bytes = kImageMapBytes});
  core->Open(OpenMap(kPlenty));
  core->Batch(1, Shape(2), Pixels(2));
  EXPECT_EQ(client.Next(core.get()).error.code(), StatusCode::kResourceExhausted);
  core->Batch(2, Shape(1), Pixels(1));
  EXPECT_EQ(client.Next(core.get()).whole.taps.size(), 1);
}

TEST_F(StreamCoreTest, NothingIsSentBeforeTheLastMessageHasGone) {
  Serve();
  Recorder client;
  const auto core = Add(&client);
  core->Open(OpenMap(kPlenty));
  core->Batch(1, Shape(1), Pixels(1));
  client.WaitSending();
  core->Batch(2, {1}, Buffer());  // refused: an error that overtakes answers, but not a message under way
  core->End(absl::UnavailableError("over"));
  EXPECT_FALSE(client.end().has_value());
  EXPECT_FALSE(core->finished());
  client.TakeAway();
  core->Sent();
  EXPECT_EQ(client.end(), absl::UnavailableError("over"));
  EXPECT_TRUE(core->finished());
}

TEST_F(StreamCoreTest, WhatMayNotBeSaidNowEndsTheStream) {
  Serve();
  {
    Recorder client;
    Add(&client)->Batch(1, Shape(1), Pixels(1));
    EXPECT_THAT(client.end()->message(), HasSubstr("first message"));
  }
  {
    Recorder client;
    const auto core = Add(&client);
    core->Open(OpenMap(0));
    core->Open(OpenMap(0));
    EXPECT_THAT(client.end()->message(), HasSubstr("came twice"));
  }
  {
    Recorder client;
    const auto core = Add(&client);
    core->Open(OpenMap(0));
    core->Batch(1, Shape(1), Pixels(1));
    core->Batch(1, Shape(1), Pixels(1));
    EXPECT_THAT(client.end()->message(), HasSubstr("request id 1 is still unanswered"));
    core->Batch(2, Shape(1), Pixels(1));  // dropped without a word
    core->Grant(kPlenty);
    core->Cancel(1);
    EXPECT_FALSE(client.sending());
  }
}

TEST_F(StreamCoreTest, ABatchThatWaitsIsCancelledAtOnceAndNeverComputed) {
  StreamLimits limits;
  limits.max_unsent_bytes = kImageMapBytes;  // the second batch waits for the first one's answer to go
  Serve(/*held=*/true, limits);
  Recorder client;
  const auto core = Add(&client);
  core->Open(OpenMap(kPlenty));
  core->Batch(1, Shape(1), Pixels(1));
  core->Batch(2, Shape(1), Pixels(1));
  core->Cancel(2);
  core->Cancel(99);
  const StreamMessage cancelled = client.Next(core.get());
  EXPECT_EQ(cancelled.request_id, 2);
  EXPECT_EQ(cancelled.error.code(), StatusCode::kCancelled);
  engine_->Release();
  EXPECT_EQ(client.Next(core.get()).request_id, 1);
  EXPECT_THAT(engine_->computed(), ElementsAre(1));
}

TEST_F(StreamCoreTest, AnEndForgetsWhatWaitsAndGivesItsMemoryBack) {
  Serve(/*held=*/true);
  Recorder client;
  const auto core = Add(&client);
  core->Open(OpenMap(kPlenty));
  for (uint64_t id : {1, 2, 3}) core->Batch(id, Shape(1), Pixels(1));
  EXPECT_EQ(engine_->QueueLength(), 3);
  EXPECT_GT(streams_->budget().used(), 0);
  core->End(absl::CancelledError("the client went away"));
  EXPECT_EQ(client.end()->code(), StatusCode::kCancelled);
  EXPECT_EQ(engine_->QueueLength(), 0);
  EXPECT_EQ(streams_->budget().used(), 0);
  EXPECT_FALSE(streams_->WaitIdle(std::chrono::milliseconds(0)));
  streams_->Leave(*core);
  EXPECT_TRUE(streams_->WaitIdle(std::chrono::milliseconds(0)));
  engine_->Release();
  EXPECT_THAT(engine_->computed(), IsEmpty());
}

TEST_F(StreamCoreTest, MemoryThatOneStreamGivesBackIsTheNextOnesTurn) {
  StreamLimits limits;
  limits.memory_budget = 4 * kImageMapBytes;  // half of it for features, half of that for those without credit
  Serve(/*held=*/false, limits);
  Recorder idle, waiting;
  const auto first = Add(&idle), second = Add(&waiting);
  first->Open(OpenMap(0));
  first->Batch(1, Shape(1), Pixels(1));
  second->Open(OpenMap(0));
  second->Batch(2, Shape(1), Pixels(1));
  engine_->WaitComputed(1);
  EXPECT_THAT(engine_->computed(), ElementsAre(1));
  first->End(absl::CancelledError("gone"));
  engine_->WaitComputed(2);
  EXPECT_THAT(engine_->computed(), ElementsAre(1, 2));
}

TEST_F(StreamCoreTest, ADrainingTeacherAnswersWhatItHasAndEndsThen) {
  Serve(/*held=*/true);
  Recorder busy, idle, late;
  const auto working = Add(&busy), waiting = Add(&idle);
  working->Open(OpenMap(kPlenty));
  working->Batch(1, Shape(1), Pixels(1));
  streams_->Drain();
  EXPECT_EQ(idle.end()->code(), StatusCode::kUnavailable);
  Add(&late);
  EXPECT_EQ(late.end()->code(), StatusCode::kUnavailable);
  working->Batch(2, Shape(1), Pixels(1));
  EXPECT_EQ(busy.Next(working.get()).error.code(), StatusCode::kUnavailable);
  EXPECT_FALSE(busy.end().has_value());
  engine_->Release();
  EXPECT_TRUE(busy.Next(working.get()).last);
  EXPECT_EQ(busy.end()->code(), StatusCode::kUnavailable);
}

TEST_F(StreamCoreTest, AStreamIsRefusedWhileTheModelsLoad) {
  streams_ = std::make_unique<StreamSet>(StreamLimits(), &metrics_);
  Recorder client;
  const auto core = Add(&client);
  EXPECT_THAT(client.end()->message(), HasSubstr("loading"));
  EXPECT_TRUE(core->finished());
}

TEST(StreamOpenTest, SumsTheBytesOfAnImagesAnswerOverTheTaps) {
  ChannelMeanEngine engine(kChannels, kSide);
  StreamOpen open = OpenMap(0);
  open.taps.push_back({"", static_cast<int>(WireDtype::kF16)});
  const StatusOr<OpenedModel> opened = FindModel(open, engine.models());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ(opened->image_answer_bytes, kImageMapBytes + 2 * kChannels);
  EXPECT_EQ(opened->taps->at(1).encoding.dtype, WireDtype::kF16);
}

TEST(StreamOpenTest, ADtypeIsCheckedAsTheNumberThatCame) {
  ChannelMeanEngine engine(kChannels, kSide);
  for (int dtype : {0, static_cast<int>(WireDtype::kU8), 256 + static_cast<int>(WireDtype::kF32)}) {
    StreamOpen open = OpenMap(0);
    open.taps[0].dtype = dtype;
    const Status status = FindModel(open, engine.models()).status();
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("cannot be asked for"));
  }
}

}  // namespace
}  // namespace distill::testing
