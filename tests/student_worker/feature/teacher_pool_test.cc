#include "student_worker/feature/teacher_pool.h"

#include "tests/student_worker/feature/teacher_pool_fixture.h"

namespace distill {
namespace {

using testing::Fault;
using ::testing::HasSubstr;
using testing::kDigest;
using testing::kModel;
using testing::TestTeacher;

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
