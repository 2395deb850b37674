// Teachers that are silent or slow, and what people hear of it.
#include "tests/student_worker/feature/teacher_pool_fixture.h"

namespace distill {
namespace {

using testing::Fault;
using testing::TestTeacher;

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

}  // namespace
}  // namespace distill
