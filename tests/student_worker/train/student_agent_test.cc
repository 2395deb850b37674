#include "student_worker/train/student_agent.h"

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "common/failure_kind.h"
#include "common/metrics/metrics.h"
#include "tests/student_worker/train/job_runner_fixture.h"
#include "tests/student_worker/train/silently_aborted_group.h"

namespace distill {
namespace {

using testing::Contains;
using testing::HasSubstr;

class StudentAgentTest : public JobRunnerTest {};

TEST_F(StudentAgentTest, RunsOneJobAfterTheOtherAndIgnoresRepetitions) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  JobPlan plan = Plan(1);
  generation_ = 1;
  const StudentAssignment first = Assignment(plan, 0);
  callbacks.on_student_assignment(first);
  fleet.AwaitIdle(1);
  callbacks.on_student_assignment(first);  // as after a restart of the coordinator
  callbacks.on_student_assignment(std::nullopt);
  StudentAssignment second = first;
  second.job_id = "job-2";
  second.plan.data.path = "no-such-data";
  callbacks.on_student_assignment(second);
  fleet.AwaitIdle(2);
  EXPECT_EQ(fleet.finished().size(), 1u);
  ASSERT_EQ(fleet.failures().size(), 1u);
  EXPECT_THAT(fleet.failures()[0], HasSubstr("rank 0: "));
  EXPECT_THAT(fleet.failures()[0], HasSubstr("no-such-data"));
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  const std::string text = registry.Serialize();
  EXPECT_THAT(text, HasSubstr("distill_student_steps_total 18"));
  EXPECT_THAT(text, HasSubstr("distill_student_jobs_total{outcome=\"finished\"} 1"));
  EXPECT_THAT(text, HasSubstr("distill_student_jobs_total{outcome=\"failed\"} 1"));
}

// As after an illegal address on a GPU: every later job would fail as well.
TEST_F(StudentAgentTest, AProcessThatCannotGoOnSaysSoAfterItsReport) {
  class DeadDevice : public SilentlyAbortedGroup {
   public:
    using SilentlyAbortedGroup::SilentlyAbortedGroup;
    StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>&) override {
      return WithEndOfProcess(absl::InternalError("CUDA error: an illegal memory access was encountered"));
    }
  };
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  JobEnvironment environment = Environment("work", &registry, &metrics);
  const std::atomic<bool> aborted{false};
  environment.wrap_group = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<DeadDevice>(std::move(group), &aborted);
  };
  std::vector<size_t> reports;  // how many there were by then
  environment.on_unusable = [&](const Status& why) {
    EXPECT_THAT(std::string(why.message()), HasSubstr("illegal memory access"));
    reports.push_back(fleet.failures().size());
  };
  environment.make_store = [](const std::string&, uint64_t) {
    return StatusOr<std::shared_ptr<KvClient>>(MakeLocalKvClient());
  };
  StudentAgent agent(environment);
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1), 0));
  fleet.AwaitIdle(1);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  EXPECT_THAT(reports, testing::ElementsAre(1u));
}

TEST_F(StudentAgentTest, CountsLossesThatAreNotFinite) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  JobPlan plan = Plan(1);
  for (StagePlan& stage : plan.stages) stage.optimizer.lr = 1e30;
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(plan, 0));
  fleet.AwaitIdle(1);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(30), std::chrono::seconds(30)));
  ASSERT_EQ(fleet.failures().size(), 1u);
  EXPECT_THAT(fleet.failures()[0], HasSubstr("lower the learning rate"));
  EXPECT_THAT(registry.Serialize(), HasSubstr("distill_student_not_finite_losses_total 1"));
}

TEST_F(StudentAgentTest, ShutdownChecksPointAndANewGenerationReplacesTheOld) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  const JobPlan plan = Plan(1, 100000);
  generation_ = 1;
  absl::Mutex mutex;
  int phase = 0;  // 1: generation 1 trains; 2: generation 2 trains
  fleet.on_progress = [&](const JobProgress& progress) {
    if (progress.stage != 1 || progress.step < 7 || progress.terms.empty()) return;
    const int generations = static_cast<int>(fleet.resumes().size());  // those that have said where they start
    absl::MutexLock lock(&mutex);
    phase = generations;
  };
  const auto await = [&](int wanted) {
    absl::MutexLock lock(&mutex);
    auto reached = [&] { return phase >= wanted; };
    mutex.Await(absl::Condition(&reached));
  };
  callbacks.on_student_assignment(Assignment(plan, 0));
  await(1);
  generation_ = 2;
  callbacks.on_student_assignment(Assignment(plan, 0, 1));
  await(2);
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(30)));
  EXPECT_THAT(fleet.events(), Contains(HasSubstr("resuming from")));
  EXPECT_THAT(fleet.events(), Contains(HasSubstr("shutting down; checkpoint")));
  EXPECT_TRUE(fleet.failures().empty());
}

// A trainer that is inside a call which does not return: here one to the coordinator.
class StuckTrainerTest : public StudentAgentTest {
 protected:
  ~StuckTrainerTest() override { Release(); }
  void Release() {
    absl::MutexLock lock(&stuck_mutex_);
    released_ = true;
  }
  void AwaitStuck() {
    absl::MutexLock lock(&stuck_mutex_);
    stuck_mutex_.Await(absl::Condition(&stuck_));
  }
  // Hangs when the job's second stage is under way.
  void Hang(RecordedFleet* fleet) {
    fleet->on_progress = [this](const JobProgress& progress) {
      if (progress.stage != 1) return;
      absl::MutexLock lock(&stuck_mutex_);
      stuck_ = true;
      stuck_mutex_.Await(absl::Condition(&released_));
    };
  }

 private:
  absl::Mutex stuck_mutex_;
  bool stuck_ = false, released_ = false;
};

TEST_F(StuckTrainerTest, ARevocationThatIsNotObeyedIsReportedOnceAndNotWhenItIs) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  Hang(&fleet);
  absl::Mutex mutex;
  std::vector<std::string> reasons;
  StudentAgent agent(Environment("work", &registry, &metrics),
                     {.unwind_limit = std::chrono::milliseconds(50), .on_stuck = [&](const std::string& reason) {
                        absl::MutexLock lock(&mutex);
                        reasons.push_back(reason);
                      }});
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1, 1000), 0));
  AwaitStuck();
  callbacks.on_student_assignment(std::nullopt);
  {
    absl::MutexLock lock(&mutex);
    auto told = [&] { return !reasons.empty(); };
    mutex.Await(absl::Condition(&told));
    EXPECT_THAT(reasons[0], HasSubstr("has not left job job-1"));
  }
  Release();
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(60)));
  absl::MutexLock lock(&mutex);
  EXPECT_EQ(reasons.size(), 1u);
}

TEST_F(StuckTrainerTest, ShutdownGivesUpOnATrainerThatHangs) {
  MetricsRegistry registry;
  TrainMetrics metrics(&registry);
  RecordedFleet fleet;
  Hang(&fleet);
  StudentAgent agent(Environment("work", &registry, &metrics));
  const FleetClient::Callbacks callbacks = agent.callbacks();
  agent.Start(&fleet);
  generation_ = 1;
  callbacks.on_student_assignment(Assignment(Plan(1, 1000), 0));
  AwaitStuck();
  EXPECT_FALSE(agent.Shutdown(std::chrono::milliseconds(10), std::chrono::milliseconds(10)));
  Release();
  EXPECT_TRUE(agent.Shutdown(std::chrono::seconds(60), std::chrono::seconds(60)));
}

}  // namespace
}  // namespace distill
