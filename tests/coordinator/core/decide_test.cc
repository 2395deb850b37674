#include "coordinator/core/decide.h"

#include "coordinator/core/attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/core/cluster_fixture.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

class DecideTest : public testing::Test {
 protected:
  std::vector<JobDecision> All(double now = kNow) { return Decide(now, state_, options_); }
  JobDecision One(double now = kNow) {
    const std::vector<JobDecision> all = All(now);
    EXPECT_EQ(all.size(), 1u);
    return all.at(0);
  }
  static std::vector<std::string> Ranks(const JobDecision& decision) {
    std::vector<std::string> ids;
    for (const RankMember& member : decision.status.ranks) ids.push_back(member.worker_id);
    return ids;
  }
  // Two students at work on "j", which has two ranks.
  void RunTwo(bool with_teacher = false) {
    state_.jobs = {MakeRunning("j", MakePlan(2, with_teacher), {"s0", "s1"})};
    Add(&state_, Working("s0", "j"));
    Add(&state_, Working("s1", "j"));
  }

  ClusterState state_;
  DecideOptions options_{.lease = kLease, .max_restarts = 3};
};

// --- queued
// ---------------------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, NothingToDecideWithoutJobs) { EXPECT_THAT(All(), IsEmpty()); }

TEST_F(DecideTest, AGangStartsWithAllItsStudentsOrNone) {
  state_.jobs = {MakeQueued("j", MakePlan(2))};
  JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kQueued);
  EXPECT_EQ(decision.status.reason,
            "waiting for 2 students: 0 free, 0 alive; start 2 more: distill-student --coordinator ADDRESS");
  Add(&state_, MakeStudent("s0"));
  decision = One();
  EXPECT_EQ(decision.status.state, JobState::kQueued);
  EXPECT_THAT(decision.status.reason, StartsWith("waiting for 2 students: 1 free, 1 alive; start 1 more"));
  Add(&state_, MakeStudent("s1"));
  decision = One();
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_TRUE(decision.assigned);
  EXPECT_EQ(decision.status.generation, 1u);  // that of the first group
  EXPECT_THAT(Ranks(decision), ElementsAre("s0", "s1"));
  EXPECT_EQ(decision.status.ranks[1].incarnation, "s1-inc");
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0')");
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].text, "generation 1: s0, s1");
  EXPECT_EQ(decision.events[0].type, EventType::kGroupFormed);
  EXPECT_EQ(decision.events[0].generation, 1u);
}

struct UnusableCase {
  const char* name;
  std::function<void(Worker*)> spoil;
};
void PrintTo(const UnusableCase& c, std::ostream* out) { *out << c.name; }
class UnusableStudentTest : public DecideTest, public testing::WithParamInterface<UnusableCase> {};

TEST_P(UnusableStudentTest, IsNotGivenARank) {
  state_.jobs = {MakeQueued("j", MakePlan(1))};
  Worker worker = MakeStudent("s0");
  GetParam().spoil(&worker);
  Add(&state_, worker);
  EXPECT_EQ(One().status.state, JobState::kQueued);
}
INSTANTIATE_TEST_SUITE_P(
    All, UnusableStudentTest,
    testing::Values(UnusableCase{"Silent", [](Worker* w) { w->last_seen = kNow - kLease - 0.001; }},
                    UnusableCase{"Draining", [](Worker* w) { w->draining = true; }},
                    UnusableCase{"Teacher", [](Worker* w) { w->kind = WorkerKind::kTeacher; }},
                    UnusableCase{"StillLeavingAnotherJob", [](Worker* w) { w->job_id = "ended"; }}),
    [](const auto& info) { return info.param.name; });

TEST_F(DecideTest, ALeaseEndsAfterItsLastMoment) {
  state_.jobs = {MakeQueued("j", MakePlan(1))};
  Add(&state_, MakeStudent("s0", kNow - kLease));
  EXPECT_EQ(One().status.state, JobState::kRunning);
}

TEST_F(DecideTest, FirstInFirstOut) {
  state_.jobs = {MakeQueued("a", MakePlan(1)), MakeQueued("b", MakePlan(1)), MakeQueued("c", MakePlan(1))};
  Add(&state_, MakeStudent("s0"));
  Add(&state_, MakeStudent("s1"));
  const std::vector<JobDecision> all = All();
  EXPECT_THAT(Ranks(all[0]), ElementsAre("s0"));
  EXPECT_THAT(Ranks(all[1]), ElementsAre("s1"));
  EXPECT_EQ(all[2].status.state, JobState::kQueued);
  EXPECT_EQ(all[2].status.reason, "waiting for 1 student: 0 free, 2 alive");
}

TEST_F(DecideTest, ABigJobHoldsTheLineWhileTheFleetCanServeIt) {
  RunTwo();
  state_.jobs.push_back(MakeQueued("big", MakePlan(3)));
  state_.jobs.push_back(MakeQueued("small", MakePlan(1)));
  Add(&state_, MakeStudent("s2"));
  const std::vector<JobDecision> all = All();
  EXPECT_EQ(all[1].status.reason, "waiting for 3 students: 1 free, 3 alive");
  EXPECT_EQ(all[2].status.state, JobState::kQueued);  // else big jobs would starve
  EXPECT_EQ(all[2].status.reason, "waiting behind job big, which was submitted earlier");
}

