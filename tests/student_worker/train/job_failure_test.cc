// Jobs whose ranks, groups, data or disks fail: whose fault it is, and what it costs.
#include <atomic>
#include <fstream>
#include <optional>

#include "common/failure_kind.h"
#include "tests/student_worker/train/job_runner_fixture.h"
#include "tests/student_worker/train/silently_aborted_group.h"

namespace distill {
namespace {

using testing::Contains;
using testing::HasSubstr;
namespace fs = std::filesystem;

TEST_F(JobRunnerTest, NoCheckpointIsMadeOfAnAbortedAllReduce) {
  std::atomic<bool> aborted{false};
  wrap_group_ = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<SilentlyAbortedGroup>(std::move(group), &aborted);
  };
  // When rank 0 is about to write the one of step 5 of the second stage.
  const Ended ended = Run(Plan(2, 1000), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage == 1 && progress.phase == "checkpointing") aborted = true;
    };
  });
  EXPECT_TRUE(aborted);
  for (const JobOutcome& outcome : ended.outcomes) EXPECT_EQ(outcome.end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
  EXPECT_THAT(Checkpoints("work"),
              testing::AllOf(Contains("stage-0-step-6"), testing::Not(Contains(HasSubstr("stage-1")))));
}

TEST_F(JobRunnerTest, NoStepFollowsAnAbortedAllReduce) {
  std::atomic<bool> aborted{false};
  std::atomic<uint64_t> step{0};
  wrap_group_ = [&](std::shared_ptr<CollectiveGroup> group) {
    return std::make_shared<SilentlyAbortedGroup>(std::move(group), &aborted);
  };
  const Ended ended = Run(Plan(2, 1000), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1) return;
      step = progress.step;
      if (progress.step == 3) aborted = true;
    };
  });
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
  EXPECT_EQ(step, 3u);
}

TEST_F(JobRunnerTest, ALostRankEndsTheOthersWithAPassingFailure) {
  const JobPlan plan = Plan(2, 1000);
  JobControl* second = nullptr;
  const Ended ended = Run(plan, "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
    if (rank == 1) second = control;
    if (rank == 0) {
      fleet->on_progress = [&](const JobProgress& progress) {
        if (progress.stage == 1 && progress.step == 3)
          second->Revoke();  // its group breaks off, like a process that dies
      };
    }
  });
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kRevoked) << ended.outcomes[1].status;
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kPassing) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kAborted) << ended.outcomes[0].status;
}

TEST_F(JobRunnerTest, AStopWhileTheDataIsLoadedEndsTheJobAtOnce) {
  for (const uint32_t ranks : {1u, 2u}) {
    for (const bool cancel : {true, false}) {
      bool trained = false;
      const Ended ended = Run(Plan(ranks), "work", [&](uint32_t rank, RecordedFleet* fleet, JobControl* control) {
        fleet->on_progress = [=, &trained](const JobProgress& progress) {
          if (rank == 0 && progress.phase == "loading") cancel ? control->Cancel() : control->Terminate();
          if (progress.phase == "training") trained = true;
        };
      });
      EXPECT_EQ(ended.outcomes[0].end, cancel ? JobEnd::kCancelled : JobEnd::kTerminated) << ended.outcomes[0].status;
      EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr("stopped while the data set was loaded"));
      EXPECT_NE(ended.outcomes.back().end, JobEnd::kFailed) << ended.outcomes.back().status;
      EXPECT_FALSE(trained);
    }
  }
}

TEST_F(JobRunnerTest, MissingDataIsTheWorkersFaultAndOneReportIsEnough) {
  JobPlan plan = Plan(2);
  plan.data.path = "no-such-data";
  const Ended ended = Run(plan, "work");
  for (const JobOutcome& outcome : ended.outcomes) {
    ASSERT_TRUE(outcome.end == JobEnd::kFailed || outcome.end == JobEnd::kPeerFailed) << outcome.status;
    if (outcome.end == JobEnd::kFailed) {
      EXPECT_EQ(outcome.kind, FailureKind::kWorker) << outcome.status;
      EXPECT_THAT(outcome.status.ToString(), HasSubstr("no-such-data"));
    }
  }
}

// Fills a small disk to the last byte and gives it back.
class Ballast {
 public:
  explicit Ballast(const std::string& folder) : path_(folder + "/ballast") {
    std::ofstream out(path_, std::ios::binary);
    const std::string block(1 << 16, 'x');
    while (out.write(block.data(), static_cast<std::streamsize>(block.size())) && out.flush()) {
    }
  }
  void Remove() { fs::remove(path_); }

 private:
  const std::string path_;
};

