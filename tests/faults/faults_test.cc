// Programs are killed in the middle of a job; the final student must be bit-identical to an undisturbed run's.
#include <gtest/gtest.h>
#include <signal.h>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

class FaultTest : public ::testing::Test {
 protected:
  // The student of an undisturbed run, made once.
  static const std::string& Undisturbed() {
    static const std::string bytes = [] {
      Cluster cluster;
      if (!cluster.Start(2, 2)) return std::string();
      return StudentOf(&cluster, cluster.Submit(Text().Yaml()));
    }();
    return bytes;
  }
  static JobText Text() {
    JobText text;
    text.whole_steps = 120;  // long enough to be hit in the middle
    return text;
  }
  static std::string StudentOf(Cluster* cluster, const std::string& job) {
    const auto end = cluster->WaitEnd(job);
    EXPECT_EQ(end.value("state", ""), "JOB_STATE_SUCCEEDED") << end.value("reason", "");
    return end.is_null() ? "" : ReadFileOrEmpty(end["artifacts"].value("safetensors", ""));
  }
  void SetUp() override {
    if (!FashionMnistInstalled()) GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
    ASSERT_FALSE(Undisturbed().empty());
  }
  // Submits and waits until the second stage is under way.
  static std::string SubmitAndReachStageTwo(Cluster* cluster) {
    const std::string job = cluster->Submit(Text().Yaml());
    const auto state = cluster->WaitFor(job, std::chrono::seconds(90),
                                        [](const auto& j) { return StageOf(j) == 1 && StepOf(j) >= 12; });
    EXPECT_FALSE(state.is_null());
    return job;
  }
  static void ExpectUndisturbed(Cluster* cluster, const std::string& job) {
    const std::string student = StudentOf(cluster, job);
    ASSERT_FALSE(student.empty());
    EXPECT_TRUE(student == Undisturbed()) << "the student differs from the undisturbed run's";
  }
};

TEST_F(FaultTest, TeacherKilledInTheMiddle) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  cluster.Kill("t0", SIGKILL);
  ExpectUndisturbed(&cluster, job);
}

TEST_F(FaultTest, TheOnlyTeacherDiesAndAnotherComesLater) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  cluster.Kill("t0", SIGKILL);
  ASSERT_TRUE(cluster.StartTeacher("t1"));
  ExpectUndisturbed(&cluster, job);
}

TEST_F(FaultTest, TeacherIsDrainedInTheMiddle) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  EXPECT_EQ(cluster.Kill("t1", SIGTERM), 143);
  ExpectUndisturbed(&cluster, job);
}

TEST_F(FaultTest, CoordinatorIsKilledAndRestarted) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  cluster.Kill("coordinator", SIGKILL);
  ASSERT_TRUE(cluster.StartCoordinator());
  ExpectUndisturbed(&cluster, job);
  EXPECT_EQ(cluster.Describe(job).value("restarts", 0), 0) << "the ranks should have gone on under their generation";
}

// The store in which ranks meet lives in the coordinator's memory: what the first rank said there is forgotten.
TEST_F(FaultTest, CoordinatorIsRestartedWhileAGroupForms) {
  Cluster cluster(/*lease=*/"60");
  ASSERT_TRUE(cluster.Start(2, 2));
  cluster.process("s1")->Signal(SIGSTOP);
  const std::string job = cluster.Submit(Text().Yaml());
  const auto waits = cluster.WaitFor(job, std::chrono::seconds(60), [](const auto& j) {
    return j.contains("progress") && j["progress"].value("phase", "") == "waiting for rank 1";
  });
  ASSERT_FALSE(waits.is_null());
  cluster.Kill("coordinator", SIGKILL);
  ASSERT_TRUE(cluster.StartCoordinator());
  cluster.process("s1")->Signal(SIGCONT);
  ExpectUndisturbed(&cluster, job);
  EXPECT_EQ(cluster.Describe(job).value("restarts", 0), 0) << "the ranks should have met under their generation";
}

// By an hour, under all programs at once, as when a host's clock is corrected.
TEST_F(FaultTest, TheWallClockIsSetBack) {
  Cluster cluster;
  cluster.SetWallClock(0);
  ASSERT_TRUE(cluster.Start(1, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  cluster.SetWallClock(-3600);
  ExpectUndisturbed(&cluster, job);
  const auto end = cluster.Describe(job);
  EXPECT_EQ(end.value("restarts", 0), 0) << "a lease ended, or ranks lost each other";
  EXPECT_LT(end.value("finished_time", 0.0), end.value("submitted_time", 0.0)) << "the clock was not set back";
  for (const char* id : {"coordinator", "t0", "s0", "s1"}) {
    EXPECT_EQ(cluster.Log(id).find("has been silent"), std::string::npos) << id << ":\n" << cluster.Log(id);
  }
}

TEST_F(FaultTest, StudentIsKilledAndAnotherTakesItsPlace) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  cluster.Kill("s1", SIGKILL);
  ASSERT_TRUE(cluster.StartStudent("s2"));
  ExpectUndisturbed(&cluster, job);
  EXPECT_GE(cluster.Describe(job).value("restarts", 0), 1);
}

TEST_F(FaultTest, RankZeroIsTerminatedAndRestarted) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  EXPECT_EQ(cluster.Kill("s0", SIGTERM), 143);
  ASSERT_TRUE(cluster.StartStudent("s0"));
  ExpectUndisturbed(&cluster, job);
}

TEST_F(FaultTest, EverythingIsKilledAndRestarted) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 2));
  const std::string job = SubmitAndReachStageTwo(&cluster);
  for (const std::string id : {"coordinator", "s0", "s1", "t0"}) cluster.Kill(id, SIGKILL);
  ASSERT_TRUE(cluster.Start(1, 2));
  ExpectUndisturbed(&cluster, job);
}

}  // namespace
}  // namespace distill::testing
