// One suite over the ways that features travel: real service, real pool, bytes over gRPC or through shared memory. And
// what becomes of shared memory when a process at either end dies or stands still.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/str_cat.h"
#include "common/wire/copy_count.h"
#include "tests/harness/process.h"
#include "tests/integration/mean_teacher.h"

namespace distill::testing {
namespace {

using ::testing::HasSubstr;

// At most a minute.
bool Eventually(const std::function<bool()>& condition) {
  for (int i = 0; i < 12000; ++i) {
    if (condition()) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return false;
}

// Rings that this process has mapped.
int MappedRings() {
  std::ifstream maps("/proc/self/maps");
  int count = 0;
  for (std::string line; std::getline(maps, line);) count += line.find("distill-features") != std::string::npos;
  return count;
}

uint64_t AnswerBytes(uint64_t id) { return StepImages(id).n * 4ull * kChannels * (kSide * kSide + 1); }

// What came of the requests.
class Answers {
 public:
  void Fetch(TeacherPool* pool, uint64_t id) {
    pool->Fetch(id, StepImages(id), [this, id](StatusOr<FeatureBatch> answer) {
      const Status wrong = Judge(id, answer);
      absl::MutexLock lock(&mutex_);
      ++count_;
      ends_.insert_or_assign(id, wrong);
    });
  }
  void FetchRange(TeacherPool* pool, uint64_t begin, uint64_t end) {
    for (uint64_t id = begin; id < end; ++id) Fetch(pool, id);
  }
  size_t count() {
    absl::MutexLock lock(&mutex_);
    return count_;
  }
  Status end(uint64_t id) {
    absl::MutexLock lock(&mutex_);
    return ends_.at(id);
  }
  void ExpectAllRight(size_t count) {
    ASSERT_TRUE(Eventually([&] { return this->count() >= count; })) << this->count() << " of " << count;
    absl::MutexLock lock(&mutex_);
    for (const auto& [id, status] : ends_) EXPECT_TRUE(status.ok()) << "step " << id << ": " << status;
    EXPECT_EQ(count_, count);
  }

 private:
  static Status Judge(uint64_t id, const StatusOr<FeatureBatch>& answer) {
    if (!answer.ok()) return answer.status();
    const ImageBatch images = StepImages(id);
    for (size_t tap = 0; tap < 2; ++tap) {
      const Buffer& bytes = answer->taps[tap].bytes;
      const Buffer expected = ChannelMeanEngine::Expected(images, {tap == 0 ? "map" : "mean"}).bytes;
      if (bytes.size != expected.size) return absl::DataLossError(StrCat("tap ", tap, " has ", bytes.size, " bytes"));
      for (size_t i = 0; i < bytes.size; ++i) {
        if (bytes.data[i] != expected.data[i]) return absl::DataLossError(StrCat("byte ", i, " of tap ", tap));
      }
    }
    return OkStatus();
  }

  absl::Mutex mutex_;
  size_t count_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<uint64_t, Status> ends_ ABSL_GUARDED_BY(mutex_);
};

enum class Way { kGrpc, kShared, kSharedInFolder };

class FeatureTransportTest : public ::testing::TestWithParam<Way> {
 protected:
  bool shared() const { return GetParam() != Way::kGrpc; }
  std::string folder() const { return GetParam() == Way::kSharedInFolder ? folder_.path() : ""; }
  std::unique_ptr<MeanTeacher> Teacher(bool held = false) {
    return std::make_unique<MeanTeacher>(shared(), folder(), held);
  }
  void MakePool(const std::vector<TeacherEndpoint>& teachers) {
    TeacherPool::Options options = MeanPoolOptions(&metrics_);
    options.shared_memory.folder = folder();
    pool_ = TeacherPool::Create(std::move(options)).value();
    pool_->SetTeachers(teachers);
  }
  // So that what follows goes the way that is tested from its first byte.
  void Settle(MeanTeacher* teacher) {
    ASSERT_TRUE(Eventually([&] { return pool_->connected() == 1; }));
    if (!shared()) return;
    ASSERT_TRUE(Eventually([&] {
      return teacher->metrics
                 .GetGauge("distill_teacher_shared_memory_streams", "Streams whose features go through shared memory.")
                 .Value() == 1;
    }));
  }
  double Received() {
    return metrics_.GetCounter("distill_student_feature_bytes_total", "Bytes of feature maps received from teachers.")
        .Value();
  }
  double SharedReceived() {
    return metrics_
        .GetCounter("distill_student_feature_shared_memory_bytes_total",
                    "Those of the bytes that came through shared memory.")
        .Value();
  }

  TempDir folder_;
  MetricsRegistry metrics_;
  Answers answers_;  // outlives the pool
  std::unique_ptr<TeacherPool> pool_;
};

std::string NameOf(const ::testing::TestParamInfo<Way>& way) {
  switch (way.param) {
    case Way::kGrpc:
      return "Grpc";
    case Way::kShared:
      return "SharedMemory";
    case Way::kSharedInFolder:
      return "SharedMemoryInFolder";
  }
  return "";
}

INSTANTIATE_TEST_SUITE_P(Ways, FeatureTransportTest, ::testing::Values(Way::kGrpc, Way::kShared, Way::kSharedInFolder),
                         NameOf);

TEST_P(FeatureTransportTest, DeliversWhatTheTeacherComputed) {
  const auto teacher = Teacher();
  MakePool({teacher->endpoint()});
  answers_.FetchRange(pool_.get(), 0, 60);
  answers_.ExpectAllRight(60);
  EXPECT_TRUE(Eventually([&] { return pool_->window_used() == 0; }));
  pool_.reset();
  EXPECT_TRUE(Eventually([&] { return teacher->streams().budget().used() == 0; }));
  EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
}

TEST_P(FeatureTransportTest, BothEndsCountBytesByTheirWay) {
  const auto teacher = Teacher();
  MakePool({teacher->endpoint()});
  Settle(teacher.get());
  const uint64_t copied = FeatureBytesCopied();
  uint64_t bytes = 0;
  for (uint64_t id = 0; id < 16; ++id) bytes += AnswerBytes(id);
  answers_.FetchRange(pool_.get(), 0, 16);
  answers_.ExpectAllRight(16);
  EXPECT_EQ(Received(), bytes);
  EXPECT_EQ(SharedReceived(), shared() ? bytes : 0);
  const auto sent = [&](const char* name, const char* help) { return teacher->metrics.GetCounter(name, help).Value(); };
  EXPECT_EQ(sent("distill_teacher_sent_bytes_total", "Payload bytes handed to the transport."), bytes);
  EXPECT_EQ(
      sent("distill_teacher_shared_memory_bytes_total", "Those of the payload bytes that went through shared memory."),
      shared() ? bytes : 0);
  // Into the ring, and out of it; over gRPC the kernel does the first.
  EXPECT_EQ(FeatureBytesCopied() - copied, shared() ? 2 * bytes : bytes);
}

TEST_P(FeatureTransportTest, ABatchThatTheTeacherRefusesFailsAndTheOthersDoNot) {
  const auto teacher = Teacher();
  MakePool({teacher->endpoint()});
  answers_.FetchRange(pool_.get(), 0, 4);
  Status refusal;
  absl::Mutex mutex;
  bool done = false;
  ImageBatch narrow = StepImages(0);
  narrow.w = kSide / 2;
  narrow.pixels.size /= 2;
  pool_->Fetch(4, narrow, [&](const StatusOr<FeatureBatch>& answer) {
    absl::MutexLock lock(&mutex);
    refusal = answer.status();
    done = true;
  });
  answers_.FetchRange(pool_.get(), 5, 9);
  answers_.ExpectAllRight(8);
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(&done));
  EXPECT_EQ(refusal.code(), StatusCode::kInvalidArgument) << refusal;
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("takes images of C, H, W = 3, 64, 64"));
}

TEST_P(FeatureTransportTest, ACancelledRequestCostsTheOthersNothing) {
  const auto teacher = Teacher(/*held=*/true);
  MakePool({teacher->endpoint()});
  Settle(teacher.get());
  const uint64_t ticket = pool_->Fetch(7, StepImages(7), [](const StatusOr<FeatureBatch>&) {});
  answers_.FetchRange(pool_.get(), 0, 6);
  pool_->Cancel(ticket);
  teacher->engine().Release();
  answers_.ExpectAllRight(6);
}

TEST_P(FeatureTransportTest, ATeacherThatDrainsIsReplacedByAnother) {
  const auto first = Teacher();
  const auto second = Teacher();
  MakePool({first->endpoint("a"), second->endpoint("b")});
  answers_.FetchRange(pool_.get(), 0, 20);
  ASSERT_TRUE(Eventually([&] { return answers_.count() >= 5; }));
  first->streams().Drain();
  answers_.FetchRange(pool_.get(), 20, 60);
  answers_.ExpectAllRight(60);
  EXPECT_TRUE(Eventually([&] { return first->streams().budget().used() == 0; }));
}

TEST_P(FeatureTransportTest, ATeacherThatIsGoneIsReplacedByAnother) {
  auto first = Teacher();
  const auto second = Teacher();
  MakePool({first->endpoint("a"), second->endpoint("b")});
  answers_.FetchRange(pool_.get(), 0, 40);
  ASSERT_TRUE(Eventually([&] { return answers_.count() >= 5; }));
  first.reset();
  answers_.ExpectAllRight(40);
  pool_.reset();
  EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
}

// A teacher of another machine says another boot; one that is switched off says nothing. Both sides must want it.
TEST(FeatureTransportChoiceTest, EitherSideCanSwitchSharedMemoryOff) {
  for (const bool teacher_wants : {false, true}) {
    MetricsRegistry metrics;
    Answers answers;
    MeanTeacher teacher(teacher_wants);
    TeacherPool::Options options = MeanPoolOptions(&metrics);
    options.shared_memory.enabled = !teacher_wants;
    const auto pool = TeacherPool::Create(std::move(options)).value();
    pool->SetTeachers({teacher.endpoint()});
    answers.FetchRange(pool.get(), 0, 10);
    answers.ExpectAllRight(10);
    EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
  }
}

TEST(FeatureTransportChoiceTest, WhoMeetsInDifferentFoldersGoesOverGrpc) {
  MetricsRegistry metrics;
  Answers answers;
  const TempDir one, another;
  MeanTeacher teacher(/*shared_memory=*/true, one.path());
  TeacherPool::Options options = MeanPoolOptions(&metrics);
  options.shared_memory.folder = another.path();
  const auto pool = TeacherPool::Create(std::move(options)).value();
  pool->SetTeachers({teacher.endpoint()});
  answers.FetchRange(pool.get(), 0, 10);
  answers.ExpectAllRight(10);
  EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
}

// --- Processes that die or stand still

class SharedMemoryProcessTest : public ::testing::Test {
 protected:
  // A teacher's process, and where it serves.
  struct Peer {
    std::unique_ptr<Process> process;
    TeacherEndpoint endpoint;
  };
  Peer StartTeacher(const std::string& name) {
    const std::string file = folder_ / name;
    Peer peer;
    peer.process = std::make_unique<Process>(std::vector<std::string>{DISTILL_TRANSPORT_PEER, "teacher"},
                                             Process::Options{.log = file + ".log", .stdout_file = file});
    std::string address;
    EXPECT_TRUE(Eventually([&] {
      address = ReadFileOrEmpty(file);
      return address.ends_with('\n');
    }));
    if (!address.empty()) address.pop_back();
    peer.endpoint = {name, address, "means", "d1"};
    return peer;
  }
  double SharedReceived() {
    return metrics_
        .GetCounter("distill_student_feature_shared_memory_bytes_total",
                    "Those of the bytes that came through shared memory.")
        .Value();
  }
  void MakePool() { pool_ = TeacherPool::Create(MeanPoolOptions(&metrics_)).value(); }