TEST_F(JobRunnerTest, ADiskThatIsFullAtAStagesEndFailsTheRankAndNotTheJob) {
  const SmallDisk disk(folder_ / "disk", "24k");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  const Ended ended = Run(Plan(1), "disk");
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[0].kind, FailureKind::kWorker);
  EXPECT_EQ(ended.outcomes[0].status.code(), StatusCode::kResourceExhausted) << ended.outcomes[0].status;
  EXPECT_THAT(ended.outcomes[0].status.ToString(), HasSubstr(folder_ / "disk"));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("tried again for")));
  EXPECT_THAT(Checkpoints("disk"), testing::IsEmpty());
}

TEST_F(JobRunnerTest, ADiskThatIsFullInsideAStageCostsACheckpointAndNothingElse) {
  JobPlan plan = Plan(2, 24);
  ASSERT_EQ(Run(plan, "straight").outcomes[0].end, JobEnd::kFinished);
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  std::optional<Ballast> ballast;
  const Ended ended = Run(plan, "disk", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage != 1) return;
      if (progress.step >= 7 && !ballast.has_value()) ballast.emplace(folder_ / "disk");  // 10 and 15 fail
      if (progress.step >= 17) ballast->Remove();
    };
  });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  std::vector<std::string> told;
  for (const std::string& event : ended.fleets[0]->events()) {
    if (event.find("No space left") != std::string::npos || event.find("written again") != std::string::npos) {
      told.push_back(event);
    }
  }
  ASSERT_EQ(told.size(), 2u) << testing::PrintToString(ended.fleets[0]->events());
  EXPECT_THAT(told[0],
              testing::AllOf(HasSubstr("stage 1 step 10"), HasSubstr("Training goes on"), HasSubstr("stage-1-step-5")));
  EXPECT_THAT(told[1], HasSubstr("stage-1-step-20"));
  EXPECT_EQ(Student("straight"), Student("disk"));
}

TEST_F(JobRunnerTest, ADiskThatIsFullForAMomentAtAStagesEndIsWaitedFor) {
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  write_patience_ = std::chrono::hours(1);
  std::optional<Ballast> ballast;
  JobPlan plan = Plan(2);
  plan.checkpoint_every = 0;
  const Ended ended = Run(plan, "disk", [&](uint32_t rank, RecordedFleet* fleet, JobControl*) {
    if (rank != 0) return;
    fleet->on_progress = [&](const JobProgress& progress) {
      if (progress.stage == 1 && progress.step >= 7 && !ballast.has_value()) ballast.emplace(folder_ / "disk");
      if (progress.phase == "waiting for the work folder") ballast->Remove();
    };
  });
  ASSERT_EQ(ended.outcomes[0].end, JobEnd::kFinished) << ended.outcomes[0].status;
  EXPECT_THAT(ended.fleets[0]->events(),
              Contains(testing::AllOf(HasSubstr("No space left"), HasSubstr("tried again"))));
  EXPECT_THAT(ended.fleets[0]->events(), Contains(HasSubstr("written now")));
}

TEST_F(JobRunnerTest, ACancelledJobStopsThoughTheDiskIsFull) {
  const SmallDisk disk(folder_ / "disk", "4m");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  std::optional<Ballast> ballast;
  const Ended ended = Run(Plan(1, 1000), "disk", [&](uint32_t, RecordedFleet* fleet, JobControl* control) {
    fleet->on_progress = [&, control](const JobProgress& progress) {
      if (progress.stage != 1 || progress.step < 7 || ballast.has_value()) return;
      ballast.emplace(folder_ / "disk");
      control->Cancel();
    };
  });
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kCancelled) << ended.outcomes[0].status;
  EXPECT_THAT(ended.fleets[0]->events(), Contains(testing::AllOf(HasSubstr("cancelled; "), HasSubstr("No space left"),
                                                                 HasSubstr("stage-1-step-5"))));
}

TEST_F(JobRunnerTest, RanksWithOtherDataAreNamedBeforeTheFirstStep) {
  fs::create_directories(folder_ / "other/shapes");
  WriteIdx(folder_ / "other/shapes", "train", 1, 256);
  WriteIdx(folder_ / "other/shapes", "t10k", 2, 128);
  std::string labels = ReadAll(folder_ / "other/shapes/train-labels-idx1-ubyte");
  labels.back() = static_cast<char>((labels.back() + 1) % 4);  // one image has another label
  WriteAll(folder_ / "other/shapes/train-labels-idx1-ubyte", labels);
  data_roots_[1] = folder_ / "other";
  const Ended ended = Run(Plan(2), "work");
  EXPECT_EQ(ended.outcomes[0].end, JobEnd::kPeerFailed) << ended.outcomes[0].status;
  EXPECT_EQ(ended.outcomes[1].end, JobEnd::kFailed);
  EXPECT_EQ(ended.outcomes[1].kind, FailureKind::kWorker);
  EXPECT_THAT(ended.outcomes[1].status.ToString(), HasSubstr("this worker's data set is not that of rank 0"));
  EXPECT_TRUE(ended.fleets[0]->commits().empty());
}

}  // namespace
}  // namespace distill