TEST_F(DecideTest, AJobThatTheFleetCannotServeHoldsUpNobody) {
  state_.jobs = {MakeQueued("huge", MakePlan(8)), MakeQueued("no-teacher", MakePlan(1, true)),
                 MakeQueued("small", MakePlan(1))};
  Add(&state_, MakeStudent("s0"));
  const std::vector<JobDecision> all = All();
  EXPECT_EQ(all[0].status.state, JobState::kQueued);
  EXPECT_EQ(all[1].status.state, JobState::kQueued);
  EXPECT_THAT(all[1].status.reason,
              StartsWith("waiting for a teacher: none that is alive serves 'fashion' (digest digest-1)"));
  EXPECT_EQ(all[2].status.state, JobState::kRunning);
}

TEST_F(DecideTest, AQueuedJobIsCancelledAtOnce) {
  state_.jobs = {MakeQueued("j", MakePlan(1))};
  state_.jobs[0].status.cancel_requested = true;
  state_.jobs[0].status.cancel_reason = "typo";
  Add(&state_, MakeStudent("s0"));
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kCancelled);
  EXPECT_EQ(decision.status.reason, "cancelled by a user: typo");
}

TEST_F(DecideTest, ADecisionIsStableWhenNothingChanges) {
  state_.jobs = {MakeQueued("j", MakePlan(2))};
  Add(&state_, MakeStudent("s0"));
  state_.jobs[0].status = One().status;
  const JobDecision again = One(kNow + 1);
  EXPECT_EQ(again.status, state_.jobs[0].status);
  EXPECT_THAT(again.events, IsEmpty());
}

// --- running
// --------------------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, ARunningJobIsLeftAlone) {
  RunTwo();
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_EQ(decision.status.generation, 1u);
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0')");
  EXPECT_THAT(decision.events, IsEmpty());
  EXPECT_FALSE(decision.assigned);
}

TEST_F(DecideTest, TheReasonNamesTheStage) {
  RunTwo();
  state_.jobs[0].stages.resize(2);
  EXPECT_EQ(One().status.reason, "stage 3 of 3 ('stage-2')");
  state_.jobs[0].stages.resize(3);
  EXPECT_THAT(One().status.reason, HasSubstr("exports the student"));
}

struct LossCase {
  const char* name;
  std::function<void(ClusterState*)> happen;
  const char* reason;
  bool counts = true;  // towards max_restarts
};
void PrintTo(const LossCase& c, std::ostream* out) { *out << c.name; }
class MemberLossTest : public DecideTest, public testing::WithParamInterface<LossCase> {};

TEST_P(MemberLossTest, BreaksTheGroupUnderANewGeneration) {
  RunTwo();
  GetParam().happen(&state_);
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kQueued);
  EXPECT_EQ(decision.status.generation, 2u);
  EXPECT_EQ(decision.status.restarts, 1u);
  EXPECT_EQ(decision.lost_at, kNow);
  EXPECT_THAT(Ranks(decision), ElementsAre("s0", "s1"));  // kept, so that ranks stay stable
  ASSERT_GE(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].level, EventLevel::kWarning);
  EXPECT_EQ(decision.events[0].type, EventType::kGroupLost);
  EXPECT_EQ(decision.events[0].generation, 1u);
  EXPECT_THAT(decision.events[0].text, AllOf(HasSubstr(GetParam().reason), HasSubstr("re-forming as generation 2")));
  EXPECT_EQ(decision.status.fruitless, GetParam().counts ? 1u : 0u);
}
INSTANTIATE_TEST_SUITE_P(
    All, MemberLossTest,
    testing::Values(
        LossCase{"Silent", [](ClusterState* s) { s->workers["s1"].last_seen = kNow - 6; },
                 "s1 has been silent for 6 s (lease 5 s)"},
        LossCase{"Restarted", [](ClusterState* s) { s->workers["s1"].incarnation = "new"; }, "s1 was restarted"},
        LossCase{"Gone", [](ClusterState* s) { s->workers.erase("s1"); },
                 "s1 did not return within 30 s of the coordinator's restart"},
        LossCase{"Draining", [](ClusterState* s) { s->workers["s0"].draining = true; }, "s0 is shutting down", false},
        LossCase{"RestartedAfterDraining",
                 [](ClusterState* s) {
                   s->workers["s0"].incarnation = "new";
                   s->workers["s0"].drained_incarnation = "s0-inc";
                 },
                 "s0 was restarted", false},
        LossCase{"StuckInAnOlderGeneration",
                 [](ClusterState* s) {
                   s->workers["s1"].generation = 0;
                   s->workers["s1"].job_since = kNow - 61;
                 },
                 "s1 has been stuck in generation 0 for 61 s"},
        LossCase{"Idle",
                 [](ClusterState* s) {
                   s->workers["s1"].job_id = "";
                   s->workers["s1"].job_since = kNow - 11;
                 },
                 "s1 has been idle for 11 s instead of taking its rank"},
        LossCase{"Elsewhere",
                 [](ClusterState* s) {
                   s->workers["s1"].job_id = "other";
                   s->workers["s1"].job_since = kNow - 11;
                 },
                 "s1 has been busy with job other"},
        LossCase{"Reported",
                 [](ClusterState* s) {
                   s->jobs[0].failures = {FailureReport{"s0", "peer closed", FailureKind::kPassing}};
                 },
                 "s0: peer closed"}),
    [](const auto& info) { return info.param.name; });

TEST_F(DecideTest, SeveralLossesAreOneRestartWithAllReasons) {
  RunTwo();
  state_.workers["s0"].incarnation = "new";
  state_.workers["s1"].draining = true;
  state_.jobs[0].failures = {FailureReport{"s0", "peer closed", FailureKind::kPassing}};
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.restarts, 1u);
  EXPECT_THAT(decision.events[0].text,
              AllOf(HasSubstr("s0 was restarted"), HasSubstr("s1 is shutting down"), HasSubstr("s0: peer closed")));
}

