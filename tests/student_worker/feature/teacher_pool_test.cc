#include "student_worker/feature/teacher_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>

#include "absl/synchronization/mutex.h"
#include "common/failure_kind.h"
#include "common/str_cat.h"
#include "tests/student_worker/feature/test_teacher.h"

namespace distill {
namespace {

using testing::BabblingServer;
using testing::Fault;
using ::testing::HasSubstr;
using testing::kDigest;
using testing::kModel;
using ::testing::Not;
using testing::ReferenceTap;
using testing::TestTeacher;

// Shape [2, 3, 4, 4]: an answer of 384 bytes of maps and 24 of logits.
constexpr uint64_t kAnswerBytes = 408;

ImageBatch Images(uint64_t id) {
  std::vector<uint8_t> pixels(2 * 3 * 4 * 4);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(id * 37 + i * 11);
  return {2, 3, 4, 4, Buffer::FromVector(std::move(pixels))};
}

TeacherPool::Options Options() {
  TeacherPool::Options options;
  options.model = kModel;
  options.digest = kDigest;
  options.taps = {{"maps"}, {""}};
  options.tap_shapes = {{3, 4, 4}, {3}};
  options.client = "test";
  options.window_bytes = 1 << 20;
  options.health.min_backoff = std::chrono::milliseconds(5);
  options.health.max_backoff = std::chrono::milliseconds(20);
  options.health.min_set_aside = std::chrono::milliseconds(5);
  options.health.max_set_aside = std::chrono::milliseconds(20);
  return options;
}

void ExpectRight(const FeatureBatch& batch, uint64_t id) {
  ASSERT_EQ(batch.taps.size(), 2);
  EXPECT_EQ(batch.model_digest, kDigest);
  for (size_t t = 0; t < 2; ++t) {
    const std::vector<float> expected = ReferenceTap(t == 0 ? "maps" : "", Images(id));
    ASSERT_EQ(batch.taps[t].bytes.size, expected.size() * sizeof(float));
    EXPECT_EQ(std::memcmp(batch.taps[t].bytes.data, expected.data(), batch.taps[t].bytes.size), 0)
        << "id " << id << " tap " << t;
  }
}

// Collects callbacks.
class Results {
 public:
  TeacherPool::Callback For(uint64_t id) {
    return [this, id](StatusOr<FeatureBatch> result) {
      absl::MutexLock lock(&mu_);
      ++calls_[id];
      results_.insert_or_assign(id, std::move(result));
    };
  }
  // At least `count` results within a minute.
  bool Wait(size_t count) {
    absl::MutexLock lock(&mu_);
    auto enough = [&] { return results_.size() >= count; };
    return mu_.AwaitWithTimeout(absl::Condition(&enough), absl::Minutes(1));
  }
  size_t size() {
    absl::MutexLock lock(&mu_);
    return results_.size();
  }
  bool has(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return results_.contains(id);
  }
  StatusOr<FeatureBatch> Take(uint64_t id) {
    absl::MutexLock lock(&mu_);
    auto it = results_.find(id);
    if (it == results_.end()) return absl::NotFoundError("no result");
    auto result = std::exchange(it->second, absl::NotFoundError("taken"));
    return result;
  }
  int calls(uint64_t id) {
    absl::MutexLock lock(&mu_);
    return calls_[id];
  }

 private:
  absl::Mutex mu_;
  std::map<uint64_t, StatusOr<FeatureBatch>> results_;
  std::map<uint64_t, int> calls_;
};

// Polls a condition that no callback announces; a minute at most.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 12000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

class TeacherPoolTest : public ::testing::Test {
 protected:
  void MakePool(TeacherPool::Options options = Options()) {
    auto pool = TeacherPool::Create(std::move(options));
    ASSERT_TRUE(pool.ok()) << pool.status();
    pool_ = *std::move(pool);
  }
  TestTeacher* AddTeacher(TestTeacher::Options options = {}) {
    options.name = StrCat("t", teachers_.size());
    teachers_.push_back(TestTeacher::Start(std::move(options)));
    EXPECT_NE(teachers_.back(), nullptr);
    return teachers_.back().get();
  }
  // Options whose events come to events_.
  TeacherPool::Options Told() {
    TeacherPool::Options options = Options();
    options.metrics = &metrics_;
    options.on_event = [this](EventLevel, const std::string& text) {
      absl::MutexLock lock(&events_mutex_);
      events_.push_back(text);
    };
    return options;
  }
  int CountEvents(const std::string& part) {
    absl::MutexLock lock(&events_mutex_);
    return static_cast<int>(std::count_if(
        events_.begin(), events_.end(), [&](const std::string& text) { return text.find(part) != std::string::npos; }));
  }
  double SetAside(const std::string& reason) {
    return metrics_
        .GetCounter("distill_student_teachers_set_aside_total",
                    "Times that a teacher was set aside for a while, by why.", {{"reason", reason}})
        .Value();
  }
  double SecondsAsked() {
    return metrics_
        .GetCounter("distill_student_feature_seconds_asked_total",
                    "Feature requests that a second teacher was asked too, because the first was late or is tried out.")
        .Value();
  }
  void ListAll() {
    std::vector<TeacherEndpoint> endpoints;
    for (const auto& teacher : teachers_) endpoints.push_back(teacher->endpoint());
    pool_->SetTeachers(std::move(endpoints));
  }
  void FetchRange(uint64_t begin, uint64_t end) {
    for (uint64_t id = begin; id < end; ++id) pool_->Fetch(id, Images(id), results_.For(id));
  }
  void ExpectAllRight(uint64_t count) {
    ASSERT_TRUE(results_.Wait(count)) << results_.size() << " of " << count;
    for (uint64_t id = 0; id < count; ++id) {
      auto result = results_.Take(id);
      ASSERT_TRUE(result.ok()) << "id " << id << ": " << result.status();
      ExpectRight(*result, id);
      EXPECT_EQ(results_.calls(id), 1) << "id " << id;
    }
  }

