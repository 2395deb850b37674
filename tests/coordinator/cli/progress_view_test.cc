#include "coordinator/cli/progress_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_join.h"
#include "coordinator/cli/job_progress.h"
#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr TextOptions kAscii{.color = false, .utf8 = false, .width = 80, .height = 24};
constexpr TextOptions kUtf8{.color = false, .utf8 = true, .width = 80, .height = 24};

std::string Joined(const std::vector<std::string>& lines) { return absl::StrJoin(lines, "\n"); }

TEST(JobProgressTest, PositionCountsStepsOverStages) {
  const JobPosition position = PositionOf(RunningJob());
  EXPECT_EQ(position.stage, 1);
  EXPECT_EQ(position.step, 420u);
  EXPECT_EQ(position.stage_steps, 1050u);
  EXPECT_EQ(position.done_steps, 720u);
  EXPECT_EQ(position.total_steps, 1550u);
}

TEST(JobProgressTest, ACommittedStageIsOverAlsoWhenTheReportIsOlder) {
  v1::Job job = RunningJob();
  job.mutable_progress()->set_stage(0);
  job.mutable_progress()->set_step(300);
  const JobPosition position = PositionOf(job);
  EXPECT_EQ(position.stage, 1);
  EXPECT_EQ(position.step, 0u);
  EXPECT_EQ(position.done_steps, 300u);
}