TEST_F(DecideTest, AMemberMayTakeAMomentToTakeItsRank) {
  RunTwo();
  state_.workers["s1"].job_id = "";
  state_.jobs[0].assigned_at = kNow - 9;  // idle for long, but the rank is new
  EXPECT_EQ(One().status.state, JobState::kRunning);
  EXPECT_EQ(One(kNow + 1).status.state, JobState::kRunning);
  state_.workers["s0"].last_seen = state_.workers["s1"].last_seen = kNow + 1.1;
  EXPECT_EQ(One(kNow + 1.1).status.state, JobState::kQueued);
}

TEST_F(DecideTest, AnUnmendableFailureEndsTheJobWithItsCause) {
  RunTwo();
  state_.jobs[0].failures = {FailureReport{"s1", "data folder 'x' is missing", FailureKind::kJob}};
  state_.workers["s1"].draining = true;  // its consequence
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kFailed);
  EXPECT_EQ(decision.status.reason, "s1: data folder 'x' is missing");
  EXPECT_EQ(decision.events[0].level, EventLevel::kError);
}

TEST_F(DecideTest, TooManyRestartsFailTheJob) {
  RunTwo();
  state_.jobs[0].status.fruitless = 3;
  state_.jobs[0].failures = {FailureReport{"s0", "again", FailureKind::kPassing}};
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kFailed);
  EXPECT_EQ(decision.status.reason,
            "gave up after re-forming the group 3 times in a row without any progress; last: s0: again");
}

TEST_F(DecideTest, ProgressRefillsTheBudget) {
  RunTwo();
  const auto lose = [&] {
    state_.jobs[0].failures = {FailureReport{"s0", "again", FailureKind::kPassing}};
    const JobStatus status = One().status;
    state_.jobs[0].status.fruitless = status.fruitless;
    state_.jobs[0].status.best_step = status.best_step;
    state_.jobs[0].status.best_stage = status.best_stage;
    return status;
  };
  EXPECT_EQ(lose().fruitless, 1u);
  EXPECT_EQ(lose().fruitless, 2u);
  state_.jobs[0].progress = JobProgress{.total_step = 10};
  EXPECT_EQ(lose().fruitless, 0u);
  EXPECT_EQ(lose().fruitless, 1u) << "it went no further than the time before";
  state_.jobs[0].progress->total_step = 9;
  EXPECT_EQ(lose().fruitless, 2u);
  state_.jobs[0].stages.resize(1);
  EXPECT_EQ(lose().fruitless, 0u) << "a stage was committed";
  for (uint64_t step = 11; step < 100; ++step) {
    state_.jobs[0].progress->total_step = step;
    ASSERT_EQ(lose().state, JobState::kQueued) << "a long job may lose its group as often as it likes";
  }
}

TEST_F(DecideTest, LeavingInGoodOrderNeverFailsAJob) {
  RunTwo();
  state_.jobs[0].status.fruitless = 3;
  state_.workers["s0"].draining = true;
  EXPECT_EQ(One().status.state, JobState::kQueued);
  EXPECT_THAT(One().events[0].text, Not(HasSubstr("attempt")));
}

// --- a worker's own fault
// ---------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, AWorkerAtFaultIsSetAsideForThisJob) {
  RunTwo();
  Add(&state_, MakeStudent("s2"));
  state_.jobs[0].status.fruitless = 3;
  state_.jobs[0].failures = {FailureReport{"s1", "no data here", FailureKind::kWorker}};
  JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kQueued) << "nobody's budget";
  ASSERT_EQ(decision.status.set_aside.size(), 1u);
  EXPECT_EQ(decision.status.set_aside[0], (SetAside{"s1", "s1-inc", "no data here"}));
  EXPECT_EQ(decision.events[0].type, EventType::kWorkerSetAside);
  EXPECT_EQ(decision.events[0].text, "s1 is at fault and gets this job no more (until it is restarted): no data here");
  state_.jobs[0].status = decision.status;
  state_.jobs[0].lost_at = decision.lost_at;
  state_.jobs[0].failures.clear();
  state_.jobs.push_back(MakeQueued("other", MakePlan(1)));
  for (auto& [id, worker] : state_.workers) worker.last_seen = kNow + 1;
  state_.workers["s0"].job_id = state_.workers["s1"].job_id = "";
  const std::vector<JobDecision> all = All(kNow + 1);
  EXPECT_THAT(Ranks(all[0]), ElementsAre("s0", "s2"));
  EXPECT_THAT(Ranks(all[1]), ElementsAre("s1")) << "other jobs may have it";
  // Another process of that id has another chance.
  state_.workers["s1"].incarnation = "new";
  state_.workers.erase("s2");
  EXPECT_THAT(Ranks(All(kNow + 1)[0]), ElementsAre("s0", "s1"));
}

TEST_F(DecideTest, AJobWaitsForStudentsThatHaveNotFailedIt) {
  state_.jobs = {MakeQueued("j", MakePlan(2)), MakeQueued("small", MakePlan(1))};
  state_.jobs[0].status.set_aside = {{"s1", "s1-inc", "disk full"}};
  Add(&state_, MakeStudent("s0"));
  Add(&state_, MakeStudent("s1"));
  const std::vector<JobDecision> all = All();
  EXPECT_EQ(all[0].status.reason,
            "waiting for 2 students: 1 free, 1 alive; s1 is set aside: disk full; start 1 more: distill-student "
            "--coordinator ADDRESS, or restart those set aside; the job fails when that has lasted 3600 s");
  EXPECT_EQ(all[1].status.state, JobState::kRunning) << "the fleet cannot serve the first: it holds up nobody";
}

