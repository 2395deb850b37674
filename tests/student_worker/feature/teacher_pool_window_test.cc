// What a pool may hold: no more than its window, and all of it again when it is given back.
#include <atomic>
#include <cstring>
#include <map>

#include "common/failure_kind.h"
#include "tests/student_worker/feature/teacher_pool_fixture.h"

namespace distill {
namespace {

using testing::Fault;
using ::testing::HasSubstr;
using testing::ReferenceTap;
using testing::TestTeacher;

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

}  // namespace
}  // namespace distill