  MetricsRegistry metrics_;
  absl::Mutex events_mutex_;
  std::vector<std::string> events_;
  Results results_;  // outlives the pool
  std::vector<std::unique_ptr<TestTeacher>> teachers_;
  std::unique_ptr<TeacherPool> pool_;
};

TEST_F(TeacherPoolTest, OneTwoAndThreeTeachersGiveTheSameFeatures) {
  for (int count = 1; count <= 3; ++count) {
    SCOPED_TRACE(count);
    Results results;
    std::vector<std::unique_ptr<TestTeacher>> teachers;
    std::vector<TeacherEndpoint> endpoints;
    for (int i = 0; i < count; ++i) {
      teachers.push_back(TestTeacher::Start({.name = StrCat("t", i), .chunk_bytes = static_cast<size_t>(1 + 50 * i)}));
      endpoints.push_back(teachers.back()->endpoint());
    }
    MakePool();
    pool_->SetTeachers(endpoints);
    for (uint64_t id = 0; id < 40; ++id) pool_->Fetch(id, Images(id), results.For(id));
    ASSERT_TRUE(results.Wait(40));
    for (uint64_t id = 0; id < 40; ++id) {
      auto result = results.Take(id);
      ASSERT_TRUE(result.ok()) << result.status();
      ExpectRight(*result, id);
      EXPECT_EQ(result->queue_seconds, 0.25);
      EXPECT_EQ(result->compute_seconds, 0.5);
    }
    pool_.reset();
  }
}

TEST_F(TeacherPoolTest, LeastInFlightGetsTheNextRequestAndTiesGoByOrder) {
  for (int i = 0; i < 3; ++i) AddTeacher({.hold = true});
  MakePool();
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 3; }));
  FetchRange(0, 7);
  // A held teacher reads one batch at a time, so in flight is seen in the answers: 3 + 2 + 2.
  for (const auto& teacher : teachers_) ASSERT_TRUE(teacher->WaitForReceived(1));
  for (const auto& teacher : teachers_) teacher->Hold(false);
  ExpectAllRight(7);
  EXPECT_TRUE(teachers_[0]->WaitForReceived(3));
  EXPECT_EQ(teachers_[0]->received(), 3);
  EXPECT_EQ(teachers_[1]->received(), 2);
  EXPECT_EQ(teachers_[2]->received(), 2);
}

TEST_F(TeacherPoolTest, TeacherKilledMidAnswerIsNotNoticed) {
  AddTeacher({.fault = Fault::kDieMidAnswer, .fault_at = 3});
  AddTeacher();
  auto options = Options();
  options.metrics = &metrics_;
  MakePool(options);
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  FetchRange(0, 40);
  ExpectAllRight(40);
  EXPECT_GE(metrics_
                .GetCounter("distill_student_feature_resends_total",
                            "Feature requests taken from a teacher unanswered and sent again.")
                .Value(),
            1);
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 1; }));
}

TEST_F(TeacherPoolTest, AllDeadThenOneReturns) {
  TestTeacher* first = AddTeacher({.hold = true});
  TestTeacher* second = AddTeacher({.hold = true});
  MakePool();
  ListAll();
  FetchRange(0, 6);
  ASSERT_TRUE(first->WaitForReceived(1));
  first->Kill();
  ASSERT_TRUE(second->WaitForReceived(1));
  second->Kill();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 0 && pool_->window_used() == 0; }));
  EXPECT_EQ(results_.size(), 0);
  auto returned = TestTeacher::Start({.port = second->port()});
  ASSERT_NE(returned, nullptr);
  ExpectAllRight(6);
  pool_.reset();
}