TEST_F(DecideTest, AJobDoesNotWaitForEverForStudentsSetAside) {
  options_.set_aside_limit = 100;
  state_.jobs = {MakeQueued("j", MakePlan(2))};
  state_.jobs[0].status.set_aside = {{"s1", "s1-inc", "disk full"}};
  Add(&state_, MakeStudent("s0"));
  Add(&state_, MakeStudent("s1"));
  const auto look = [&](double now) {
    for (auto& [id, worker] : state_.workers) worker.last_seen = now;
    const JobDecision decision = One(now);
    state_.jobs[0].short_since = decision.short_since;
    return decision;
  };
  EXPECT_EQ(look(kNow).status.state, JobState::kQueued);
  EXPECT_EQ(look(kNow + 90).status.reason, look(kNow).status.reason) << "no change of the status at every look";
  EXPECT_EQ(look(kNow + 100).status.state, JobState::kQueued);
  const JobDecision failed = look(kNow + 101);
  EXPECT_EQ(failed.status.state, JobState::kFailed);
  EXPECT_EQ(failed.status.reason,
            "needs 2 students, and for 100 s there were not enough but for those that failed it (s1: disk full); mend "
            "and restart them or start others, then: distillctl resume j");
  // Meanwhile it is short of more than those, which are nobody's fault: the time begins anew.
  state_.jobs[0].short_since = kNow;
  state_.workers["s0"].draining = true;
  EXPECT_EQ(look(kNow + 200).short_since, std::nullopt);
  state_.workers["s0"].draining = false;
  EXPECT_EQ(look(kNow + 201).status.state, JobState::kQueued);
  // A student that was mended.
  state_.workers["s1"].incarnation = "new";
  EXPECT_EQ(look(kNow + 400).status.state, JobState::kRunning);
}

TEST_F(DecideTest, AStudentSetAsideForTheFirstJobServesThoseBehindIt) {
  state_.jobs = {MakeRunning("long", MakePlan(1), {"s0"}), MakeQueued("j", MakePlan(1)), MakeQueued("b", MakePlan(1)),
                 MakeQueued("c", MakePlan(1))};
  state_.jobs[1].status.set_aside = {{"s1", "s1-inc", "disk full"}};
  Add(&state_, Working("s0", "long"));
  Add(&state_, MakeStudent("s1"));
  std::vector<JobDecision> all = All();
  EXPECT_EQ(all[1].status.reason, "waiting for 1 student: 0 free, 1 alive; s1 is set aside: disk full");
  EXPECT_THAT(Ranks(all[2]), ElementsAre("s1")) << "that delays the first by nothing";
  EXPECT_EQ(all[3].status.reason, "waiting behind job j, which was submitted earlier");
  // The first has its place: what comes free of those it can use is its own.
  state_.jobs[0].status.ranks = {{"s9", "s9-inc"}};
  Add(&state_, Working("s9", "long"));
  state_.workers["s0"] = MakeStudent("s0");
  state_.jobs[1].plan = std::make_shared<const JobPlan>(MakePlan(2));
  all = All();
  EXPECT_EQ(all[1].status.state, JobState::kQueued);
  EXPECT_THAT(Ranks(all[2]), ElementsAre("s1"));
  EXPECT_EQ(all[3].status.wait, JobWait::kLine) << "s0 is kept for the first, which needs s9 too";
}

TEST_F(DecideTest, NobodyOvertakesAJobThatWaitsForTheSameStudents) {
  state_.jobs = {MakeRunning("long", MakePlan(1), {"s0"}), MakeQueued("a", MakePlan(2)), MakeQueued("b", MakePlan(2)),
                 MakeQueued("c", MakePlan(1))};
  state_.jobs[1].status.set_aside = {{"s3", "s3-inc", "disk full"}};
  Add(&state_, Working("s0", "long"));
  Add(&state_, MakeStudent("s1"));
  Add(&state_, MakeStudent("s3"));
  // a has s1 and waits for s0. b could use s3, and waits for a second one: it reserves s3, so that c does not take it.
  const std::vector<JobDecision> all = All();
  EXPECT_EQ(all[1].status.reason, "waiting for 2 students: 1 free, 2 alive; s3 is set aside: disk full");
  EXPECT_EQ(all[2].status.reason, "waiting behind job a, which was submitted earlier");
  EXPECT_EQ(all[3].status.reason, "waiting behind job a, which was submitted earlier");
}

TEST_F(DecideTest, AJobThatEveryStudentFailedEnds) {
  state_.jobs = {MakeQueued("j", MakePlan(1))};
  state_.jobs[0].status.set_aside = {{"s0", "s0-inc", "no data"}, {"s1", "s1-inc", "no data either"}};
  Add(&state_, MakeStudent("s0"));
  Add(&state_, MakeStudent("s1"));
  Worker away = MakeStudent("s2", kNow - 30);
  Add(&state_, away);
  EXPECT_EQ(One().status.state, JobState::kQueued) << "s2 was here a moment ago and may be back";
  state_.workers["s2"].last_seen = kNow - 61;
  EXPECT_EQ(One().status.state, JobState::kFailed);
  EXPECT_EQ(One().status.reason, "every live student failed it: s0: no data; s1: no data either");
  state_.workers["s1"].incarnation = "new";
  EXPECT_EQ(One().status.state, JobState::kRunning);
}

