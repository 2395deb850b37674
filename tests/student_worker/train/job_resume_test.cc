// Jobs that are stopped, cancelled or lose their files, and go on.
#include "common/safetensors/safetensors.h"
#include "common/zoo/weights.h"
#include "tests/student_worker/train/job_runner_fixture.h"

namespace distill {
namespace {

using testing::Contains;
using testing::HasSubstr;
namespace fs = std::filesystem;

class ResumedJobTest : public JobRunnerTest, public testing::WithParamInterface<uint32_t> {
 protected:
  void ExpectAnInterruptedJobEndsBitIdentical(const JobPlan& plan);
};

void ResumedJobTest::ExpectAnInterruptedJobEndsBitIdentical(const JobPlan& plan) {
  const Ended straight = Run(plan, "straight");
  ASSERT_EQ(straight.outcomes[0].end, JobEnd::kFinished) << straight.outcomes[0].status;

  // An orderly stop inside the second stage: all ranks checkpoint at the same step.
  const Ended first = Run(plan, "broken", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
  EXPECT_THAT(Checkpoints("broken"), Contains("stage-1-step-4"));
  // A revocation, which writes nothing: the steps since the last checkpoint (5) are trained again.
  const Ended second = Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Revoke(); }), 1);
  EXPECT_EQ(second.outcomes[0].end, JobEnd::kRevoked) << second.outcomes[0].status;
  EXPECT_THAT(second.fleets[0]->events(), Contains(HasSubstr("stage-1-step-4")));
  EXPECT_THAT(Checkpoints("broken"), Contains("stage-1-step-5"));
  const Ended third = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_THAT(third.fleets[0]->events(), Contains(HasSubstr("resuming from")));
  EXPECT_EQ(third.fleets[0]->commits().size(), 1u);

  EXPECT_EQ(Student("straight"), Student("broken"));
  EXPECT_EQ(straight.fleets[0]->finished()[0].student_score, third.fleets[0]->finished()[0].student_score);
}

TEST_P(ResumedJobTest, AnInterruptedJobEndsBitIdentical) { ExpectAnInterruptedJobEndsBitIdentical(Plan(GetParam())); }

TEST_P(ResumedJobTest, AnInterruptedJobOfAnArchiveEndsBitIdentical) {
  // Ranks of this test are threads, which share the generator that dropout draws from; those of a job are processes.
  ExpectAnInterruptedJobEndsBitIdentical(ArchivePlan(GetParam(), /*dropout=*/GetParam() == 1 ? 0.1 : 0.0));
}

TEST_P(ResumedJobTest, SoDoesOneWithAnAverageBatchesInPartsAndNormsOverAllRanks) {
  JobPlan plan = Plan(GetParam());
  plan.accumulate = 2;
  plan.sync_batch_norm = true;
  plan.evaluate_every = 4;  // the average takes the weights' place meanwhile
  for (StagePlan& stage : plan.stages) {
    stage.optimizer.type = "adamw";
    stage.optimizer.lr = 0.01;
    stage.optimizer.ema_decay = 0.9;
    stage.optimizer.decay_norms_and_biases = false;
    stage.optimizer.lr_mult = {{{"fc"}, 2}};
  }
  const Ended straight = Run(plan, "straight");
  ASSERT_EQ(straight.outcomes[0].end, JobEnd::kFinished) << straight.outcomes[0].status;
  const Ended first = Run(plan, "broken", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
  const Ended second = Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Revoke(); }), 1);
  EXPECT_EQ(second.outcomes[0].end, JobEnd::kRevoked) << second.outcomes[0].status;
  const Ended third = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_EQ(Student("straight"), Student("broken"));

  for (StagePlan& stage : plan.stages) stage.optimizer.ema_decay = 0;
  ASSERT_EQ(Run(plan, "weights").outcomes[0].end, JobEnd::kFinished);
  EXPECT_NE(Student("weights"), Student("straight")) << "the average is not what the job leaves";
}