TEST_F(TeacherPoolTest, RequestsWaitUntilATeacherIsListed) {
  AddTeacher();
  MakePool();
  FetchRange(0, 3);
  pool_->SetTeachers({{"other", teachers_[0]->endpoint().address, "another model", kDigest}});
  EXPECT_EQ(results_.size(), 0);
  ListAll();
  ExpectAllRight(3);
}

TEST_F(TeacherPoolTest, WindowIsNeverExceededWithThreeTeachersAndASlowConsumer) {
  constexpr uint64_t kWindow = 3 * kAnswerBytes + 100;
  std::atomic<uint64_t> granted = 0, released = 0;
  std::atomic<bool> exceeded = false;
  for (int i = 0; i < 3; ++i) {
    AddTeacher({.on_credit = [&](uint64_t bytes) {
      // Granted = still due + held + released. `released` is raised before a release, so it is never too small here.
      if (granted += bytes; granted > kWindow + released) exceeded = true;
    }});
  }
  auto options = Options();
  options.window_bytes = kWindow;
  MakePool(options);
  ListAll();
  FetchRange(0, 30);
  std::map<uint64_t, FeatureBatch> held;
  for (uint64_t id = 0; id < 30; ++id) {
    // While three batches are held nothing more can come; the next ones come as soon as one is released.
    ASSERT_TRUE(results_.Wait(std::min<uint64_t>(id + 3, 30)));
    EXPECT_LE(results_.size(), id + 3);
    EXPECT_LE(pool_->window_used(), kWindow);
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
    released += kAnswerBytes;
    *result = FeatureBatch();
  }
  EXPECT_FALSE(exceeded);
  EXPECT_EQ(granted, 30 * kAnswerBytes);
  ASSERT_TRUE(Eventually([&] { return pool_->window_used() == 0; }));
}

TEST_F(TeacherPoolTest, UnknownShapesAreLearnedAndTheWindowHolds) {
  constexpr uint64_t kWindow = 2 * kAnswerBytes + 100;
  // The first request is granted the whole window; what its answer leaves of that is taken back with the stream.
  std::atomic<uint64_t> granted = 0, released = kWindow - kAnswerBytes;
  std::atomic<bool> exceeded = false;
  for (int i = 0; i < 2; ++i) {
    AddTeacher({.on_credit = [&](uint64_t bytes) {
      if (granted += bytes; granted > kWindow + released) exceeded = true;
    }});
  }
  auto options = Options();
  options.tap_shapes.clear();
  options.window_bytes = kWindow;
  MakePool(options);
  ListAll();
  FetchRange(0, 20);
  for (uint64_t id = 0; id < 20; ++id) {
    ASSERT_TRUE(results_.Wait(std::min<uint64_t>(id + 2, 20)));
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
    released += kAnswerBytes;
  }
  EXPECT_FALSE(exceeded);
}

TEST_F(TeacherPoolTest, AKilledTeachersPartOfTheWindowIsFreed) {
  TestTeacher* held = AddTeacher({.hold = true});
  auto options = Options();
  options.window_bytes = 2 * kAnswerBytes;
  MakePool(options);
  ListAll();
  FetchRange(0, 8);
  ASSERT_TRUE(held->WaitForReceived(1));
  EXPECT_EQ(pool_->window_used(), 2 * kAnswerBytes);
  AddTeacher();
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  EXPECT_EQ(results_.size(), 0);
  held->Kill();
  for (uint64_t id = 0; id < 8; ++id) {
    ASSERT_TRUE(Eventually([&] { return results_.has(id); })) << "id " << id;
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
  }
}

TEST_F(TeacherPoolTest, BuffersOutliveThePoolAndCopiesShareTheRelease) {
  AddTeacher();
  MakePool();
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  auto result = results_.Take(0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(pool_->window_used(), kAnswerBytes);
  Buffer copy = result->taps[0].bytes;
  result->taps.clear();
  EXPECT_EQ(pool_->window_used(), 384);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(copy.data) % 64, 0);
  pool_.reset();
  const std::vector<float> expected = ReferenceTap("maps", Images(0));
  EXPECT_EQ(std::memcmp(copy.data, expected.data(), copy.size), 0);
}

// Whatever a teacher does, a good one beside it delivers everything.
class FaultTest : public TeacherPoolTest, public ::testing::WithParamInterface<std::tuple<Fault, bool>> {};