TEST_F(DecideTest, ACordonedStudentGetsNothing) {
  state_.jobs = {MakeQueued("j", MakePlan(1))};
  Worker worker = MakeStudent("s0");
  worker.faults = {{"a", "no"}, {"b", "no"}};
  Add(&state_, worker);
  EXPECT_EQ(One().status.state, JobState::kRunning);
  state_.workers["s0"].faults["c"] = "no";
  EXPECT_EQ(One().status.state, JobState::kQueued);
  EXPECT_THAT(One().status.reason, HasSubstr("s0 is cordoned: no"));
}

// --- devices
// --------------------------------------------------------------------------------------------------------------------

class DeviceTest : public DecideTest {
 protected:
  void SetUp() override {
    Add(&state_, MakeStudent("a-cpu"));
    Add(&state_, MakeStudent("b-gpu"));
    Add(&state_, MakeStudent("c-cpu"));
    Add(&state_, MakeStudent("d-gpu"));
    state_.workers["a-cpu"].device = state_.workers["c-cpu"].device = "cpu";
    state_.workers["b-gpu"].device = state_.workers["d-gpu"].device = "cuda:0 NVIDIA H200";
  }
  JobDecision For(const std::string& device, uint32_t students) {
    JobPlan plan = MakePlan(students);
    plan.device = device;
    state_.jobs = {MakeQueued("j", plan)};
    return One();
  }
};

TEST_F(DeviceTest, AJobGetsTheDeviceItAsksFor) {
  EXPECT_THAT(Ranks(For("cuda", 1)), ElementsAre("b-gpu"));
  EXPECT_THAT(Ranks(For("cuda", 2)), ElementsAre("b-gpu", "d-gpu"));
  EXPECT_EQ(
      For("cuda", 3).status.reason,
      "waiting for 3 students: 2 free, 2 alive; a-cpu has no GPU, the job asks for device cuda; c-cpu has no GPU, "
      "the job asks for device cuda; start 1 more: distill-student --coordinator ADDRESS");
  EXPECT_THAT(Ranks(For("cpu", 2)), ElementsAre("a-cpu", "c-cpu"));
  EXPECT_THAT(Ranks(For("auto", 2)), ElementsAre("b-gpu", "d-gpu"));
}

TEST_F(DeviceTest, AGroupHasOneKindOfDevice) {
  state_.workers.erase("d-gpu");
  EXPECT_THAT(Ranks(For("auto", 2)), ElementsAre("a-cpu", "c-cpu"));
  EXPECT_THAT(For("auto", 3).status.reason,
              HasSubstr("2 free, 2 alive (1 more with another kind of device: a group has one kind)"));
}

TEST_F(DecideTest, AJobOfAnArchiveGoesToStudentsThatHoldThatFile) {
  for (const auto& [id, digest] : {std::pair("a", ""), {"b", "d1"}, {"c", "d2"}}) {
    Worker worker = MakeStudent(id);
    if (*digest != '\0') worker.models.push_back({"mine", digest, {}, 0, 0, {}});
    Add(&state_, worker);
  }
  JobPlan plan = MakePlan(1);
  plan.student.arch = "mine@sha256:d2";
  state_.jobs = {MakeQueued("j", plan)};
  EXPECT_THAT(Ranks(One()), ElementsAre("c"));
  plan.students = 2;
  state_.jobs = {MakeQueued("j", plan)};
  EXPECT_THAT(One().status.reason, HasSubstr("a has not the archive mine@sha256:d2; b has not the archive"));
}

// --- stuck, stalled
// -------------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, AStudentThatDoesNotLeaveAJobIsStuck) {
  state_.jobs = {MakeQueued("big", MakePlan(2)), MakeQueued("small", MakePlan(1))};
  Add(&state_, Working("s0", "ghost"));
  Add(&state_, MakeStudent("s1"));
  NoteAstray(kNow, &state_);
  std::vector<JobDecision> all = All();
  EXPECT_EQ(all[0].status.reason, "waiting for 2 students: 1 free, 2 alive");
  EXPECT_EQ(all[1].status.wait, JobWait::kLine);
  for (auto& [id, worker] : state_.workers) worker.last_seen = kNow + 61;
  NoteAstray(kNow + 61, &state_);
  all = All(kNow + 61);
  EXPECT_THAT(all[0].status.reason, HasSubstr("1 free, 1 alive; s0 is stuck in job ghost; start 1 more"));
  EXPECT_EQ(all[1].status.state, JobState::kRunning);
  state_.workers["s0"].job_id = "";  // it has left at last
  NoteAstray(kNow + 61, &state_);
  EXPECT_EQ(All(kNow + 61)[0].status.state, JobState::kRunning);
}

TEST_F(DecideTest, AStudentAtWorkIsNotAstray) {
  RunTwo();
  NoteAstray(kNow, &state_);
  EXPECT_FALSE(state_.workers["s0"].astray_since);
  state_.workers["s0"].generation = 0;
  NoteAstray(kNow, &state_);
  EXPECT_EQ(state_.workers["s0"].astray_since, kNow);
}

TEST_F(DecideTest, AJobWithoutNewsIsSaidToStall) {
  RunTwo();
  state_.jobs[0].progress_at = kNow - 901;
  JobDecision decision = One();
  EXPECT_EQ(decision.status.wait, JobWait::kProgress);
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0'); nothing new from its ranks for more than 900 s");
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].type, EventType::kStalled);
  state_.jobs[0].status = decision.status;
  EXPECT_THAT(One(kNow + 1).events, IsEmpty()) << "said once";
  state_.jobs[0].progress_at = kNow;
  EXPECT_EQ(One(kNow + 1).status.wait, JobWait::kNothing);
}

