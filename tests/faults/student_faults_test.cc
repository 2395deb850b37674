// Students in trouble: one whose disk does not answer, one whose work folder is lost, one that is slow while all
// measure.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <thread>

#include "common/exit_codes.h"
#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

using std::chrono::seconds;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;

// A job of one stage without a teacher.
struct LoneJob {
  std::string name = "lone";
  int students = 1;
  std::string net = "cifar_resnet8, width: 8";
  int steps = 20;
  std::string Yaml() const {
    return "name: " + name + "\nseed: 7\nstudents: " + std::to_string(students) +
           "\nthreads: 1\ndevice: cpu\nbatch_size: 64\nstudent: {arch: " + net +
           ", num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: [0.353]}\n"
           "data: {format: idx, path: fashion-mnist, train_limit: 2048}\n"
           "optimizer: {type: sgd, lr: 0.1}\n"
           "stages: [{name: alone, trainable: ['**'], steps: " +
           std::to_string(steps) + ", losses: [{type: cross_entropy}]}]\n";
  }
};

std::string Phase(const nlohmann::json& job) {
  return job.contains("progress") ? job["progress"].value("phase", "") : "";
}
std::string State(const nlohmann::json& job) { return job.value("state", ""); }
std::string Reason(const nlohmann::json& job) { return job.value("reason", ""); }

class StudentFaultTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!FashionMnistInstalled()) GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
  }
  // A student whose data lie on a disk that does not answer: it hangs when it loads them.
  static bool StartHanging(Cluster* cluster, const std::string& id, const std::vector<std::string>& flags) {
    cluster->SetHangingDisk(std::string(kDataRoot) + "/fashion-mnist/");
    const bool started = cluster->StartStudent(id, flags);
    cluster->SetHangingDisk("");
    return started;
  }
  // The entry of a worker in `distillctl fleet`; null: it is not there.
  static nlohmann::json Worker(Cluster* cluster, const std::string& id) {
    const auto fleet = nlohmann::json::parse(cluster->Ctl({"fleet", "--output", "json"}).out, nullptr, false);
    if (fleet.is_discarded() || !fleet.contains("workers")) return nullptr;
    for (const auto& worker : fleet["workers"]) {
      if (worker.value("id", "") == id) return worker;
    }
    return nullptr;
  }
  static bool BecomesStuck(Cluster* cluster, const std::string& id, seconds limit) {
    const auto until = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < until) {
      const auto worker = Worker(cluster, id);
      if (!worker.is_null() && worker.value("state", "") == "stuck") return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
    return false;
  }
};

TEST_F(StudentFaultTest, AStudentThatHangsIsSeenAndCancelledAndHoldsUpNobody) {
  Cluster cluster;
  ASSERT_TRUE(cluster.StartCoordinator({"--cancel-grace", "2", "--stuck-limit", "2", "--stall-limit", "2"}));
  ASSERT_TRUE(StartHanging(&cluster, "s0", {"--unwind-limit", "15"}));
  const std::string job = cluster.Submit(LoneJob{.name = "hangs"}.Yaml());
  const auto stalls = cluster.WaitFor(job, seconds(30), [](const auto& j) {
    return Phase(j) == "loading" && Reason(j).find("nothing new from its ranks") != std::string::npos;
  });
  ASSERT_FALSE(stalls.is_null());
  EXPECT_EQ(State(stalls), "JOB_STATE_RUNNING");
  ASSERT_EQ(cluster.Ctl({"cancel", job}).exit_code, 0);
  const auto cancelled = cluster.WaitEnd(job, seconds(30));
  EXPECT_EQ(State(cancelled), "JOB_STATE_CANCELLED");
  EXPECT_THAT(Reason(cancelled), HasSubstr("s0 did not stop within 2 s"));

  const std::string next = cluster.Submit(LoneJob{.name = "next"}.Yaml());
  const auto waits = cluster.WaitFor(
      next, seconds(30), [](const auto& j) { return Reason(j).find("s0 is stuck in job hangs") != std::string::npos; });
  ASSERT_FALSE(waits.is_null());
  ASSERT_TRUE(BecomesStuck(&cluster, "s0", seconds(10)));
  const auto stuck = Worker(&cluster, "s0");
  EXPECT_THAT(stuck.value("reason", ""), HasSubstr("has not left job " + job));
  EXPECT_THAT(cluster.HttpGet("coordinator", "/metrics"),
              HasSubstr("distill_coordinator_workers{kind=\"student\",state=\"stuck\"} 1"));
  ASSERT_TRUE(cluster.StartStudent("s1"));
  EXPECT_EQ(State(cluster.WaitEnd(next, seconds(60))), "JOB_STATE_SUCCEEDED");

  // Whoever supervises it starts a new one.
  EXPECT_EQ(cluster.process("s0")->Wait(seconds(30)), kExitTemporary);
  EXPECT_THAT(cluster.Log("s0"), HasSubstr("it hangs, perhaps in a disk that does not answer"));
}