TEST_P(FaultTest, AGoodTeacherBesideAFaultyOneDeliversEverything) {
  const auto [fault, shapes_known] = GetParam();
  AddTeacher({.fault = fault, .fault_at = 1});
  AddTeacher();
  auto options = Options();
  if (!shapes_known) options.tap_shapes.clear();
  options.health.stall_timeout = std::chrono::milliseconds(300);
  MakePool(options);
  ListAll();
  ASSERT_TRUE(Eventually([&] { return teachers_[0]->streams() >= 1 && pool_->connected() >= 1; }));
  FetchRange(0, 30);
  ExpectAllRight(30);
  pool_.reset();
}

// A teacher that is faulty once (and the only one) is forgiven.
TEST_P(FaultTest, AFaultThatPassesIsForgiven) {
  const auto [fault, shapes_known] = GetParam();
  if (fault == Fault::kErrorInvalid || fault == Fault::kNotFinite ||  // the word of the only teacher counts
      fault == Fault::kDieMidAnswer || fault == Fault::kRefuseTap || fault == Fault::kRefuseModel ||
      fault == Fault::kRefuseDigest || fault == Fault::kWrongDigest) {
    return;  // does not pass
  }
  AddTeacher({.fault = fault, .fault_at = 0, .fault_until = 1});
  auto options = Options();
  if (!shapes_known) options.tap_shapes.clear();
  options.health.stall_timeout = std::chrono::milliseconds(300);
  MakePool(options);
  ListAll();
  FetchRange(0, 5);
  ExpectAllRight(5);
  EXPECT_EQ(teachers_[0]->received() > 5 || fault == Fault::kDuplicate,
            true);  // the first one at least was asked twice
  pool_.reset();
}

INSTANTIATE_TEST_SUITE_P(
    All, FaultTest,
    ::testing::Combine(::testing::Values(Fault::kDieMidAnswer, Fault::kEndStream, Fault::kSilence, Fault::kDuplicate,
                                         Fault::kUnknownRequest, Fault::kWrongShape, Fault::kWrongTail,
                                         Fault::kWrongDtype, Fault::kWrongTotal, Fault::kHugeTotal,
                                         Fault::kOverflowShape, Fault::kOverlap, Fault::kGap, Fault::kTooMuch,
                                         Fault::kEmptyChunks, Fault::kSwappedTaps, Fault::kLastTooEarly,
                                         Fault::kNeverLast, Fault::kWrongDigest, Fault::kErrorInternal,
                                         Fault::kErrorInvalid, Fault::kErrorUnavailable, Fault::kNotFinite,
                                         Fault::kTrickle, Fault::kErrorMidAnswer, Fault::kRefuseTap,
                                         Fault::kRefuseModel, Fault::kRefuseDigest),
                       ::testing::Bool()));

TEST_F(TeacherPoolTest, ALiarAloneFailsRequestsWithItsLie) {
  AddTeacher({.fault = Fault::kOverlap});
  MakePool();
  ListAll();
  FetchRange(0, 2);
  ASSERT_TRUE(results_.Wait(2));
  const Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kDataLoss) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("features of step 0: no teacher could compute them: teacher 't0' at 127.0.0.1:"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("due is offset 64"));
}

TEST_F(TeacherPoolTest, BytesThatAreNoMessageDropTheConnection) {
  auto babbler = BabblingServer::Start();
  ASSERT_NE(babbler, nullptr);
  MakePool();
  pool_->SetTeachers({babbler->endpoint()});
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  EXPECT_EQ(results_.Take(0).status().code(), StatusCode::kDataLoss);
  AddTeacher();
  pool_->SetTeachers({babbler->endpoint(), teachers_[0]->endpoint()});
  Results more;
  pool_->Fetch(7, Images(7), more.For(7));
  ASSERT_TRUE(more.Wait(1));
  auto result = more.Take(7);
  ASSERT_TRUE(result.ok()) << result.status();
  ExpectRight(*result, 7);
  pool_.reset();
}

TEST_F(TeacherPoolTest, WhatEveryTeacherRefusesFails) {
  const std::pair<Fault, StatusCode> cases[] = {{Fault::kRefuseTap, StatusCode::kInvalidArgument},
                                                {Fault::kRefuseModel, StatusCode::kNotFound},
                                                {Fault::kRefuseDigest, StatusCode::kFailedPrecondition},
                                                {Fault::kWrongDigest, StatusCode::kFailedPrecondition}};
  for (const auto& [fault, code] : cases) {
    Results results;
    auto first = TestTeacher::Start({.name = "a", .fault = fault});
    auto second = TestTeacher::Start({.name = "b", .fault = fault});
    MakePool();
    pool_->SetTeachers({first->endpoint(), second->endpoint()});
    pool_->Fetch(5, Images(5), results.For(5));
    ASSERT_TRUE(results.Wait(1));
    const Status status = results.Take(5).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("features of step 5: no teacher could compute them: teacher '"));
    pool_.reset();
  }
}