// Batch norms are frozen, so that parts and whole batches differ by rounding alone; nearly two epochs.
TEST_P(ResumedJobTest, PartsOfBatchesAreThoseOfTheSameImages) {
  JobPlan plan = Plan(GetParam());
  plan.data.train_transforms.clear();
  plan.stages = {Stage("head", {"fc"}, {CrossEntropy()}, 30)};
  ASSERT_EQ(Run(plan, "whole").outcomes[0].end, JobEnd::kFinished);
  plan.accumulate = 4;
  ASSERT_EQ(Run(plan, "parts").outcomes[0].end, JobEnd::kFinished);
  const auto weights = [this](const std::string& work) {
    const auto net = Take(ZooNet::Create(SmallStudent()));
    EXPECT_TRUE(LoadWeights(Take(ReadSafetensors(folder_ / (work + "/job-1/student.safetensors"))), net.get()).ok());
    return net->named_parameters()["fc.weight"].detach().clone();
  };
  const torch::Tensor whole = weights("whole"), parts = weights("parts");
  EXPECT_LT((whole - parts).abs().max().item<double>(), 1e-4 * whole.abs().max().item<double>() + 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Ranks, ResumedJobTest, testing::Values(1u, 2u));

TEST_F(JobRunnerTest, ADamagedCheckpointFallsBackAndTheResultIsTheSame) {
  const JobPlan plan = Plan(1);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  ASSERT_EQ(Run(plan, "broken", StopAt(1, 8, [](JobControl* control) { control->Terminate(); })).outcomes[0].end,
            JobEnd::kTerminated);
  const std::string damaged = CheckpointPath("broken", "stage-1-step-9") + "/model.safetensors";
  std::string bytes = ReadAll(damaged);
  ASSERT_FALSE(bytes.empty());
  bytes[bytes.size() / 2] ^= 0x40;
  WriteAll(damaged, bytes);
  const Ended resumed = Run(plan, "broken", nullptr, 1);
  ASSERT_EQ(resumed.outcomes[0].end, JobEnd::kFinished) << resumed.outcomes[0].status;
  EXPECT_THAT(resumed.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("stage-1-step-9-gen-2/model.safetensors"), HasSubstr("sha256"))));
  EXPECT_THAT(resumed.fleets[0]->events(),
              Contains(HasSubstr("resuming from " + (folder_ / "broken/job-1/checkpoints/stage-1-step-5"))));
  EXPECT_EQ(Student("straight"), Student("broken"));
}

TEST_F(JobRunnerTest, AStoreRestoredFromAnOldCopyLearnsOfTheStagesAgain) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  // The coordinator knows of no stage; the newest checkpoint is inside the second.
  const Ended again = Run(plan, "work", nullptr, 0);
  ASSERT_EQ(again.outcomes[0].end, JobEnd::kFinished) << again.outcomes[0].status;
  ASSERT_EQ(again.fleets[0]->commits().size(), 2u);
  EXPECT_EQ(again.fleets[0]->commits()[0].stage, 0u);
  EXPECT_EQ(again.fleets[0]->commits()[1].stage, 1u);
  EXPECT_THAT(again.fleets[0]->events(), Contains(HasSubstr("does not know that stage 1 is done")));
}

TEST_F(JobRunnerTest, ALostCommitIsRepeatedAfterTheRestart) {
  const JobPlan plan = Plan(1);
  ASSERT_EQ(Run(plan, "work").outcomes[0].end, JobEnd::kFinished);
  // The coordinator knows of the first stage only; the folder holds both.
  const Ended again = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(again.outcomes[0].end, JobEnd::kFinished) << again.outcomes[0].status;
  ASSERT_EQ(again.fleets[0]->commits().size(), 1u);
  EXPECT_EQ(again.fleets[0]->commits()[0].stage, 1u);
  EXPECT_TRUE(again.fleets[0]->commits()[0].score.measured());
  EXPECT_EQ(again.fleets[0]->finished()[0].student_score.metrics, again.fleets[0]->commits()[0].score.metrics);
}

TEST_F(JobRunnerTest, AStoreRestoredWhileTheJobRunsLearnsOfAllStages) {
  const Ended ended =
      Run(Plan(1), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) { fleet->forgets_before = 1; });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  std::vector<uint32_t> stages;
  for (const JobStageResult& commit : ended.fleets[0]->commits()) stages.push_back(commit.stage);
  EXPECT_THAT(stages, testing::ElementsAre(0u, 0u, 1u));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("committing them again")));
}

TEST_F(JobRunnerTest, ANewerGenerationIsNotAFailure) {
  const Ended ended = Run(Plan(2), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->commit_status = absl::AbortedError("the job is at generation 2");
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kRevoked) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kPeerFailed) << ended.outcomes[1].status;
}

TEST_F(JobRunnerTest, CancellingLeavesACheckpointAndStopsAllRanks) {
  const JobPlan plan = Plan(2, 1000);
  // Rank 1 alone has been told so far.
  JobControl* second = nullptr;
  const Ended ended = Run(plan, "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank == 1) second = control;
    if (rank == 0) {
      fleet->on_progress = [&](const JobProgress& progress) {
        if (progress.stage == 1 && progress.step >= 2) second->Cancel();
      };
    }
  });
  for (const JobOutcome& outcome : ended.outcomes) EXPECT_EQ(outcome.end, JobEnd::kCancelled) << outcome.status;
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("cancelled; checkpoint")));
  EXPECT_TRUE(ended.fleets[0]->finished().empty());
  EXPECT_FALSE(fs::exists(folder_ / "work/job-1/student.safetensors"));
}