  const std::unique_ptr<RpcServer> awake_ = KeepGrpcAwake();
  TempDir folder_;
  MetricsRegistry metrics_;
  Answers answers_;
  std::unique_ptr<TeacherPool> pool_;
};

TEST_F(SharedMemoryProcessTest, AKilledTeachersRingIsGivenBackAndItsAnswersComeFromAnother) {
  MakePool();
  Peer first = StartTeacher("first");
  pool_->SetTeachers({first.endpoint});
  answers_.FetchRange(pool_.get(), 0, 100);
  ASSERT_TRUE(Eventually([&] { return SharedReceived() > 0; }));
  first.process->Signal(SIGKILL);
  EXPECT_TRUE(Eventually([&] { return pool_->connected() == 0 && MappedRings() == 0; }));
  answers_.FetchRange(pool_.get(), 100, 120);
  const Peer second = StartTeacher("second");
  pool_->SetTeachers({second.endpoint});
  answers_.ExpectAllRight(120);
  pool_.reset();
  EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
}

TEST_F(SharedMemoryProcessTest, AStoppedTeacherIsPassedOver) {
  TeacherPool::Options options = MeanPoolOptions(&metrics_);
  options.health.stall_timeout = std::chrono::seconds(10);  // counts where it stopped before the first whole answer
  pool_ = TeacherPool::Create(std::move(options)).value();
  const Peer first = StartTeacher("first"), second = StartTeacher("second");
  pool_->SetTeachers({first.endpoint});
  answers_.FetchRange(pool_.get(), 0, 100);
  ASSERT_TRUE(Eventually([&] { return SharedReceived() > 0; }));
  first.process->Signal(SIGSTOP);
  pool_->SetTeachers({first.endpoint, second.endpoint});
  answers_.ExpectAllRight(100);
  first.process->Signal(SIGCONT);
  pool_.reset();
  EXPECT_TRUE(Eventually([] { return MappedRings() == 0; }));
}

TEST_F(SharedMemoryProcessTest, AKilledStudentLeavesTheTeacherNothingToHold) {
  MeanTeacher teacher(/*shared_memory=*/true);
  const auto shared_bytes = [&] {
    return teacher.metrics
        .GetCounter("distill_teacher_shared_memory_bytes_total",
                    "Those of the payload bytes that went through shared memory.")
        .Value();
  };
  for (int i = 0; i < 2; ++i) {
    const double before = shared_bytes();
    Process student({DISTILL_TRANSPORT_PEER, "student", teacher.endpoint().address}, {.log = folder_ / "student.log"});
    ASSERT_TRUE(Eventually([&] { return shared_bytes() > before; })) << ReadFileOrEmpty(folder_ / "student.log");
    student.Signal(SIGKILL);
    EXPECT_TRUE(Eventually([&] { return teacher.streams().budget().used() == 0 && MappedRings() == 0; }));
  }
}

// Its ring fills, and nobody else waits for it.
TEST_F(SharedMemoryProcessTest, AStoppedStudentHoldsUpNobodyElse) {
  MeanTeacher teacher(/*shared_memory=*/true);
  const Gauge& streams = teacher.metrics.GetGauge("distill_teacher_shared_memory_streams",
                                                  "Streams whose features go through shared memory.");
  Process student({DISTILL_TRANSPORT_PEER, "student", teacher.endpoint().address}, {.log = folder_ / "student.log"});
  ASSERT_TRUE(Eventually([&] { return streams.Value() == 1; })) << ReadFileOrEmpty(folder_ / "student.log");
  student.Signal(SIGSTOP);
  MakePool();
  pool_->SetTeachers({teacher.endpoint()});
  answers_.FetchRange(pool_.get(), 0, 40);
  answers_.ExpectAllRight(40);
  pool_.reset();
  student.Signal(SIGKILL);
  EXPECT_TRUE(Eventually([&] { return teacher.streams().budget().used() == 0 && MappedRings() == 0; }));
}

}  // namespace
}  // namespace distill::testing