TEST_F(TeacherPoolTest, UnknownTapIsNamed) {
  AddTeacher();
  auto options = Options();
  options.taps = {{"layer9"}};
  options.tap_shapes.clear();
  MakePool(options);
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("unknown tap 'layer9'"));
}

TEST_F(TeacherPoolTest, AnEndpointWithAnotherDigestIsNotAsked) {
  AddTeacher();
  MakePool();
  TeacherEndpoint changed = teachers_[0]->endpoint();
  changed.digest = "d2";
  pool_->SetTeachers({changed});
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("with digest d2, the job was submitted for d1"));
  EXPECT_EQ(teachers_[0]->streams(), 0);
  // The same address with the right digest is a new chance.
  ListAll();
  Results more;
  pool_->Fetch(1, Images(1), more.For(1));
  ASSERT_TRUE(more.Wait(1));
  EXPECT_TRUE(more.Take(1).ok());
  pool_.reset();
}

TEST_F(TeacherPoolTest, ErrorsInAnswersAreRetriedOrReported) {
  AddTeacher({.fault = Fault::kErrorInternal});
  MakePool();
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("teacher 't0' at 127.0.0.1:"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(", 3 times: the teacher's own words"));
  EXPECT_EQ(teachers_[0]->received(), 3);
  EXPECT_EQ(teachers_[0]->streams(), 1);  // such an error does not end the stream
  pool_.reset();

  AddTeacher({.fault = Fault::kErrorInvalid});
  MakePool();
  pool_->SetTeachers({teachers_[1]->endpoint()});
  FetchRange(1, 2);
  ASSERT_TRUE(results_.Wait(2));
  status = results_.Take(1).status();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << status;
  EXPECT_EQ(teachers_[1]->received(), 1);
  pool_.reset();
}

// Both have their say, and the failure tells who said what.
TEST_F(TeacherPoolTest, ARequestFailsOnlyWhenEveryTeacherHasRefusedIt) {
  AddTeacher({.fault = Fault::kErrorInvalid});
  AddTeacher({.fault = Fault::kErrorInternal});
  MakePool(Told());
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kInternal) << status;  // their reasons differ
  EXPECT_THAT(std::string(status.message()), HasSubstr("teacher 't0' at 127.0.0.1:"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("teacher 't1' at 127.0.0.1:"));
  EXPECT_EQ(teachers_[0]->received(), 1);
  EXPECT_EQ(teachers_[1]->received(), 3);
  pool_.reset();
  EXPECT_GE(CountEvents("is set aside for"), 2);
}

TEST_F(TeacherPoolTest, NumbersThatAreNoneAreContradictedByAnotherTeacher) {
  AddTeacher({.fault = Fault::kNotFinite});
  AddTeacher();
  MakePool(Told());
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  FetchRange(0, 30);
  ExpectAllRight(30);
  pool_.reset();
  EXPECT_GE(SetAside("wrong"), 1);
  EXPECT_GE(CountEvents("tap 'maps' holds NaN or infinite numbers, those of teacher 't1'"), 1);
}

TEST_F(TeacherPoolTest, NumbersThatAreNoneAreDeliveredWhenNobodySaysOtherwise) {
  for (int count : {1, 2}) {
    SCOPED_TRACE(count);
    Results results;
    std::vector<std::unique_ptr<TestTeacher>> teachers;
    std::vector<TeacherEndpoint> endpoints;
    for (int i = 0; i < count; ++i) {
      teachers.push_back(TestTeacher::Start({.name = StrCat("t", i), .fault = Fault::kNotFinite}));
      endpoints.push_back(teachers.back()->endpoint());
    }
    MakePool(Told());
    pool_->SetTeachers(endpoints);
    ASSERT_TRUE(Eventually([&] { return pool_->connected() == static_cast<size_t>(count); }));
    for (uint64_t id = 0; id < 10; ++id) pool_->Fetch(id, Images(id), results.For(id));
    ASSERT_TRUE(results.Wait(10));
    for (uint64_t id = 0; id < 10; ++id) {
      const auto result = results.Take(id);
      ASSERT_TRUE(result.ok()) << result.status();
      float second = 0;
      std::memcpy(&second, result->taps[0].bytes.data + 4, 4);
      EXPECT_FALSE(std::isfinite(second));
    }
    EXPECT_EQ(CountEvents("give NaN or infinite numbers in tap 'maps' alike"), count - 1);
    // It is known now: one teacher's word is enough.
    const auto asked = [&] {
      int sum = 0;
      for (const auto& teacher : teachers) sum += teacher->received();
      return sum;
    };
    const int before = asked();
    for (uint64_t id = 10; id < 20; ++id) pool_->Fetch(id, Images(id), results.For(id));
    ASSERT_TRUE(results.Wait(20));
    EXPECT_EQ(asked(), before + 10);
    pool_.reset();
    EXPECT_EQ(SetAside("wrong"), 0);
  }
}