constexpr double kLongAgo = -1e6;  // kNow lies less than an hour after 0

TEST_F(DecideTest, AJobWithoutNewsIsReformedAfterTheHangLimit) {
  RunTwo();
  options_.hang_limit = 3600;
  state_.jobs[0].no_teacher_at = kLongAgo;
  state_.jobs[0].progress_at = kNow - 3600;
  EXPECT_EQ(One().status.state, JobState::kRunning);
  state_.jobs[0].assigned_at = kNow - 5000;
  state_.jobs[0].progress_at = kNow - 3601;
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kQueued);
  EXPECT_EQ(decision.status.generation, state_.jobs[0].status.generation + 1);
  EXPECT_EQ(decision.status.fruitless, 1u) << "an attempt of the budget";
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].type, EventType::kGroupLost);
  EXPECT_THAT(
      decision.events[0].text,
      StartsWith("group lost: nothing new from its ranks for 3601 s, more than --hang-limit: one of them hangs"));
  options_.hang_limit = 0;
  EXPECT_EQ(One().status.wait, JobWait::kProgress) << "no limit: it is only said to stall";
  state_.jobs[0].assigned_at = kNow - 3600;
  options_.hang_limit = 3600;
  EXPECT_EQ(One().status.state, JobState::kRunning) << "a new group has its own time";
}

// Both ranks are given the new generation; the one that waited takes it, the one that hangs does not.
TEST_F(DecideTest, TheRankThatHangsIsNotInTheGroupAfterNext) {
  RunTwo();
  Add(&state_, MakeStudent("s2"));
  options_.hang_limit = 3600;
  state_.jobs[0].no_teacher_at = state_.jobs[0].assigned_at = kLongAgo;
  state_.jobs[0].progress_at = kNow - 3601;
  const auto look = [&](double now) {
    NoteAstray(now, &state_);
    for (auto& [id, worker] : state_.workers) worker.last_seen = now;
    const JobDecision decision = One(now);
    state_.jobs[0].status = decision.status;
    state_.jobs[0].lost_at = decision.lost_at;
    if (decision.assigned) state_.jobs[0].assigned_at = now;
    return decision;
  };
  EXPECT_EQ(look(kNow).status.state, JobState::kQueued);
  EXPECT_THAT(Ranks(look(kNow + 1)), ElementsAre("s0", "s1"));
  state_.workers["s0"].generation = state_.jobs[0].status.generation;
  EXPECT_EQ(look(kNow + 60).status.state, JobState::kRunning);
  EXPECT_THAT(look(kNow + 62).status.reason, HasSubstr("s1 is stuck in job j"));
  EXPECT_THAT(Ranks(look(kNow + 63)), ElementsAre("s0", "s2"));
}

TEST_F(DecideTest, AWaitForATeacherIsNoHangAndNoStall) {
  RunTwo(/*with_teacher=*/true);
  options_.hang_limit = 3600;
  state_.jobs[0].progress_at = kNow - 5000;
  const JobDecision waits = One();
  EXPECT_EQ(waits.status.state, JobState::kRunning);
  EXPECT_EQ(waits.status.wait, JobWait::kTeacher);
  EXPECT_EQ(waits.no_teacher_at, kNow);
  state_.jobs[0].status = waits.status;
  state_.jobs[0].no_teacher_at = waits.no_teacher_at;
  Add(&state_, MakeTeacher("t0"));
  const JobDecision goes_on = One(kNow + 1);
  EXPECT_EQ(goes_on.status.state, JobState::kRunning);
  EXPECT_EQ(goes_on.status.wait, JobWait::kNothing);
}

// --- re-forming
// -----------------------------------------------------------------------------------------------------------------

class ReformTest : public DecideTest {
 protected:
  // The group broke at kNow because s0 reported that its peer closed; nobody knows yet that s1 is dead.
  void SetUp() override {
    RunTwo();
    state_.jobs[0].failures = {FailureReport{"s0", "peer closed", FailureKind::kPassing}};
    Take(One());
    ASSERT_EQ(state_.jobs[0].status.state, JobState::kQueued);
    state_.jobs[0].failures.clear();
  }
  void Take(const JobDecision& decision) {
    state_.jobs[0].status = decision.status;
    state_.jobs[0].lost_at = decision.lost_at;
  }
  void Calls(const std::string& id, double when, const std::string& incarnation = "", const std::string& job = "j") {
    Worker& worker = state_.workers[id];
    worker.id = id;
    worker.last_seen = when;
    worker.job_id = job;
    if (!incarnation.empty()) worker.incarnation = incarnation;
  }
};

TEST_F(ReformTest, WaitsForMembersToCallAgain) {
  Calls("s0", kNow + 0.5);
  EXPECT_EQ(One(kNow + 0.5).status.state, JobState::kQueued)
      << "s1 has not called since the group broke; it may be the one that died";
  Calls("s1", kNow + 0.8);
  const JobDecision decision = One(kNow + 0.8);
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_EQ(decision.status.generation, 2u);  // nobody was given it before
  EXPECT_EQ(decision.status.restarts, 1u);
  EXPECT_THAT(Ranks(decision), ElementsAre("s0", "s1"));
}

TEST_F(ReformTest, ARestartedMemberGetsItsRankBack) {
  Calls("s0", kNow + 1);
  Calls("s1", kNow + 1, "second-life", "");
  const JobDecision decision = One(kNow + 1);
  EXPECT_THAT(Ranks(decision), ElementsAre("s0", "s1"));
  EXPECT_EQ(decision.status.ranks[1].incarnation, "second-life");
}

