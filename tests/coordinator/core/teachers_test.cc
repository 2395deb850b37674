#include "coordinator/core/teachers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/core/cluster_fixture.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class TeachersTest : public testing::Test {
 protected:
  void SetUp() override {
    state_.jobs = {MakeRunning("j", MakePlan(1, true), {"s0"})};
    Add(&state_, MakeTeacher("t0"));
    Add(&state_, MakeTeacher("t1"));
  }
  std::vector<std::string> Endpoints() {
    std::vector<std::string> ids;
    for (const TeacherEndpoint& endpoint : EndpointsFor(kNow, kLease, state_, state_.jobs[0])) {
      ids.push_back(endpoint.worker_id);
    }
    return ids;
  }
  ClusterState state_;
};

TEST_F(TeachersTest, LiveServersOfTheSameWeightsAreUsed) {
  EXPECT_THAT(Endpoints(), ElementsAre("t0", "t1"));
  EXPECT_EQ(EndpointsFor(kNow, kLease, state_, state_.jobs[0])[0],
            (TeacherEndpoint{"t0", "t0:1", "fashion", "digest-1"}));
  state_.workers["t0"].draining = true;
  EXPECT_THAT(Endpoints(), ElementsAre("t1"));
  state_.workers["t1"].last_seen = kNow - 6;
  EXPECT_THAT(Endpoints(), IsEmpty());
}

TEST_F(TeachersTest, ATeacherServesTheTapsOfTheCurrentStage) {
  std::vector<TeacherJob> jobs = JobsOf(state_.workers["t0"], state_);
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0], (TeacherJob{"j", "fashion", {"layer1"}}));
  state_.jobs[0].stages.resize(1);
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_)[0].taps, ElementsAre("layer2"));
  EXPECT_THAT(JobsOf(MakeTeacher("x", "digest-2"), state_), IsEmpty());
}

TEST_F(TeachersTest, ReleasedWhenNoRemainingStageReadsThem) {
  state_.jobs[0].stages.resize(2);
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_), IsEmpty());
  EXPECT_THAT(Endpoints(), IsEmpty());
  EXPECT_FALSE(NeedOf(state_.jobs[0]).now);
}

TEST_F(TeachersTest, AStageInBetweenKeepsTheConnectionButNotTheWork) {
  JobPlan plan = MakePlan(1, true);
  std::swap(plan.stages[1], plan.stages[2]);  // needs: yes, no, yes
  state_.jobs = {MakeRunning("j", plan, {"s0"})};
  state_.jobs[0].stages.resize(1);
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_), IsEmpty());
  EXPECT_THAT(Endpoints(), ElementsAre("t0", "t1"));
}

TEST_F(TeachersTest, MeasuringTheTeacherNeedsItBeforeTheFirstStage) {
  JobPlan plan = MakePlan(1, true);
  plan.evaluate_teacher = true;
  std::swap(plan.stages[0], plan.stages[2]);  // needs: no, yes, yes
  state_.jobs = {MakeRunning("j", plan, {"s0"})};
  EXPECT_TRUE(NeedOf(state_.jobs[0]).now);
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_)[0].taps, ElementsAre(""));
}

TEST_F(TeachersTest, WaitingJobsAndWeightlessLossesNeedNothing) {
  state_.jobs[0].status.state = JobState::kQueued;
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_), IsEmpty());
  JobPlan plan = MakePlan(1, true);
  plan.stages[0].losses[0].weight = 0;
  state_.jobs = {MakeRunning("j", plan, {"s0"})};
  EXPECT_THAT(JobsOf(state_.workers["t0"], state_)[0].taps, IsEmpty());
}

}  // namespace
}  // namespace distill
