// Answers through shared memory: the same bytes as over gRPC, and gRPC wherever the memory cannot be had.
#include "tests/harness/process.h"
#include "tests/student_worker/feature/teacher_pool_fixture.h"

namespace distill {
namespace {

using testing::BadMemory;
using testing::Fault;
using ::testing::HasSubstr;

class SharedMemoryPoolTest : public TeacherPoolTest {
 protected:
  double SharedBytes() {
    return metrics_
        .GetCounter("distill_student_feature_shared_memory_bytes_total",
                    "Those of the bytes that came through shared memory.")
        .Value();
  }
};

// Many times the ring of 64 KiB.
TEST_F(SharedMemoryPoolTest, AnswersComeThroughTheRingRoundAfterRound) {
  AddTeacher({.shared_memory = true});
  MakePool(Told());
  ListAll();
  for (uint64_t begin = 0; begin < 1000; begin += 20) {
    FetchRange(begin, begin + 20);  // less than the ring, because this teacher does not wait for room
    ASSERT_TRUE(results_.Wait(begin + 20));
  }
  ExpectAllRight(1000);
  EXPECT_EQ(SharedBytes(), 1000 * kAnswerBytes);
  EXPECT_EQ(teachers_[0]->mapped(), 1);
  EXPECT_EQ(teachers_[0]->streams(), 1);
  EXPECT_EQ(CountEvents("is on this host: features come through shared memory"), 1);
  pool_.reset();
}

TEST_F(SharedMemoryPoolTest, TheyMeetInAFolder) {
  testing::TempDir folder;
  AddTeacher({.shared_memory = true, .shared_memory_folder = folder.path()});
  auto options = Told();
  options.shared_memory.folder = folder.path();
  MakePool(std::move(options));
  ListAll();
  FetchRange(0, 3);
  ExpectAllRight(3);
  EXPECT_EQ(SharedBytes(), 3 * kAnswerBytes);
  pool_.reset();
}

TEST_F(SharedMemoryPoolTest, NoneIsWantedWhenItIsOffOrTheWindowIsSmall) {
  AddTeacher({.shared_memory = true});
  for (const bool enabled : {false, true}) {
    auto options = Told();
    options.shared_memory.enabled = enabled;
    if (enabled) options.window_bytes = 4 * (64 << 10) - 4;
    MakePool(std::move(options));
    ListAll();
    Results results;
    pool_->Fetch(1, Images(1), results.For(1));
    ASSERT_TRUE(results.Wait(1));
    EXPECT_TRUE(results.Take(1).ok());
    pool_.reset();
  }
  EXPECT_EQ(SharedBytes(), 0);
  EXPECT_EQ(teachers_[0]->mapped() + teachers_[0]->declined(), 0);
}

// No teacher's fault: the network namespaces differ, say.
TEST_F(SharedMemoryPoolTest, MemoryThatCannotBeHadIsDeclinedAndAllComesOverGrpc) {
  for (const BadMemory bad : {BadMemory::kNotSealed, BadMemory::kOtherSize, BadMemory::kWrongSecret,
                              BadMemory::kWrongSocket, BadMemory::kPath}) {
    SCOPED_TRACE(static_cast<int>(bad));
    auto teacher = testing::TestTeacher::Start({.shared_memory = true, .bad_memory = bad});
    MakePool(Told());
    pool_->SetTeachers({teacher->endpoint()});
    Results results;
    for (uint64_t id = 0; id < 5; ++id) pool_->Fetch(id, Images(id), results.For(id));
    ASSERT_TRUE(results.Wait(5));
    for (uint64_t id = 0; id < 5; ++id) {
      const auto result = results.Take(id);
      ASSERT_TRUE(result.ok()) << result.status();
      ExpectRight(*result, id);
    }
    EXPECT_EQ(teacher->declined(), 1);
    EXPECT_EQ(teacher->streams(), 1);
    pool_.reset();
  }
  EXPECT_EQ(SharedBytes(), 0);
  EXPECT_EQ(SetAside("wrong"), 0);
  EXPECT_EQ(CountEvents("features come over gRPC, because its memory cannot be shared"), 5);
}

TEST_F(SharedMemoryPoolTest, ATeacherThatOffersMoreThanWasAskedForBreaksTheProtocol) {
  AddTeacher({.shared_memory = true, .bad_memory = BadMemory::kMoreThanAsked});
  AddTeacher();
  MakePool(Told());
  ListAll();
  ASSERT_TRUE(Eventually([&] { return SetAside("wrong") >= 1; }));
  FetchRange(0, 5);
  ExpectAllRight(5);
  EXPECT_GE(CountEvents("which was not asked for"), 1);
  pool_.reset();
}

TEST_F(SharedMemoryPoolTest, APieceOfMemoryThatWasNeverSharedBreaksTheProtocol) {
  AddTeacher({.piece_without_ring = true});
  MakePool();
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const Status status = results_.Take(0).status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("bytes in shared memory, of which there is none"));
  pool_.reset();
}

TEST_F(SharedMemoryPoolTest, ALieAboutWhereBytesLieIsNamed) {
  AddTeacher({.fault = Fault::kPieceBeyondRing, .shared_memory = true});
  MakePool();
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const Status status = results_.Take(0).status();
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("a piece of 64 bytes at offset 65473 of shared memory, which has 65536 bytes"));
  pool_.reset();
}

// What was handed out is the student's own memory.
TEST_F(SharedMemoryPoolTest, FeaturesOutliveTheRingAndItsTeacher) {
  AddTeacher({.shared_memory = true});
  MakePool(Told());
  ListAll();
  FetchRange(0, 1);
  ASSERT_TRUE(results_.Wait(1));
  const auto result = results_.Take(0);
  ASSERT_TRUE(result.ok()) << result.status();
  pool_.reset();
  teachers_.clear();
  ExpectRight(*result, 0);
  EXPECT_EQ(SharedBytes(), kAnswerBytes);
}

}  // namespace
}  // namespace distill
