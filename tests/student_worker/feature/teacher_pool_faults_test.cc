// Teachers that fail, lie or refuse.
#include <cmath>
#include <cstring>
#include <tuple>

#include "tests/student_worker/feature/teacher_pool_fixture.h"

namespace distill {
namespace {

using testing::BabblingServer;
using testing::Fault;
using ::testing::HasSubstr;
using testing::TestTeacher;

// Whatever a teacher does, a good one beside it delivers everything; whether bytes come over gRPC or through shared
// memory.
class FaultTest : public TeacherPoolTest, public ::testing::WithParamInterface<std::tuple<Fault, bool, bool>> {};

TEST_P(FaultTest, AGoodTeacherBesideAFaultyOneDeliversEverything) {
  const auto [fault, shapes_known, shared] = GetParam();
  AddTeacher({.fault = fault, .fault_at = 1, .shared_memory = shared});
  AddTeacher({.shared_memory = shared});
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
  const auto [fault, shapes_known, shared] = GetParam();
  if (fault == Fault::kErrorInvalid || fault == Fault::kNotFinite ||  // the word of the only teacher counts
      fault == Fault::kDieMidAnswer || fault == Fault::kRefuseTap || fault == Fault::kRefuseModel ||
      fault == Fault::kRefuseDigest || fault == Fault::kWrongDigest) {
    return;  // does not pass
  }
  AddTeacher({.fault = fault, .fault_at = 0, .fault_until = 1, .shared_memory = shared});
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
                       ::testing::Bool(), ::testing::Bool()));
INSTANTIATE_TEST_SUITE_P(SharedMemory, FaultTest,
                         ::testing::Combine(::testing::Values(Fault::kPieceBeyondRing, Fault::kPieceOverflow,
                                                              Fault::kPieceTooLarge, Fault::kPieceAndPayload,
                                                              Fault::kSecondOffer),
                                            ::testing::Bool(), ::testing::Values(true)));

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

}  // namespace
}  // namespace distill