TEST_F(ReformTest, ASpareTakesTheLostRankAndSurvivorsKeepTheirs) {
  Calls("s1", kNow + 1);
  Add(&state_, MakeStudent("a-spare", kNow + 1));  // sorts before both
  const JobDecision decision = One(kNow + 1);
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_THAT(Ranks(decision), ElementsAre("a-spare", "s1"));
}

TEST_F(ReformTest, ItsStudentsAreKeptForItForAWhile) {
  state_.jobs.push_back(MakeQueued("later", MakePlan(1)));
  Calls("s0", kNow + 59, "", "");
  EXPECT_EQ(All(kNow + 59)[1].status.state, JobState::kQueued);
  Calls("s0", kNow + 61, "", "");
  const std::vector<JobDecision> all = All(kNow + 61);
  EXPECT_EQ(all[0].status.state, JobState::kQueued);
  EXPECT_EQ(all[1].status.state, JobState::kRunning) << "a group that cannot form must not idle the fleet for ever";
}

TEST_F(ReformTest, OthersMayUseStudentsItNeverHad) {
  state_.jobs.push_back(MakeQueued("later", MakePlan(1)));
  Calls("s0", kNow + 6, "", "");
  state_.jobs[0].status.ranks = {{"s0", "s0-inc"}, {"s1", "s1-inc"}};
  JobPlan wide = MakePlan(3);
  state_.jobs[0].plan = std::make_shared<const JobPlan>(wide);
  Add(&state_, MakeStudent("s9", kNow + 6));
  const std::vector<JobDecision> all = All(kNow + 6);
  EXPECT_EQ(all[0].status.state, JobState::kQueued);
  EXPECT_THAT(Ranks(all[1]), ElementsAre("s9"));
}

// --- the coordinator's own restart
// ----------------------------------------------------------------------------------------------

class RestartTest : public DecideTest {
 protected:
  // The coordinator started at kNow and found "j" running in its store; nobody has called yet.
  void SetUp() override {
    state_.grace_until = kNow + 30;
    state_.jobs = {MakeRunning("j", MakePlan(2), {"s0", "s1"})};
    state_.jobs[0].assigned_at = kNow;
    state_.jobs[0].status.reason = "stage 1 of 3 ('stage-0')";
  }
};

TEST_F(RestartTest, MembersMayReturnUnderTheSameGeneration) {
  EXPECT_EQ(One(kNow).status.state, JobState::kRunning);
  EXPECT_EQ(One(kNow + 30).status.state, JobState::kRunning);
  Add(&state_, Working("s0", "j"));
  Add(&state_, Working("s1", "j"));
  state_.workers["s0"].last_seen = state_.workers["s1"].last_seen = kNow + 31;
  const JobDecision decision = One(kNow + 31);
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_EQ(decision.status.generation, 1u);
  EXPECT_EQ(decision.status.restarts, 0u);
}

TEST_F(RestartTest, WhoDoesNotReturnInTimeIsLost) {
  Worker back = Working("s0", "j");
  back.last_seen = kNow + 30.1;
  Add(&state_, back);
  const JobDecision decision = One(kNow + 30.1);
  EXPECT_EQ(decision.status.state, JobState::kQueued);
  EXPECT_THAT(decision.events[0].text, AllOf(HasSubstr("s1 did not return"), Not(HasSubstr("s0"))));
}

TEST_F(RestartTest, ARestartedMemberIsLostAtOnce) {
  Worker back = MakeStudent("s0");
  back.incarnation = "second-life";
  Add(&state_, back);
  EXPECT_THAT(One(kNow + 0.1).events[0].text, HasSubstr("s0 was restarted"));
}

TEST_F(RestartTest, RanksOfARunningJobAreNotGivenAway) {
  state_.jobs.push_back(MakeQueued("later", MakePlan(1)));
  Add(&state_, MakeStudent("s0"));  // back, and says that it is idle: not for long
  EXPECT_EQ(All(kNow + 0.1)[1].status.state, JobState::kQueued);
}

TEST_F(RestartTest, TeachersGetTheSameGrace) {
  state_.jobs = {MakeRunning("j", MakePlan(2, true), {"s0", "s1"})};
  state_.jobs[0].status.reason = "stage 1 of 3 ('stage-0')";
  Add(&state_, Working("s0", "j"));
  Add(&state_, Working("s1", "j"));
  JobDecision decision = One(kNow + 1);
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0')");
  EXPECT_THAT(decision.events, IsEmpty());
  state_.workers["s0"].last_seen = state_.workers["s1"].last_seen = kNow + 31;
  EXPECT_THAT(One(kNow + 31).status.reason, StartsWith("waiting for a teacher"));
}

TEST_F(RestartTest, ACancelledJobWaitsForMembersThatMayReturn) {
  state_.jobs[0].status.cancel_requested = true;
  EXPECT_EQ(One(kNow + 1).status.state, JobState::kRunning);
  EXPECT_EQ(One(kNow + 30.1).status.state, JobState::kCancelled);
}

// --- the coordinator's own silence
// ----------------------------------------------------------------------------------------------