// It heartbeats, takes batches, and never answers: the good one beside it is asked for the same.
TEST_F(TeacherPoolTest, ASilentTeacherIsLateLongBeforeItIsGivenUp) {
  AddTeacher({.fault = Fault::kSilence});
  AddTeacher();
  auto options = Told();  // stall_timeout of half a minute
  options.health.min_late = std::chrono::milliseconds(20);
  MakePool(options);
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  FetchRange(0, 60);
  ExpectAllRight(60);
  EXPECT_EQ(SetAside("silent"), 0);  // nobody waited for that
  EXPECT_GE(SecondsAsked(), 1);
  EXPECT_EQ(CountEvents("much longer than usual; teacher 't1'"), 1);
  // What it owes is not forgotten, and no more is sent to it.
  const int received = teachers_[0]->received();
  Results more;
  for (uint64_t id = 60; id < 80; ++id) pool_->Fetch(id, Images(id), more.For(id));
  ASSERT_TRUE(more.Wait(20));
  EXPECT_EQ(teachers_[0]->received(), received);
  pool_.reset();
}

// The window holds two answers, and the silent teacher has the credit of one: it loses it.
TEST_F(TeacherPoolTest, WhereTheWindowHasNoRoomForTwoAnswersTheLateTeacherLosesItsWork) {
  AddTeacher({.fault = Fault::kSilence});
  AddTeacher();
  auto options = Told();
  options.window_bytes = 2 * kAnswerBytes;
  options.health.min_late = std::chrono::milliseconds(20);
  MakePool(options);
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  FetchRange(0, 30);
  for (uint64_t id = 0; id < 30; ++id) {  // in order, as a trainer takes them: later ones are held until then
    ASSERT_TRUE(Eventually([&] { return results_.has(id); })) << "id " << id;
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
    EXPECT_LE(pool_->window_used(), 2 * kAnswerBytes);
  }
  pool_.reset();
  EXPECT_GE(SetAside("silent") + SecondsAsked(), 1);
}

// Slow is not dead: an answer takes longer than the first patience, and longer than the second.
TEST_F(TeacherPoolTest, ATeacherThatComputesForLongIsWaitedForInTheEnd) {
  AddTeacher({.delay = std::chrono::milliseconds(300)});
  auto options = Told();
  options.health.stall_timeout = std::chrono::milliseconds(100);
  MakePool(options);
  ListAll();
  FetchRange(0, 3);
  ExpectAllRight(3);
  EXPECT_GE(SetAside("silent"), 1);
  const double stalls = SetAside("silent");
  Results more;
  for (uint64_t id = 3; id < 6; ++id) pool_->Fetch(id, Images(id), more.For(id));
  ASSERT_TRUE(more.Wait(3));
  EXPECT_EQ(SetAside("silent"), stalls);  // its time is known now
  pool_.reset();
}

// A byte now and then is no answer.
TEST_F(TeacherPoolTest, ATrickleOfBytesDoesNotHoldARequest) {
  AddTeacher({.fault = Fault::kTrickle, .fault_at = 0, .fault_until = 1});
  auto options = Told();
  options.health.stall_timeout = std::chrono::milliseconds(200);
  MakePool(options);
  ListAll();
  FetchRange(0, 2);
  ExpectAllRight(2);
  EXPECT_GE(SetAside("silent"), 1);
  pool_.reset();
}

// After its silence a teacher is tried out with copies, and trusted again when it answers.
TEST_F(TeacherPoolTest, ATeacherThatWasSilentIsTriedOutBesideTheWorkAndTrustedAgain) {
  TestTeacher* silent = AddTeacher({.fault = Fault::kSilence, .fault_until = 6});
  AddTeacher({.delay = std::chrono::milliseconds(2)});
  auto options = Told();
  options.health.min_late = std::chrono::milliseconds(20);
  options.health.stall_timeout = std::chrono::milliseconds(100);
  MakePool(options);
  ListAll();
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  uint64_t id = 0;
  for (; CountEvents("answers again") == 0 && id < 20000; ++id) {
    pool_->Fetch(id, Images(id), results_.For(id));
    ASSERT_TRUE(Eventually([&] { return results_.has(id); }));
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
  }
  EXPECT_EQ(CountEvents("teacher 't0' at"), CountEvents("teacher 't0'"));
  EXPECT_GE(CountEvents("is set aside for"), 1);
  EXPECT_EQ(CountEvents("answers again"), 1);
  const int before = silent->answered();
  for (uint64_t i = 0; i < 6; ++i) pool_->Fetch(id + i, Images(id + i), results_.For(id + i));
  ASSERT_TRUE(Eventually([&] { return results_.has(id + 5); }));
  EXPECT_TRUE(Eventually([&] { return silent->answered() > before; }));
  pool_.reset();
}