TEST(JobProgressTest, NumbersThatMakeNoSenseAreSurvived) {
  v1::Job job = RunningJob();
  job.mutable_progress()->set_stage(4'000'000'000);
  job.mutable_progress()->set_step(1 << 30);
  job.mutable_progress()->set_images_per_second(std::nan(""));
  job.mutable_progress()->set_loss(std::nan(""));
  EXPECT_EQ(PositionOf(job).stage, 1);
  EXPECT_FALSE(EstimateEta(job, kSubmitted).stage_seconds.has_value());
  job.mutable_progress()->set_stage(1);
  EXPECT_EQ(PositionOf(job).step, 1050u);
  job.add_stages_done()->set_stage(4'000'000'000);
  EXPECT_THAT(Joined(RenderProgress(job, kSubmitted, "", kAscii)), HasSubstr("loss nan"));
  job.mutable_plan()->clear_stages();
  EXPECT_EQ(PositionOf(job).total_steps, 0u);
  EXPECT_THAT(RenderProgress(job, kSubmitted, "", kAscii), Not(IsEmpty()));
  EXPECT_THAT(PlainProgress(1).Update(job, kSubmitted), Not(IsEmpty()));
  EXPECT_THAT(RenderProgress(v1::Job(), 0, "", kAscii), Not(IsEmpty()));
}

TEST(JobProgressTest, EtaFollowsTheRateAndTheAgeOfTheReport) {
  const v1::Job job = RunningJob();
  // 2100 images/s in batches of 100: 21 steps/s. 630 steps are left in the stage, 830 in the job.
  const Eta fresh = EstimateEta(job, kSubmitted + 100);
  ASSERT_TRUE(fresh.stage_seconds.has_value());
  EXPECT_DOUBLE_EQ(*fresh.stage_seconds, 30);
  EXPECT_DOUBLE_EQ(*fresh.job_seconds, 830.0 / 21);
  EXPECT_DOUBLE_EQ(*EstimateEta(job, kSubmitted + 105).stage_seconds, 25);
  // Not below zero.
  v1::Job last = job;
  last.mutable_progress()->set_step(1049);
  EXPECT_DOUBLE_EQ(*EstimateEta(last, kSubmitted + 110).stage_seconds, 0);
  // A clock that is behind the reporter's does not add time.
  EXPECT_DOUBLE_EQ(*EstimateEta(job, kSubmitted).stage_seconds, 30);
}

// The newest rate is that of the past: a job that waits, or that nobody has heard of, has none.
TEST(JobProgressTest, AStalledJobHasNoTimeLeftAndNoSpeed) {
  const v1::Job running = RunningJob();
  EXPECT_FALSE(IsStalled(running, kSubmitted + 119));
  EXPECT_TRUE(IsStalled(running, kSubmitted + 121));
  // A step of 100 images takes 50 s: two reports are a minute apart.
  v1::Job slow = running;
  slow.mutable_progress()->set_images_per_second(2);
  EXPECT_FALSE(IsStalled(slow, kSubmitted + 260));
  EXPECT_TRUE(IsStalled(slow, kSubmitted + 266));
  v1::Job waiting = running;
  waiting.set_wait(v1::JOB_WAIT_TEACHER);
  waiting.set_reason("waiting for a teacher: none that is alive serves 'fashion'");
  EXPECT_TRUE(IsStalled(waiting, kSubmitted + 101));
  EXPECT_FALSE(IsStalled(QueuedJob(), kSubmitted + 1000));
  EXPECT_FALSE(IsStalled(SucceededJob(), kSubmitted + 1000));
  EXPECT_FALSE(EstimateEta(waiting, kSubmitted + 101).stage_seconds.has_value());
  EXPECT_FALSE(EstimateEta(running, kSubmitted + 121).stage_seconds.has_value());
  for (const auto& [job, now] : {std::pair{waiting, kSubmitted + 101}, {running, kSubmitted + 121}}) {
    const std::string display = Joined(RenderProgress(job, now, "", kAscii));
    EXPECT_THAT(display, AllOf(Not(HasSubstr("img/s")), Not(HasSubstr("eta"))));
    EXPECT_THAT(PlainProgressLine(job, now), AllOf(Not(HasSubstr("img/s")), Not(HasSubstr("eta"))));
  }
  EXPECT_THAT(PlainProgressLine(waiting, kSubmitted + 101), HasSubstr(", waiting for a teacher: none that is alive"));
  EXPECT_THAT(PlainProgressLine(running, kSubmitted + 121), HasSubstr(", stalled"));
}

TEST(JobProgressTest, NoEtaWithoutRateOrWhileNotRunning) {
  v1::Job job = RunningJob();
  job.mutable_progress()->set_images_per_second(0);
  EXPECT_FALSE(EstimateEta(job, kSubmitted).stage_seconds.has_value());
  EXPECT_FALSE(EstimateEta(QueuedJob(), kSubmitted).stage_seconds.has_value());
  EXPECT_FALSE(EstimateEta(SucceededJob(), kSubmitted).stage_seconds.has_value());
}

TEST(ProgressViewTest, RunningJobAsciiGolden) {
  EXPECT_EQ(Joined(RenderProgress(RunningJob(), kSubmitted + 105, "", kAscii)),
            "fashion  j-1  running  1m35s\n"
            "  * mimic    300/300  loss 0.1234  32s\n"
            "  > whole   420/1050  training\n"
            "  - head       0/200\n"
            "  ################........................   40%  eta 25s (job 35s)\n"
            "  loss 0.5432 (cross_entropy 0.31, kd 1.2)\n"
            "  2100 img/s  lr 0.05  top-1 88.12% (teacher top-1 93.75%)");
}

TEST(ProgressViewTest, RunningJobUtf8Golden) {
  EXPECT_EQ(Joined(RenderProgress(RunningJob(), kSubmitted + 105, "lost the coordinator", kUtf8)),
            "fashion  j-1  running  1m35s\n"
            "  ✓ mimic    300/300  loss 0.1234  32s\n"
            "  ▶ whole   420/1050  training\n"
            "  · head       0/200\n"
            "  ━━━━━━━━━━━━━━━━────────────────────────   40%  eta 25s (job 35s)\n"
            "  loss 0.5432 (cross_entropy 0.31, kd 1.2)\n"
            "  2100 img/s  lr 0.05  top-1 88.12% (teacher top-1 93.75%)\n"
            "  lost the coordinator");
}

TEST(ProgressViewTest, QueuedJobSaysWhatItWaitsFor) {
  EXPECT_EQ(Joined(RenderProgress(QueuedJob(), kSubmitted + 3, "", kAscii)),
            "fashion  j-1  queued  3.0s\n"
            "  waiting for 2 students; 1 is idle\n"
            "  - mimic      0/300\n"
            "  - whole     0/1050\n"
            "  - head       0/200");
}

TEST(ProgressViewTest, EndedJobHasNoBar) {
  v1::Job job = RunningJob();
  job.set_state(v1::JOB_STATE_FAILED);
  job.set_reason("no such folder");
  job.set_finished_time(kSubmitted + 110);
  EXPECT_EQ(Joined(RenderProgress(job, kSubmitted + 9999, "", kAscii)),
            "fashion  j-1  failed  1m40s\n"
            "  no such folder\n"
            "  * mimic    300/300  loss 0.1234  32s\n"
            "  ! whole   420/1050\n"
            "  - head       0/200");
}

TEST(ProgressViewTest, EveryLineFitsEveryWidth) {
  v1::Job job = RunningJob();
  job.set_reason("漢字 and a rather long reason that does not fit into narrow terminals at all, whatever one does");
  for (const bool utf8 : {false, true}) {
    for (int width = 1; width <= 120; ++width) {
      const TextOptions options{.utf8 = utf8, .width = width};
      for (const std::string& line : RenderProgress(job, kSubmitted + 105, "a notice", options)) {
        ASSERT_LE(DisplayWidth(line), width) << line;
      }
    }
  }
}

TEST(ProgressViewTest, ManyStagesAreFoldedAroundTheCurrentOne) {
  v1::Job job = RunningJob();
  v1::JobPlan* plan = job.mutable_plan();
  plan->clear_stages();
  job.clear_stages_done();
  for (int i = 0; i < 60; ++i) {
    plan->add_stages()->set_name("s" + std::to_string(i));
    plan->mutable_stages(i)->set_steps(10);
    if (i < 30) job.add_stages_done()->set_stage(i);
  }
  job.mutable_progress()->set_stage(30);
  job.mutable_progress()->set_step(5);
  for (const int current : {0, 1, 30, 58, 59}) {
    job.clear_stages_done();
    for (int i = 0; i < current; ++i) job.add_stages_done()->set_stage(i);
    job.mutable_progress()->set_stage(current);
    for (int height = 1; height < 70; ++height) {
      TextOptions options = kAscii;
      options.height = height;
      const auto lines = RenderProgress(job, kSubmitted + 105, "", options);
      EXPECT_LE(static_cast<int>(lines.size()), std::max(height - 1, 8)) << height;
      EXPECT_THAT(Joined(lines), HasSubstr("> s" + std::to_string(current))) << height;
    }
  }
  TextOptions options = kAscii;
  options.height = 12;
  const std::string text = Joined(RenderProgress(job, kSubmitted + 105, "", options));
  EXPECT_THAT(text, HasSubstr("before"));
}

TEST(ProgressViewTest, ServerTextCannotControlTheTerminal) {
  v1::Job job = RunningJob();
  job.set_name("x\x1b[2J");
  job.mutable_plan()->mutable_stages(0)->set_name("\x1b]0;title\x07");
  job.mutable_progress()->set_phase("a\nb");
  job.set_reason("\x9b");
  for (const std::string& line : RenderProgress(job, kSubmitted, "\x1b", kAscii)) {
    EXPECT_EQ(line.find_first_of(std::string("\x1b\n\x07\x9b", 4)), std::string::npos) << line;
  }
  for (const std::string& line : PlainProgress(0).Update(job, kSubmitted)) {
    EXPECT_EQ(line.find_first_of(std::string("\x1b\n\x07\x9b", 4)), std::string::npos) << line;
  }
  EXPECT_EQ(RenderOutcome(job, kAscii).find('\x1b'), std::string::npos);
}

TEST(ProgressViewTest, OldReportsAreSaidToBeOld) {
  EXPECT_THAT(Joined(RenderProgress(RunningJob(), kSubmitted + 119, "", kAscii)), Not(HasSubstr("old")));
  EXPECT_THAT(Joined(RenderProgress(RunningJob(), kSubmitted + 145, "", kAscii)),
              HasSubstr("newest report is 45s old"));
}

TEST(ProgressViewTest, BarIsFilledByTheShare) {
  EXPECT_EQ(RenderBar(0, 4, false), "....");
  EXPECT_EQ(RenderBar(0.5, 4, false), "##..");
  EXPECT_EQ(RenderBar(0.99, 4, false), "###.");  // full only when done
  EXPECT_EQ(RenderBar(1, 4, false), "####");
  EXPECT_EQ(RenderBar(7, 4, false), "####");
  EXPECT_EQ(RenderBar(std::nan(""), 2, false), "..");
  EXPECT_EQ(RenderBar(0.5, 0, false), ".");
}

TEST(PlainProgressTest, OneLineHasAllThatMatters) {
  EXPECT_EQ(PlainProgressLine(RunningJob(), kSubmitted + 105),
            "[1m35s] stage 2/3 whole: step 420/1050 (40%), loss 0.5432 (cross_entropy 0.31, kd 1.2), 2100 img/s, "
            "top-1 88.12% (teacher top-1 93.75%), training, eta 25s (job 35s)");
}

TEST(PlainProgressTest, ChangesAreToldAtOnceAndProgressOncePerInterval) {
  PlainProgress plain(5);
  v1::Job job = QueuedJob();
  double now = kSubmitted + 1;
  EXPECT_THAT(plain.Update(job, now),
              ElementsAre("[1.0s] job j-1 (fashion) queued: waiting for 2 students; 1 is idle"));
  EXPECT_THAT(plain.Update(job, now + 60), IsEmpty()) << "nothing new, nothing said";
  job.set_reason("waiting for a teacher");
  EXPECT_THAT(plain.Update(job, now + 61), ElementsAre("[1m02s] job j-1 (fashion) queued: waiting for a teacher"));

  job = RunningJob();
  job.clear_stages_done();
  job.mutable_progress()->set_stage(0);
  job.mutable_progress()->set_step(0);
  now = kSubmitted + 70;
  EXPECT_THAT(plain.Update(job, now),
              ElementsAre("[1m00s] job j-1 (fashion) running", "[1m00s] stage 1/3 mimic: starts, 300 steps"));
  job.mutable_progress()->set_step(10);
  EXPECT_THAT(plain.Update(job, now + 4.9), IsEmpty());
  EXPECT_THAT(plain.Update(job, now + 5.1), ElementsAre(HasSubstr("stage 1/3 mimic: step 10/300 (3%)")));
  job.mutable_progress()->set_step(20);
  EXPECT_THAT(plain.Update(job, now + 6), IsEmpty());

  job = RunningJob();
  job.mutable_progress()->set_step(0);
  EXPECT_THAT(plain.Update(job, now + 7), ElementsAre("[1m07s] stage 1/3 mimic done in 32s: loss 0.1234",
                                                      "[1m07s] stage 2/3 whole: starts, 1050 steps"));
  job.set_restarts(1);
  EXPECT_THAT(plain.Update(job, now + 8), ElementsAre("[1m08s] re-formed after the loss of a member (1 restart)"));
  EXPECT_THAT(plain.Update(SucceededJob(), now + 9),
              ElementsAre("[3m10s] stage 2/3 whole done in 1m00s: loss 0.3, top-1 91.00%",
                          "[3m10s] stage 3/3 head done in 1m00s: loss 0.3, top-1 92.00%"));
}

TEST(PlainProgressTest, AJobWatchedFromTheMiddleGoesOn) {
  EXPECT_THAT(PlainProgress(5).Update(RunningJob(), kSubmitted + 100),
              ElementsAre("[1m30s] job j-1 (fashion) running", "[1m30s] stage 1/3 mimic done in 32s: loss 0.1234",
                          "[1m30s] stage 2/3 whole: goes on, 1050 steps"));
}

TEST(OutcomeTest, NamesStateDurationAccuracyAndFiles) {
  EXPECT_EQ(RenderOutcome(SucceededJob(), kAscii),
            "job j-1 (fashion) succeeded after 3m10s\n"
            "  student   top-1 91.52% (teacher top-1 93.75%), 77.4k parameters\n"
            "  weights   /work/j-1/student.safetensors (312 KiB)\n"
            "  program   /work/j-1/student.pt (416 KiB)\n");
  v1::Job failed = QueuedJob();
  failed.set_state(v1::JOB_STATE_FAILED);
  failed.set_reason("data folder 'x' is missing");
  EXPECT_EQ(RenderOutcome(failed, kAscii), "job j-1 (fashion) failed: data folder 'x' is missing\n");
}

TEST(OutcomeTest, WarningsFollowIt) {
  std::vector<v1::JobEvent> events;
  const auto add = [&events](v1::EventLevel level, const std::string& text) {
    events.emplace_back().set_level(level);
    events.back().set_source("s0");
    events.back().set_text(text);
  };
  add(v1::EVENT_LEVEL_INFO, "stage 1 committed");
  EXPECT_EQ(RenderWarnings(events, "distillctl logs j-1", kAscii), "");
  add(v1::EVENT_LEVEL_WARNING, "2 pictures\nskipped");
  add(v1::EVENT_LEVEL_WARNING, "2 pictures\nskipped");
  add(v1::EVENT_LEVEL_ERROR, "an error is the outcome's");
  EXPECT_EQ(RenderWarnings(events, "distillctl logs j-1", kAscii), "  warning   s0: 2 pictures\\nskipped\n");
  for (int i = 0; i < 6; ++i) add(v1::EVENT_LEVEL_WARNING, std::string(1, static_cast<char>('a' + i)));
  EXPECT_EQ(RenderWarnings(events, "distillctl logs j-1", kAscii),
            "  warning   s0: b\n  warning   s0: c\n  warning   s0: d\n  warning   s0: e\n  warning   s0: f\n"
            "  and 2 older warnings: distillctl logs j-1\n");
}

}  // namespace
}  // namespace distill::cli