TEST_F(JobRunnerTest, TheCoordinatorLearnsFromWhereAJobReallyGoesOn) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 3, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.outcomes[0].end, JobEnd::kTerminated) << first.outcomes[0].status;
  ASSERT_EQ(first.fleets[0]->resumes().size(), 1u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].stage, 0u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].step, 0u);
  EXPECT_EQ(first.fleets[0]->resumes()[0].digest, "");
  const Ended second = Run(plan, "work", StopAt(1, 6, [](JobControl* control) { control->Terminate(); }), 1);
  ASSERT_EQ(second.fleets[0]->resumes().size(), 1u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].stage, 1u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].step, 4u);
  EXPECT_EQ(second.fleets[0]->resumes()[0].digest.size(), 64u);
  // The work folder is lost: the first stage is trained and committed again.
  fs::remove_all(folder_ / "work");
  const Ended third = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(third.outcomes[0].end, JobEnd::kFinished) << third.outcomes[0].status;
  EXPECT_EQ(third.fleets[0]->resumes()[0].stage, 0u);
  EXPECT_THAT(third.fleets[0]->events(), Contains(HasSubstr("training starts over")));
  ASSERT_EQ(third.fleets[0]->commits().size(), 2u);
  EXPECT_EQ(third.fleets[0]->commits()[0].stage, 0u);
}

TEST_F(JobRunnerTest, AGenerationThatIsOverDoesNotTakeTheFolder) {
  const Ended ended = Run(Plan(1), "work", [](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->resume_status = absl::AbortedError("the job is at generation 2");
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kRevoked) << ended.outcomes[0].status;
  EXPECT_FALSE(fs::exists(folder_ / "work/job-1/checkpoints/generation"));
}

TEST_F(JobRunnerTest, ACommittedCheckpointThatIsGoneIsTold) {
  const JobPlan plan = Plan(1);
  const Ended first = Run(plan, "work", StopAt(1, 6, [](JobControl* control) { control->Terminate(); }));
  ASSERT_EQ(first.fleets[0]->commits().size(), 1u);
  committed_digest_ = first.fleets[0]->commits()[0].digest;
  const Ended fine = Run(plan, "work", StopAt(1, 8, [](JobControl* control) { control->Terminate(); }), 1);
  EXPECT_THAT(fine.fleets[0]->events(), testing::Not(Contains(HasSubstr("that was committed"))));
  fs::remove_all(CheckpointPath("work", "stage-0-step-6"));
  const Ended gone = Run(plan, "work", nullptr, 1);
  ASSERT_EQ(gone.outcomes[0].end, JobEnd::kFinished) << gone.outcomes[0].status;
  EXPECT_THAT(gone.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("that was committed for stage 'head'"), HasSubstr("is gone on from"))));
}

// Rank 0 of an older generation that was stopped or cut off, and wakes up while the next one trains.
TEST_F(JobRunnerTest, AnOlderGenerationThatWakesUpEndsAtItsNextCheckpointAndSpoilsNothing) {
  const JobPlan plan = Plan(1, 40);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  Ended next;
  const Ended zombie = Run(plan, "work", [&](uint32_t, RecordedFleet* fleet, JobControl*) {
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1 || progress.step != 22 || !next.outcomes.empty()) return;
      // It stands still here until the next generation is past it.
      std::thread([&] { next = Run(plan, "work", StopAt(1, 28, [](JobControl* c) { c->Terminate(); }), 1); }).join();
    };
  });
  ASSERT_EQ(next.outcomes[0].end, JobEnd::kTerminated) << next.outcomes[0].status;
  EXPECT_EQ(zombie.outcomes[0].end, JobEnd::kRevoked) << zombie.outcomes[0].status;
  EXPECT_THAT(zombie.outcomes[0].status.ToString(), HasSubstr("generation 3"));
  EXPECT_EQ(Checkpoints("work"), (std::vector<std::string>{"stage-0-step-6", "stage-1-step-25", "stage-1-step-29"}));
  ASSERT_EQ(Run(plan, "work", nullptr, 1).outcomes[0].end, JobEnd::kFinished);
  EXPECT_EQ(Student("straight"), Student("work"));
}

TEST_F(JobRunnerTest, AStopDuringTheLastEvaluationOfAStageLosesNothing) {
  for (const uint32_t ranks : {1u, 2u}) {
    const std::string straight = "straight-" + std::to_string(ranks), broken = "broken-" + std::to_string(ranks);
    const JobPlan plan = Plan(ranks);
    ASSERT_EQ(Run(plan, straight).outcomes[0].end, JobEnd::kFinished);
    const Ended first = Run(plan, broken, [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
      if (rank != 0) return;
      fleet->on_progress = [=](const JobProgress& progress) {
        if (progress.stage == 1 && progress.phase == "evaluating") control->Terminate();
      };
    });
    for (const JobOutcome& outcome : first.outcomes) EXPECT_EQ(outcome.end, JobEnd::kTerminated) << outcome.status;
    EXPECT_EQ(first.fleets[0]->commits().size(), 1u);
    EXPECT_THAT(Checkpoints(broken), Contains("stage-1-step-12"));
    const Ended second = Run(plan, broken, nullptr, 1);
    ASSERT_EQ(second.outcomes[0].end, JobEnd::kFinished) << second.outcomes[0].status;
    ASSERT_EQ(second.fleets[0]->commits().size(), 1u);
    EXPECT_TRUE(second.fleets[0]->commits()[0].score.measured());
    EXPECT_EQ(Student(straight), Student(broken));
  }
}

}  // namespace
}  // namespace distill