// Nothing comes and people wonder: they are told once whom it is waited for, and once that it goes on.
TEST_F(TeacherPoolTest, AWaitForFeaturesIsToldWithWhomItIsFor) {
  TestTeacher* held = AddTeacher({.hold = true});
  auto options = Told();
  options.notice_after = std::chrono::milliseconds(50);
  MakePool(options);
  FetchRange(0, 1);
  ASSERT_TRUE(
      Eventually([&] { return CountEvents("waiting for features of step 0 since 0 s: no teacher is listed") == 1; }));
  ListAll();
  ASSERT_TRUE(held->WaitForReceived(1));
  held->Hold(false);
  ExpectAllRight(1);
  ASSERT_TRUE(Eventually([&] { return CountEvents("features come again, after") == 1; }));
  held->Hold(true);
  pool_->Fetch(1, Images(1), results_.For(1));
  ASSERT_TRUE(Eventually([&] { return CountEvents("waiting for features of step 1") == 1; }));
  EXPECT_EQ(CountEvents("teacher 't0' at 127.0.0.1:"), 1);
  EXPECT_EQ(CountEvents("owes 1 answers, the oldest for 0"), 1);
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(CountEvents("waiting for"), 2);
  held->Hold(false);
  ASSERT_TRUE(Eventually([&] { return CountEvents("features come again, after") == 2; }));
  pool_.reset();
}

TEST_F(TeacherPoolTest, TeachersMayChangeOnTheFly) {
  TestTeacher* first = AddTeacher({.hold = true});
  TestTeacher* second = AddTeacher();
  MakePool();
  pool_->SetTeachers({first->endpoint()});
  FetchRange(0, 4);
  ASSERT_TRUE(first->WaitForReceived(1));
  // Kept when listed again, with another worker id or order; dropped when gone: its requests move.
  TeacherEndpoint renamed = first->endpoint();
  renamed.worker_id = "renamed";
  pool_->SetTeachers({second->endpoint(), renamed});
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 2; }));
  EXPECT_EQ(first->streams(), 1);
  pool_->SetTeachers({second->endpoint()});
  ExpectAllRight(4);
  ASSERT_TRUE(Eventually([&] { return first->canceled_streams() == 1; }));
  EXPECT_EQ(second->streams(), 1);
  // And back.
  first->Hold(false);
  pool_->SetTeachers({first->endpoint(), first->endpoint()});
  FetchRange(4, 6);
  ExpectRight(*([&] {
    EXPECT_TRUE(Eventually([&] { return results_.has(5); }));
    return results_.Take(5);
  })(),
              5);
  EXPECT_EQ(first->streams(), 2);
  // To nobody.
  pool_->SetTeachers({});
  ASSERT_TRUE(Eventually([&] { return pool_->connected() == 0; }));
  pool_.reset();
}

TEST_F(TeacherPoolTest, AnAddressWhereNobodyListensIsTriedUntilSomebodyDoes) {
  auto gone = TestTeacher::Start({});
  const TeacherEndpoint endpoint = gone->endpoint();
  const int port = gone->port();
  gone.reset();
  MakePool();
  pool_->SetTeachers({endpoint});
  FetchRange(0, 2);
  EXPECT_EQ(results_.size(), 0);
  auto returned = TestTeacher::Start({.port = port});
  ASSERT_NE(returned, nullptr);
  ExpectAllRight(2);
  pool_.reset();
}

TEST_F(TeacherPoolTest, BadAddressesRefuse) {
  MakePool();
  pool_->SetTeachers({{"t", "nonsense", kModel, kDigest}});
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  EXPECT_EQ(results_.Take(0).status().code(), StatusCode::kInvalidArgument);
  pool_.reset();
}

TEST_F(TeacherPoolTest, CancelAnswersAtOnceAndTheRestGoesOn) {
  TestTeacher* teacher = AddTeacher({.hold = true});
  auto options = Options();
  options.window_bytes = 2 * kAnswerBytes;
  MakePool(options);
  ListAll();
  std::vector<uint64_t> tickets;
  for (uint64_t id = 0; id < 4; ++id) tickets.push_back(pool_->Fetch(id, Images(id), results_.For(id)));
  ASSERT_TRUE(teacher->WaitForReceived(1));
  pool_->Cancel(tickets[0]);  // sent
  pool_->Cancel(tickets[3]);  // waiting for the window
  pool_->Cancel(12345);
  ASSERT_TRUE(results_.Wait(2));
  EXPECT_EQ(results_.Take(0).status().code(), StatusCode::kCancelled);
  EXPECT_EQ(results_.Take(3).status().code(), StatusCode::kCancelled);
  teacher->Hold(false);
  ASSERT_TRUE(results_.Wait(4));
  for (uint64_t id : {1, 2}) {
    auto result = results_.Take(id);
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRight(*result, id);
  }
  EXPECT_EQ(results_.calls(0), 1);
  EXPECT_EQ(results_.calls(3), 1);
  pool_.reset();
}

