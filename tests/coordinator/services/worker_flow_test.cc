// Real FleetClients against the real service: a teacher and two students run a job.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"
#include "tests/coordinator/services/service_fixture.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// What a worker was told, and what it does about it: a student takes its assignment.
class TestWorker {
 public:
  TestWorker(const TestCoordinator& coordinator, const std::string& id, WorkerKind kind) {
    FleetClient::Options options;
    options.coordinator = coordinator.server->address();
    options.worker_id = id;
    options.kind = kind;
    options.address = "127.0.0.1:1";
    if (kind == WorkerKind::kTeacher) options.models = Fleet().models;
    FleetClient::Callbacks callbacks;
    callbacks.on_student_assignment = [this](std::optional<StudentAssignment> assignment) {
      absl::MutexLock lock(&mutex_);
      assignment_ = std::move(assignment);
    };
    callbacks.on_teachers = [](std::vector<TeacherEndpoint>) {};
    callbacks.on_teacher_jobs = [this](std::vector<TeacherJob> jobs) {
      absl::MutexLock lock(&mutex_);
      jobs_ = std::move(jobs);
    };
    callbacks.on_cancel = [this] {
      absl::MutexLock lock(&mutex_);
      cancelled_ = true;
    };
    client = FleetClient::Start(options, callbacks).value();
  }
  std::optional<StudentAssignment> assignment() {
    absl::MutexLock lock(&mutex_);
    return assignment_;
  }
  std::vector<TeacherJob> jobs() {
    absl::MutexLock lock(&mutex_);
    return jobs_;
  }
  bool cancelled() {
    absl::MutexLock lock(&mutex_);
    return cancelled_;
  }

 private:
  absl::Mutex mutex_;
  std::optional<StudentAssignment> assignment_ ABSL_GUARDED_BY(mutex_);
  std::vector<TeacherJob> jobs_ ABSL_GUARDED_BY(mutex_);
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;

 public:
  std::unique_ptr<FleetClient> client;  // last: its thread calls back into the members above
};

class WorkerFlowTest : public ::testing::Test {
 protected:
  void Start() {
    teacher_ = std::make_unique<TestWorker>(coordinator_, "t0", WorkerKind::kTeacher);
    first_ = std::make_unique<TestWorker>(coordinator_, "s0", WorkerKind::kStudent);
    second_ = std::make_unique<TestWorker>(coordinator_, "s1", WorkerKind::kStudent);
    const StatusOr<SubmitResult> submitted = core().Submit({"r", {kExplicitJob, "job.yaml", {}}, false});
    ASSERT_TRUE(submitted.ok()) << submitted.status();
    job_ = submitted->job_id;
    TestCoordinator::Await([&] { return first_->assignment() && second_->assignment(); }, "both students are assigned");
    first_->client->SetCurrent(job_, 1);
    second_->client->SetCurrent(job_, 1);
  }
  Coordinator& core() { return *coordinator_.coordinator; }
  JobRecord Job() { return core().Get(job_).value(); }

  TestCoordinator coordinator_;
  std::unique_ptr<TestWorker> teacher_, first_, second_;
  std::string job_;
};

TEST_F(WorkerFlowTest, AJobRunsToItsEnd) {
  Start();
  const StudentAssignment assignment = *second_->assignment();
  EXPECT_EQ(assignment.rank, 1u);
  EXPECT_EQ(assignment.world_size, 2u);
  EXPECT_EQ(assignment.plan, Job().plan);
  ASSERT_EQ(assignment.teachers.size(), 1u);
  EXPECT_EQ(assignment.teachers[0].digest, "d1d1d1d1d1d1d1d1");
  TestCoordinator::Await([&] { return teacher_->jobs().size() == 1; }, "the teacher has work");

  JobProgress progress;
  progress.step = 10;
  progress.total_step = 10;
  progress.loss = 0.25;
  progress.time = 1;
  first_->client->ReportProgress(progress);
  first_->client->ReportEvent(job_, EventLevel::kWarning, EventType::kData, "rank 0 says hello");
  TestCoordinator::Await([&] { return Job().has_progress; }, "progress arrives");
  EXPECT_EQ(Job().progress.loss, 0.25);

  EXPECT_EQ(first_->client->CommitStage(job_, 9, {.stage = 0}).code(), StatusCode::kAborted);
  for (uint32_t stage = 0; stage < 2; ++stage) {
    const Status status = first_->client->CommitStage(job_, 1, {.stage = stage, .checkpoint = "/w", .digest = "d"});
    ASSERT_TRUE(status.ok()) << status;
  }
  TestCoordinator::Await([&] { return teacher_->jobs().empty(); }, "the teacher is released");
  ASSERT_TRUE(first_->client->FinishJob(job_, 1, {.safetensors = "out.safetensors"}).ok());
  TestCoordinator::Await([&] { return !first_->assignment() && !second_->assignment(); },
                         "the students are free again");
  EXPECT_EQ(Job().status.state, JobState::kSucceeded);
  EXPECT_EQ(Job().artifacts.safetensors, "out.safetensors");
  const auto said = [&] {
    for (const std::vector<EventRecord> events = core().Events(job_, 0, 100).value();
         const EventRecord& event : events) {
      if (event.source == "s0" && event.text == "rank 0 says hello" && event.level == EventLevel::kWarning) return true;
    }
    return false;
  };
  TestCoordinator::Await(said, "the worker's event is stored");
}

TEST_F(WorkerFlowTest, ARestartedStudentBringsANewGenerationToAll) {
  Start();
  second_.reset();                                                                   // the process dies ...
  second_ = std::make_unique<TestWorker>(coordinator_, "s1", WorkerKind::kStudent);  // ... and is started again
  TestCoordinator::Await([&] { return second_->assignment().has_value(); }, "the new process has the rank");
  EXPECT_EQ(second_->assignment()->rank, 1u);
  EXPECT_EQ(second_->assignment()->generation, 2u);
  TestCoordinator::Await([&] { return first_->assignment() && first_->assignment()->generation == 2; },
                         "the survivor follows");
  EXPECT_EQ(first_->assignment()->rank, 0u);
  EXPECT_EQ(first_->client->CommitStage(job_, 1, {.stage = 0}).code(), StatusCode::kAborted);
  EXPECT_EQ(Job().status.restarts, 1u);
}

TEST_F(WorkerFlowTest, CancelReachesTheStudentsAndEndsWhenTheyStop) {
  Start();
  TestCoordinator::Await(
      [&] {
        for (const WorkerStatus& worker : core().Fleet()) {
          if (worker.worker.kind == WorkerKind::kStudent && worker.worker.job_id != job_) return false;
        }
        return true;
      },
      "both say that they work");
  ASSERT_TRUE(core().Cancel(job_, "enough").ok());
  TestCoordinator::Await([&] { return first_->cancelled() && second_->cancelled(); }, "both are told");
  EXPECT_EQ(Job().status.state, JobState::kRunning) << "they still write their checkpoint";
  first_->client->SetCurrent("", 0);
  second_->client->SetCurrent("", 0);
  TestCoordinator::Await([&] { return Job().status.state == JobState::kCancelled; }, "cancelled");
}

TEST_F(WorkerFlowTest, ADrainingStudentGetsNothingMore) {
  Start();
  second_->client->Drain();
  TestCoordinator::Await([&] { return Job().status.state == JobState::kQueued; }, "the group is broken");
  EXPECT_EQ(Job().status.generation, 2u);
}

}  // namespace
}  // namespace distill