// Nobody looks: the coordinator re-forms the group, the rank that hangs does not follow, and another takes its place.
TEST_F(StudentFaultTest, AHangingRankIsLeftBehindAfterTheHangLimit) {
  Cluster cluster;
  ASSERT_TRUE(cluster.StartCoordinator({"--stuck-limit", "2", "--stall-limit", "1", "--hang-limit", "10"}));
  ASSERT_TRUE(StartHanging(&cluster, "s0", {"--unwind-limit", "600"}));
  const std::string job = cluster.Submit(LoneJob{.name = "hangs"}.Yaml());
  ASSERT_FALSE(cluster.WaitFor(job, seconds(30), [](const auto& j) { return Phase(j) == "loading"; }).is_null());
  ASSERT_TRUE(cluster.StartStudent("s1"));
  const auto end = cluster.WaitEnd(job, seconds(90));
  EXPECT_EQ(State(end), "JOB_STATE_SUCCEEDED") << Reason(end);
  const std::string events = cluster.Ctl({"logs", job}).out;
  EXPECT_THAT(events, HasSubstr("more than --hang-limit: one of them hangs"));
  // The next group is s1's at once, or one more is formed when s0 has not followed within --stuck-limit.
  EXPECT_THAT(events, ContainsRegex("generation [23]: s1"));
  EXPECT_TRUE(BecomesStuck(&cluster, "s0", seconds(30)));
  cluster.Kill("s0", SIGKILL);
}

// The coordinator is gone as well, and nobody answers the worker's last words.
TEST_F(StudentFaultTest, AHangingStudentEndsAtSigtermWithoutItsCoordinator) {
  Cluster cluster;
  ASSERT_TRUE(cluster.StartCoordinator());
  ASSERT_TRUE(StartHanging(&cluster, "s0", {"--grace", "1"}));
  const std::string job = cluster.Submit(LoneJob{.name = "hangs"}.Yaml());
  ASSERT_FALSE(cluster.WaitFor(job, seconds(30), [](const auto& j) { return Phase(j) == "loading"; }).is_null());
  cluster.Kill("coordinator", SIGKILL);
  EXPECT_EQ(cluster.Kill("s0", SIGTERM), kExitTemporary);
  EXPECT_THAT(cluster.Log("s0"), HasSubstr("the trainer hangs"));
}

TEST_F(StudentFaultTest, ARankThatHangsIsTerminatedAndAnotherTakesItsPlace) {
  Cluster cluster;
  ASSERT_TRUE(cluster.StartCoordinator());
  ASSERT_TRUE(StartHanging(&cluster, "s0", {"--grace", "1"}));
  ASSERT_TRUE(cluster.StartStudent("s1"));
  const std::string job = cluster.Submit(LoneJob{.students = 2}.Yaml());
  ASSERT_FALSE(cluster.WaitFor(job, seconds(30), [](const auto& j) { return Phase(j) == "loading"; }).is_null());
  ASSERT_TRUE(cluster.StartStudent("s2"));
  EXPECT_EQ(State(cluster.Describe(job)), "JOB_STATE_RUNNING");
  EXPECT_EQ(cluster.Kill("s0", SIGTERM), kExitTemporary);
  const auto end = cluster.WaitEnd(job, seconds(60));
  EXPECT_EQ(State(end), "JOB_STATE_SUCCEEDED") << Reason(end);
  EXPECT_EQ(end.value("restarts", 0), 1);
}