TEST_F(TeacherPoolTest, DestructionCancelsWhatIsUnanswered) {
  TestTeacher* teacher = AddTeacher({.hold = true});
  MakePool();
  ListAll();
  FetchRange(0, 3);
  ASSERT_TRUE(teacher->WaitForReceived(1));
  pool_.reset();
  for (uint64_t id = 0; id < 3; ++id) EXPECT_EQ(results_.Take(id).status().code(), StatusCode::kCancelled);
  MakePool();
  FetchRange(3, 4);
  pool_.reset();
  EXPECT_EQ(results_.Take(3).status().code(), StatusCode::kCancelled);
}

TEST_F(TeacherPoolTest, AnAnswerLargerThanTheWindowIsRefusedWithTheRemedy) {
  AddTeacher();
  auto options = Options();
  options.window_bytes = kAnswerBytes - 1;
  MakePool(options);
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  Status status = results_.Take(0).status();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("raise the job's prefetch"));
  EXPECT_EQ(KindOf(status), FailureKind::kJob);
  // With unknown shapes the teacher cannot answer: given up after three tries (this test's teacher says so, others stay
  // silent).
  options.tap_shapes.clear();
  options.health.stall_timeout = std::chrono::milliseconds(100);
  MakePool(options);
  teachers_.clear();
  AddTeacher({.fault = Fault::kSilence});
  ListAll();
  FetchRange(1, 2);
  ASSERT_TRUE(results_.Wait(2));
  status = results_.Take(1).status();
  EXPECT_EQ(status.code(), StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("may be larger than the window"));
  pool_.reset();
}

TEST_F(TeacherPoolTest, MalformedBatchesAreRefused) {
  MakePool();
  ImageBatch none = Images(0);
  none.n = 0;
  ImageBatch wrong = Images(0);
  wrong.w = 5;
  ImageBatch huge = Images(0);
  huge.n = huge.c = huge.h = huge.w = UINT32_MAX;
  ImageBatch long_batch{1, 3, 8192, 8192, Buffer::FromVector(std::vector<uint8_t>(3 * 8192 * 8192))};
  uint64_t id = 0;
  for (const ImageBatch& images : {none, wrong, huge, long_batch}) {
    pool_->Fetch(id, images, results_.For(id));
    ++id;
  }
  ASSERT_TRUE(results_.Wait(4));
  for (id = 0; id < 4; ++id) EXPECT_EQ(results_.Take(id).status().code(), StatusCode::kInvalidArgument) << id;
}

TEST_F(TeacherPoolTest, ImpossibleOptionsAreRefused) {
  auto code = [](void (*change)(TeacherPool::Options*)) {
    auto options = Options();
    change(&options);
    return TeacherPool::Create(options).status().code();
  };
  EXPECT_EQ(code([](TeacherPool::Options* o) { o->taps.clear(); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](TeacherPool::Options* o) { o->tap_shapes.pop_back(); }), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](TeacherPool::Options* o) { o->window_bytes = 0; }), StatusCode::kInvalidArgument);
}

TEST_F(TeacherPoolTest, MetricsTellWhatHappened) {
  AddTeacher();
  auto options = Options();
  options.metrics = &metrics_;
  MakePool(options);
  ListAll();
  FetchRange(0, 5);
  ExpectAllRight(5);
  ImageBatch bad = Images(0);
  bad.n = 0;
  pool_->Fetch(5, bad, results_.For(5));
  ASSERT_TRUE(results_.Wait(6));
  ASSERT_TRUE(Eventually(
      [&] { return metrics_.Serialize().find("distill_student_feature_inflight_bytes 0") != std::string::npos; }));
  const std::string text = metrics_.Serialize();
  EXPECT_THAT(text, HasSubstr("distill_student_feature_bytes_total 2040"));
  EXPECT_THAT(text, HasSubstr("distill_student_feature_requests_total{result=\"ok\"} 5"));
  EXPECT_THAT(text, HasSubstr("distill_student_feature_requests_total{result=\"error\"} 1"));
  EXPECT_THAT(text, HasSubstr("distill_student_feature_resends_total 0"));
  EXPECT_THAT(text, HasSubstr("distill_student_feature_latency_seconds_count 5"));
  EXPECT_THAT(text, HasSubstr("distill_student_teachers_connected 1"));
  pool_.reset();
  EXPECT_THAT(metrics_.Serialize(), HasSubstr("distill_student_teachers_connected 0"));
}

}  // namespace
}  // namespace distill