TEST_F(DecideTest, WhoWasAliveGetsALeaseAfterTheCoordinatorsSilence) {
  Add(&state_, MakeStudent("alive", kNow - 4));
  Add(&state_, MakeStudent("dead", kNow - 60));
  ExcuseSilence(kNow, kLease, &state_);
  EXPECT_TRUE(IsAlive(kNow + 5, kLease, state_.workers["alive"]));
  EXPECT_FALSE(IsAlive(kNow + 5.1, kLease, state_.workers["alive"]));
  EXPECT_FALSE(IsAlive(kNow, kLease, state_.workers["dead"]));
  ExcuseSilence(kNow + 3, kLease, &state_);
  EXPECT_FALSE(IsAlive(kNow + 5.1, kLease, state_.workers["alive"])) << "it has not called since: it is excused once";
  state_.workers["alive"].last_seen = kNow + 4;
  ExcuseSilence(kNow + 6, kLease, &state_);
  EXPECT_TRUE(IsAlive(kNow + 11, kLease, state_.workers["alive"]));
}

TEST(AttentionTest, TimeStandsStillWhileNobodyLooks) {
  Attention attention(100, 0.5);
  EXPECT_EQ(attention.At(100.25).now, 100.25);
  EXPECT_EQ(attention.At(100.75).missed, 0);
  const Attention::Look look = attention.At(130.75);
  EXPECT_EQ(look.now, 101.25);
  EXPECT_EQ(look.missed, 29.5);
  EXPECT_EQ(attention.At(130).now, 101.25) << "readings of two threads may come out of order";
  EXPECT_EQ(attention.At(131).now, 101.5);
}

// --- cancelling
// -----------------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, ACancelledJobEndsWhenItsMembersHaveStopped) {
  RunTwo();
  state_.jobs[0].status.cancel_requested = true;
  JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_EQ(decision.status.reason, "cancelling: s0, s1 still to write a checkpoint and stop");
  state_.workers["s0"].job_id = "";
  decision = One();
  EXPECT_EQ(decision.status.reason, "cancelling: s1 still to write a checkpoint and stop");
  state_.workers["s1"].last_seen = kNow - 6;  // died over it
  decision = One();
  EXPECT_EQ(decision.status.state, JobState::kCancelled);
  EXPECT_EQ(decision.status.reason, "cancelled by a user");
}

TEST_F(DecideTest, ACancelledJobEndsAfterItsGraceWhateverItsMembersDo) {
  RunTwo();
  state_.jobs[0].status.cancel_requested = true;
  state_.jobs[0].cancel_at = kNow - 60;
  EXPECT_EQ(One().status.state, JobState::kRunning);
  state_.jobs[0].cancel_at = kNow - 60.1;
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kCancelled);
  EXPECT_EQ(decision.status.reason,
            "cancelled by a user; s0, s1 did not stop within 60 s and may have written no checkpoint");
}

TEST_F(DecideTest, AFailureWhileCancellingDoesNotReformTheGroup) {
  RunTwo();
  state_.jobs[0].status.cancel_requested = true;
  state_.jobs[0].failures = {FailureReport{"s0", "peer closed", FailureKind::kPassing}};
  state_.workers["s1"].incarnation = "new";
  const JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_EQ(decision.status.generation, 1u);
  EXPECT_EQ(decision.status.reason, "cancelling: s0 still to write a checkpoint and stop");
}

// --- teachers
// -------------------------------------------------------------------------------------------------------------------

TEST_F(DecideTest, StudentsWaitForALostTeacherAndGoOn) {
  RunTwo(true);
  JobDecision decision = One();
  EXPECT_EQ(decision.status.state, JobState::kRunning);
  EXPECT_THAT(decision.status.reason, StartsWith("waiting for a teacher: none that is alive serves 'fashion'"));
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].level, EventLevel::kWarning);
  state_.jobs[0].status = decision.status;
  EXPECT_THAT(One().events, IsEmpty()) << "said once";
  Add(&state_, MakeTeacher("t0"));
  decision = One();
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0')");
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].text, "teacher t0 is there; the job goes on");
}

TEST_F(DecideTest, ATeacherIsNotMissedByAStageThatNeedsNone) {
  RunTwo(true);
  state_.jobs[0].stages.resize(2);
  EXPECT_EQ(One().status.reason, "stage 3 of 3 ('stage-2')");
}

TEST_F(DecideTest, ATeacherWithOtherWeightsIsNotUsedAndSaidSoOnce) {
  RunTwo(true);
  Add(&state_, MakeTeacher("t0"));
  Add(&state_, MakeTeacher("t1", "digest-2"));
  JobDecision decision = One();
  EXPECT_EQ(decision.status.reason, "stage 1 of 3 ('stage-0')");
  ASSERT_EQ(decision.events.size(), 1u);
  EXPECT_EQ(decision.events[0].text,
            "teacher t1 serves 'fashion' with digest digest-2, the job was submitted with digest-1: not used");
  state_.jobs[0].noted.insert(decision.noted.begin(), decision.noted.end());
  EXPECT_THAT(One().events, IsEmpty());
  state_.workers.erase("t0");
  EXPECT_THAT(One().status.reason,
              AllOf(StartsWith("waiting for a teacher"), HasSubstr("t1 serves 'fashion' with digest digest-2")));
}

TEST_F(DecideTest, AQueuedJobWaitsForItsTeacherBeforeItTakesStudents) {
  state_.jobs = {MakeQueued("j", MakePlan(1, true))};
  Add(&state_, MakeStudent("s0"));
  EXPECT_EQ(One().status.state, JobState::kQueued);
  Add(&state_, MakeTeacher("t0", "digest-1", kNow - 6));
  EXPECT_EQ(One().status.state, JobState::kQueued) << "that teacher's lease is over";
  state_.workers["t0"].last_seen = kNow;
  EXPECT_EQ(One().status.state, JobState::kRunning);
}

}  // namespace
}  // namespace distill