// The only checkpoints of a stage that read a teacher are gone, and so is the teacher from the job's needs.
TEST_F(StudentFaultTest, TheWorkFolderIsLostAfterTheTeachersWereReleased) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 1));
  const std::string yaml =
      "name: folder\nseed: 7\nstudents: 1\nthreads: 1\ndevice: cpu\nbatch_size: 64\nteacher: fashion\n"
      "student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: "
      "[0.353]}\n"
      "data: {format: idx, path: fashion-mnist, train_limit: 2048}\noptimizer: {type: sgd, lr: 0.1}\n"
      "evaluate: {teacher: false}\ncheckpoint: {every: 8}\nlog_every: 4\nstages:\n"
      "  - {name: mimic, trainable: [conv1, bn1, layer1], steps: 8, losses: [{type: l2, student: layer1, teacher: "
      "layer1, "
      "adapter: auto}]}\n"
      "  - {name: alone, trainable: ['**'], steps: 150, losses: [{type: cross_entropy}]}\n";
  const auto student = [&](const std::string& job) { return ReadFileOrEmpty(cluster.StudentFile(job)); };
  const std::string undisturbed = cluster.Submit(yaml);
  ASSERT_EQ(State(cluster.WaitEnd(undisturbed)), "JOB_STATE_SUCCEEDED");

  const std::string job = cluster.Submit(yaml);
  const auto alone =
      cluster.WaitFor(job, seconds(60), [](const auto& j) { return StageOf(j) == 1 && StepOf(j) >= 12; });
  ASSERT_FALSE(alone.is_null());
  EXPECT_EQ(Worker(&cluster, "t0").value("state", ""), "idle") << "the teacher was not released";
  cluster.Kill("s0", SIGKILL);
  ASSERT_GT(std::filesystem::remove_all(cluster.dir() / ("work/" + job)), 0u);
  ASSERT_TRUE(cluster.StartStudent("s0"));
  const auto end = cluster.WaitEnd(job, seconds(90));
  EXPECT_EQ(State(end), "JOB_STATE_SUCCEEDED") << Reason(end);
  EXPECT_EQ(end["stages_done"].size(), 2u);
  const std::string events = cluster.Ctl({"logs", job}).out;
  EXPECT_THAT(events, HasSubstr("teachers released"));
  EXPECT_THAT(events,
              HasSubstr("1 of 1 committed stage(s) are dropped, training goes on at step 0 of stage 1 ('mimic')"))
      << "the coordinator did not learn where it really goes on";
  ASSERT_FALSE(student(job).empty());
  EXPECT_TRUE(student(job) == student(undisturbed)) << "the student differs from the undisturbed run's";
}

// All ranks measure a part of the test images.
class EvaluationFaultTest : public StudentFaultTest {
 protected:
  EvaluationFaultTest() : cluster_(/*lease=*/"30") {}
  // A job whose ranks have begun to measure, and will for some seconds.
  std::string Measuring(const std::string& name) {
    const std::string job =
        cluster_.Submit(LoneJob{.name = name, .students = 2, .net = "cifar_resnet20, width: 16", .steps = 2}.Yaml());
    EXPECT_FALSE(cluster_.WaitFor(job, seconds(60), [](const auto& j) { return Phase(j) == "evaluating"; }).is_null());
    return job;
  }
  Cluster cluster_;
};

TEST_F(EvaluationFaultTest, ARankThatStandsStillForAWhileIsWaitedFor) {
  ASSERT_TRUE(cluster_.Start(0, 2));
  const std::string job = Measuring("slow");
  cluster_.process("s1")->Signal(SIGSTOP);
  std::this_thread::sleep_for(seconds(5));  // half the collective time-out, and more than a heartbeat
  const auto meanwhile = cluster_.Describe(job);
  EXPECT_EQ(Phase(meanwhile), "evaluating") << "it was not stopped while it measured";
  cluster_.process("s1")->Signal(SIGCONT);
  const auto end = cluster_.WaitEnd(job, seconds(90));
  EXPECT_EQ(State(end), "JOB_STATE_SUCCEEDED") << Reason(end);
  EXPECT_EQ(end.value("restarts", 0), 0);
  EXPECT_EQ(end.value("generation", ""), "1");
}

TEST_F(EvaluationFaultTest, CancelAndTerminationAreObeyed) {
  ASSERT_TRUE(cluster_.Start(0, 2));
  const std::string cancelled = Measuring("cancelled");
  ASSERT_EQ(cluster_.Ctl({"cancel", cancelled}).exit_code, 0);
  const auto end = cluster_.WaitEnd(cancelled, seconds(30));
  EXPECT_EQ(State(end), "JOB_STATE_CANCELLED");
  EXPECT_EQ(Reason(end), "cancelled by a user") << "its ranks did not stop";

  const std::string job = Measuring("terminated");
  EXPECT_EQ(cluster_.Kill("s1", SIGTERM), kExitTerminated);
  ASSERT_TRUE(cluster_.StartStudent("s1"));
  const auto finished = cluster_.WaitEnd(job, seconds(90));
  EXPECT_EQ(State(finished), "JOB_STATE_SUCCEEDED") << Reason(finished);
  EXPECT_EQ(finished.value("restarts", 0), 1);
}

}  // namespace
}  // namespace distill::testing
