#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/zoo/architecture.h"
#include "coordinator/cli/fleet_view.h"
#include "coordinator/cli/job_view.h"
#include "coordinator/cli/model_view.h"
#include "coordinator/cli/plan_view.h"
#include "coordinator/cli/progress_view.h"
#include "coordinator/cli/results_view.h"
#include "tests/coordinator/cli/sample_jobs.h"

namespace distill::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr TextOptions kPlain{.color = false, .utf8 = true};

TEST(PlanViewTest, Golden) {
  EXPECT_EQ(RenderPlan(SamplePlan(), kPlain),
            "Plan of fashion (preset sskd)\n"
            "  student  cifar_resnet8, width 16, 10 classes, input 1x28x28\n"
            "  teacher  fashion-teacher (cifar_resnet20, width 16, 10 classes, input 1x28x28), digest 0123456789ab\n"
            "  data     idx fashion-mnist, all training images, 1000 test images, training images through "
            "horizontal_flip (p: 0.5)\n"
            "  training seed 7, 2 students with 1 thread, batch 100, device cpu, features as f32, prefetch 64.0 MiB, "
            "deterministic\n"
            "\n"
            "#  STAGE  STEPS  TRAINS  LOSS               WEIGHT  STUDENT TAP  TEACHER TAP  TEACHER     LEARNING RATE\n"
            "1  mimic    300  layer1  l2 conv1x1 16->32       1  layer1       layer1       needed      sgd 0.1 cosine, "
            "warm-up 5%\n"
            "2  whole   1050  **      cross_entropy         0.1  (output)     -            needed      sgd 0.1 cosine, "
            "warm-up 5%\n"
            "                         kd                    0.9  (output)     (output)\n"
            "3  head     200  fc      cross_entropy           1  (output)     -            not needed  sgd 0.1 cosine, "
            "warm-up 5%\n"
            "\n"
            "3 stages, 1550 steps, 155k images\n");
}

TEST(PlanViewTest, StepScheduleNamesItsMilestones) {
  v1::JobPlan plan = SamplePlan();
  v1::SchedulePlan* schedule = plan.mutable_stages(0)->mutable_schedule();
  schedule->set_type("step");
  schedule->set_warmup(0);
  schedule->set_gamma(0.1);
  schedule->add_milestones(0.5);
  schedule->add_milestones(0.75);
  EXPECT_THAT(RenderPlan(plan, kPlain), HasSubstr("sgd 0.1 step x0.1 at 50%, 75%\n"));
}

TEST(PlanViewTest, SaysWhichStagesDrawFromImagesWithoutLabelsAndWhereWeightsComeFrom) {
  v1::JobPlan plan = SamplePlan();
  plan.mutable_data()->set_unlabelled("more");
  plan.mutable_stages(0)->set_unlabelled_ok(true);
  EXPECT_THAT(RenderPlan(plan, kPlain), HasSubstr("horizontal_flip (p: 0.5), without labels more for mimic\n"));
  plan.mutable_student()->set_weights("t.safetensors");
  EXPECT_THAT(RenderPlan(plan, kPlain), HasSubstr("input 1x28x28, from t.safetensors\n"));
  plan.mutable_student()->add_weights_modules("fc");
  plan.mutable_student()->set_weights_of_teacher(true);
  EXPECT_THAT(RenderPlan(plan, kPlain), HasSubstr("input 1x28x28, fc from t.safetensors (the teacher's file)\n"));
}

TEST(JobViewTest, ListGolden) {
  v1::ListJobsResponse jobs;
  *jobs.add_jobs() = SucceededJob();
  *jobs.add_jobs() = RunningJob();
  *jobs.add_jobs() = QueuedJob();
  EXPECT_EQ(
      RenderJobList(jobs, kSubmitted + 100, kPlain, absl::UTCTimeZone()),
      "JOB  NAME     STATE      STAGE      DONE         SCORE  SUBMITTED             TIME  REASON\n"
      "j-1  fashion  succeeded  3/3        100%  top-1 91.52%  2099-01-01 00:00:00  3m10s\n"
      "j-1  fashion  running    2/3 whole   46%  top-1 88.12%  2099-01-01 00:00:00  1m30s\n"
      "j-1  fashion  queued     1/3 mimic    0%             -  2099-01-01 00:00:00      -  waiting for 2 students; 1 "
      "is idle\n");
  jobs.mutable_jobs(2)->set_reason(std::string(200, 'x'));
  EXPECT_THAT(RenderJobList(jobs, kSubmitted + 100, kPlain, absl::UTCTimeZone()),
              HasSubstr("  " + std::string(59, 'x') + "…\n"));
  EXPECT_THAT(RenderJobList(v1::ListJobsResponse(), 0, kPlain), HasSubstr("no jobs"));
}

TEST(JobViewTest, DescribeGolden) {
  const std::string text = RenderJob(RunningJob(), kSubmitted + 105, kPlain, absl::UTCTimeZone());
  EXPECT_EQ(text.substr(0, text.find("Plan of")),
            "Job        j-1 (fashion)\n"
            "State      running\n"
            "Submitted  2099-01-01 00:00:00\n"
            "Started    2099-01-01 00:00:10\n"
            "Time       1m35s\n"
            "Members    student-0, student-1\n"
            "Generation 1, 0 restarts\n"
            "Progress   stage 2/3 whole, step 420/1050, 46% of all steps, training\n"
            "Loss       0.5432, cross_entropy 0.31, kd 1.2, learning rate 0.05\n"
            "Speed      2100 images/s, stage ends in about 25s, job in about 35s\n"
            "Step time  forward 12.5 ms\n"
            "Test set   student top-1 88.12%; teacher top-1 93.75%\n"
            "\n"
            "Stages done\n"
            "  #  STAGE    LOSS  SCORE  TIME  COMMITTED            CHECKPOINT\n"
            "  1  mimic  0.1234      -   32s  2099-01-01 00:00:42  /work/j-1/stage-0\n"
            "\n");
  v1::Job stalled = RunningJob();
  stalled.set_wait(v1::JOB_WAIT_TEACHER);
  stalled.set_file_name("job.yaml");
  EXPECT_THAT(RenderJob(stalled, kSubmitted + 105, kPlain, absl::UTCTimeZone()),
              AllOf(HasSubstr("File       job.yaml\n"), Not(HasSubstr("images/s")),
                    HasSubstr("Speed      none now, the newest report is 5.0s old\n")));
  stalled.add_overrides("seed=3");
  stalled.add_overrides("students=1");
  EXPECT_THAT(RenderJob(stalled, kSubmitted + 105, kPlain, absl::UTCTimeZone()),
              HasSubstr("File       job.yaml with seed=3, students=1\n"));
  const std::string done = RenderJob(SucceededJob(), kSubmitted + 999, kPlain, absl::UTCTimeZone());
  EXPECT_THAT(done, HasSubstr("Parameters student 77.4k, teacher 272k (1.07 MiB)\n"));
  EXPECT_THAT(done, HasSubstr("Weights    /work/j-1/student.safetensors (312 KiB)\n"));
  EXPECT_THAT(done, HasSubstr("Program    /work/j-1/student.pt (416 KiB)\n"));
}

TEST(JobViewTest, EventsAreOneLineWhateverTheyHold) {
  v1::JobEvent event;
  event.set_time(kSubmitted);
  event.set_level(v1::EVENT_LEVEL_WARNING);
  event.set_source("t0");
  event.set_text("gone\n2099-01-01 00:00:00  INFO  forged");
  EXPECT_EQ(RenderEvent(event, kPlain, absl::UTCTimeZone()),
            "2099-01-01 00:00:00  WARNING  t0            gone\\n2099-01-01 00:00:00  INFO  forged\n");
}

TEST(FleetViewTest, Golden) {
  v1::GetFleetResponse fleet;
  fleet.set_coordinator_epoch(3);
  fleet.set_coordinator_version("0.1.0 (cpu)");
  v1::WorkerInfo* teacher = fleet.add_workers();
  teacher->set_id("teacher-0");
  teacher->set_kind("teacher");
  teacher->set_address("127.0.0.1:7101");
  teacher->set_state("serving");
  teacher->set_heartbeat_age(0.42);
  teacher->set_device("cpu");
  teacher->set_version("0.1.0");
  teacher->add_jobs("j-1");
  v1::ServedModel* model = teacher->add_models();
  model->set_name("fashion-teacher");
  model->set_digest("0123456789abcdef");
  *model->mutable_spec() = SamplePlan().teachers(0).spec();
  model->set_parameters(272474);
  model->set_bytes(1'122'304);
  v1::WorkerInfo* student = fleet.add_workers();
  student->set_id("s0");
  student->set_kind("student");
  student->set_address("127.0.0.1");
  student->set_state("lost");
  student->set_heartbeat_age(75);
  student->set_device("cpu");
  student->set_version("0.1.0");
  EXPECT_EQ(
      RenderFleet(fleet, kPlain),
      "WORKER     KIND     STATE    DEVICE  ADDRESS         HEARTBEAT  JOBS  VERSION\n"
      "teacher-0  teacher  serving  cpu     127.0.0.1:7101   0.4s ago  j-1   0.1.0\n"
      "s0         student  lost     cpu     127.0.0.1       1m15s ago  -     0.1.0\n"
      "\n"
      "MODEL            TEACHER    NETWORK                                              PARAMETERS      SIZE  DIGEST\n"
      "fashion-teacher  teacher-0  cifar_resnet20, width 16, 10 classes, input 1x28x28        272k  1.07 MiB  "
      "0123456789ab\n"
      "\n"
      "coordinator 0.1.0 (cpu), start number 3\n");
  EXPECT_THAT(RenderFleet(v1::GetFleetResponse(), kPlain), HasSubstr("no workers"));
  // The parameters of an archive are not counted, and what a teacher serves that goes or is gone is not offered.
  model->set_parameters(0);
  EXPECT_THAT(RenderFleet(fleet, kPlain), HasSubstr("input 1x28x28           -  1.07 MiB"));
  for (const char* state : {"draining", "stopped", "lost"}) {
    teacher->set_state(state);
    EXPECT_THAT(RenderFleet(fleet, kPlain), AllOf(HasSubstr("teacher-0"), Not(HasSubstr("fashion-teacher")))) << state;
  }
}

TEST(FleetViewTest, TapsGolden) {
  v1::ListTapsResponse taps;
  *taps.mutable_spec() = SamplePlan().student();
  v1::TapInfo* tap = taps.add_taps();
  tap->set_path("layer1");
  tap->set_type("Sequential");
  for (const uint32_t extent : {16, 28, 28}) tap->add_shape(extent);
  tap->set_stage_end(true);
  tap = taps.add_taps();
  tap->set_type("Linear");
  tap->add_shape(10);
  EXPECT_EQ(RenderTaps(taps, kPlain),
            "cifar_resnet8, width 16, 10 classes, input 1x28x28\n"
            "\n"
            "TAP       TYPE           SHAPE  VALUES\n"
            "layer1    Sequential  16x28x28   12.5k  end of stage\n"
            "(output)  Linear            10      10\n");
}

TEST(ModelViewTest, Golden) {
  const Architecture network = *Architecture::Create(
      {.arch = "cifar_resnet8", .num_classes = 10, .in_channels = 1, .image_height = 28, .image_width = 28});
  EXPECT_EQ(RenderModel(network, kPlain),
            "cifar_resnet8, width 16, 10 classes, input 1x28x28\n"
            "\n"
            "parameters     77.8k (304 KiB in float32)\n"
            "multiply-adds  9.35M an image\n"
            "\n"
            "UP TO        SHAPE  PARAMETERS  MULTIPLY-ADDS\n"
            "layer1    16x28x28       4.85k          3.73M\n"
            "layer2    32x14x14       19.4k          6.54M\n"
            "layer3      64x7x7       77.1k          9.35M\n"
            "(output)        10       77.8k          9.35M\n");
  const auto model = nlohmann::json::parse(ModelJson(network));
  EXPECT_EQ(model["parameters"], network.ParameterCount());
  EXPECT_EQ(model["image"], (std::vector<int>{28, 28}));
  EXPECT_EQ(model["stages"].size(), 3u);
  EXPECT_EQ(model["stages"][0]["tap"], "layer1");
  EXPECT_EQ(model["stages"][0]["shape"], (std::vector<int>{16, 28, 28}));
  // 9 weights for each of 16 channels and 32 of the batch norm, then a block of two 3x3 convolutions and batch norms.
  EXPECT_EQ(model["stages"][0]["parameters"], 9 * 16 + 32 + 2 * (9 * 16 * 16 + 32));
  EXPECT_EQ(model["stages"][0]["multiply_adds"], (9 * 16 + 2 * 9 * 16 * 16) * 28 * 28);
}

TEST(ResultsViewTest, TeachersOnceThenEveryJobThenFiles) {
  v1::Job alone = SucceededJob();
  alone.set_id("j-0");
  alone.set_name("alone");
  alone.mutable_plan()->clear_teachers();
  SetScore({{"top1", 0.9053}}, alone.mutable_artifacts()->mutable_student_score());
  alone.mutable_artifacts()->clear_torchscript();
  v1::Job again = SucceededJob();
  again.set_id("j-2");
  EXPECT_EQ(
      RenderResults({alone, SucceededJob(), again, QueuedJob()}, kPlain),
      "MODEL                    NETWORK                  STATE             SCORE  PARAMETERS      SIZE  WALL TIME\n"
      "teacher fashion-teacher  cifar_resnet20 width 16             top-1 93.75%        272k  1.07 MiB          -\n"
      "alone (j-0)              cifar_resnet8 width 16   succeeded  top-1 90.53%       77.4k   312 KiB      3m10s\n"
      "fashion (j-1)            cifar_resnet8 width 16   succeeded  top-1 91.52%       77.4k   312 KiB      3m10s\n"
      "fashion (j-2)            cifar_resnet8 width 16   succeeded  top-1 91.52%       77.4k   312 KiB      3m10s\n"
      "fashion (j-1)            cifar_resnet8 width 16   queued                -           -         -          -\n"
      "\n"
      "Files of alone (j-0)\n"
      "  weights  /work/j-1/student.safetensors (312 KiB)\n"
      "\n"
      "Files of fashion (j-1)\n"
      "  weights  /work/j-1/student.safetensors (312 KiB)\n"
      "  program  /work/j-1/student.pt (416 KiB)\n"
      "\n"
      "Files of fashion (j-2)\n"
      "  weights  /work/j-1/student.safetensors (312 KiB)\n"
      "  program  /work/j-1/student.pt (416 KiB)\n");
}

TEST(ResultsViewTest, StepsThatWereSkippedAreTold) {
  v1::Job job = SucceededJob();
  EXPECT_THAT(RenderResults({job}, kPlain), ::testing::Not(HasSubstr("skipped")));
  job.mutable_stages_done(0)->set_skipped_steps(3);
  job.mutable_progress()->set_stage(0);
  job.mutable_progress()->set_skipped_steps(3);  // the same three
  EXPECT_THAT(RenderResults({job}, kPlain),
              HasSubstr("\nfashion (j-1): 3 steps were skipped, because a teacher's map held NaN or infinity; "
                        "distillctl logs j-1 names the tap\n"));
  job.mutable_progress()->set_stage(static_cast<uint32_t>(job.stages_done_size()));
  EXPECT_EQ(nlohmann::json::parse(ResultsJson({job}))["results"][0]["skipped_steps"], 6);
}

TEST(ResultsViewTest, JsonHasNumbersAndNulls) {
  const auto json = nlohmann::json::parse(ResultsJson({SucceededJob(), QueuedJob()}));
  ASSERT_EQ(json["results"].size(), 2u);
  const auto& done = json["results"][0];
  EXPECT_EQ(done["job"], "j-1");
  EXPECT_EQ(done["state"], "JOB_STATE_SUCCEEDED");
  EXPECT_DOUBLE_EQ(done["student_score"]["top1"], 0.9152);
  EXPECT_DOUBLE_EQ(done["teacher_score"]["top1"], 0.9375);
  EXPECT_EQ(done["student_parameters"], 77360);
  EXPECT_EQ(done["student_bytes"], 319488);
  EXPECT_DOUBLE_EQ(done["wall_seconds"], 190);
  EXPECT_EQ(done["torchscript"], "/work/j-1/student.pt");
  const auto& queued = json["results"][1];
  for (const char* key : {"student_score", "teacher_score", "student_parameters", "wall_seconds", "safetensors"}) {
    EXPECT_TRUE(queued[key].is_null()) << key;
  }
}

v1::GetHistoryResponse SampleHistory() {
  v1::GetHistoryResponse history;
  for (int i = 0; i < 3; ++i) {
    v1::Progress* point = history.add_points();
    *point = RunningJob().progress();
    point->set_step(100 * (i + 1));
    point->set_total_step(300 + 100 * (i + 1));
    point->clear_score();
    if (i == 2) SetScore({{"top1", 0.5}}, point->mutable_score());
  }
  history.mutable_points(0)->clear_terms();
  history.mutable_points(0)->set_stage(9);
  history.mutable_points(1)->set_phase("a,\"b\"");
  return history;
}

TEST(HistoryViewTest, TableGolden) {
  EXPECT_EQ(RenderHistory(RunningJob(), SampleHistory(), 0, kPlain),
            "STAGE     STEP  TOTAL    LOSS  LEARNING RATE  IMAGES/S         SCORE   TIME\n"
            "stage 10   100    400  0.5432           0.05      2100             -  1m30s\n"
            "whole      200    500  0.5432           0.05      2100             -  1m30s\n"
            "whole      300    600  0.5432           0.05      2100  top-1 50.00%  1m30s\n");
  EXPECT_THAT(RenderHistory(RunningJob(), SampleHistory(), 1, kPlain), Not(HasSubstr("stage 10")));
  EXPECT_THAT(RenderHistory(RunningJob(), v1::GetHistoryResponse(), 0, kPlain), HasSubstr("no progress points"));
}

TEST(HistoryViewTest, CsvHasAllColumnsQuotedWhereNeeded) {
  EXPECT_EQ(
      HistoryCsv(RunningJob(), SampleHistory(), 2),
      "stage,stage_name,step,total_step,loss,learning_rate,images_per_second,time,phase,student_top1,teacher_top1,"
      "term_cross_entropy,term_kd,seconds_forward\n"
      "1,whole,200,500,0.5432,0.05,2100,4070908900.000,\"a,\"\"b\"\"\",,0.9375,0.31,1.2,0.0125\n"
      "1,whole,300,600,0.5432,0.05,2100,4070908900.000,training,0.5,0.9375,0.31,1.2,0.0125\n");
  // The first point has no terms: its cells are empty.
  EXPECT_THAT(HistoryCsv(RunningJob(), SampleHistory(), 0),
              HasSubstr("9,stage 10,100,400,0.5432,0.05,2100,4070908900.000,training,,0.9375,,,0.0125\n"));
}

// ---- Several metrics: the first is the headline ---------------------------------------------------------------------

v1::Job SegmentationJob() {
  v1::Job job = SucceededJob();
  SetScore({{"mean_iou", 0.6103}, {"pixel_accuracy", 0.9152}}, job.mutable_artifacts()->mutable_student_score());
  SetScore({{"mean_iou", 0.7}, {"pixel_accuracy", 0.9375}}, job.mutable_artifacts()->mutable_teacher_score());
  SetScore({{"mean_iou", 0.5}, {"pixel_accuracy", 0.8}}, job.mutable_stages_done(0)->mutable_score());
  return job;
}

TEST(MetricsViewTest, JobListResultsAndOutcome) {
  const v1::Job job = SegmentationJob();
  const std::string text = RenderJob(job, kSubmitted + 300, kPlain, absl::UTCTimeZone());
  EXPECT_THAT(text, HasSubstr("Test set   student mIoU 61.03%, pixel accuracy 91.52%; teacher mIoU 70.00%, pixel "
                              "accuracy 93.75%\n"));
  EXPECT_THAT(text, HasSubstr("mIoU 50.00%, pixel accuracy 80.00%"));
  const std::string results = RenderResults({job}, kPlain);
  EXPECT_THAT(results, AllOf(HasSubstr("  mIoU 61.03%  "), HasSubstr("  mIoU 70.00%  ")));
  EXPECT_THAT(RenderOutcome(job, kPlain),
              HasSubstr("mIoU 61.03%, pixel accuracy 91.52% (teacher mIoU 70.00%, pixel accuracy 93.75%)"));
  const auto json = nlohmann::json::parse(ResultsJson({job, SucceededJob()}));
  EXPECT_DOUBLE_EQ(json["results"][0]["student_score"]["mean_iou"], 0.6103);
  EXPECT_DOUBLE_EQ(json["results"][0]["teacher_score"]["pixel_accuracy"], 0.9375);
  EXPECT_FALSE(json["results"][1]["student_score"].contains("mean_iou"));
}

TEST(MetricsViewTest, ARunningJobAndItsCurve) {
  v1::Job job = RunningJob();
  SetScore({{"top1", 0.8812}, {"top5", 0.99}, {"some_new_one", 0.5}}, job.mutable_progress()->mutable_score());
  EXPECT_THAT(RenderJob(job, kSubmitted + 100, kPlain, absl::UTCTimeZone()),
              HasSubstr("student top-1 88.12%, top-5 99.00%, some new one 50.00%; teacher top-1 93.75%"));
  v1::GetHistoryResponse history;
  *history.add_points() = job.progress();
  EXPECT_THAT(RenderHistory(job, history, 0, kPlain), HasSubstr("  top-1 88.12%  "));
  EXPECT_THAT(HistoryCsv(job, history, 0), AllOf(HasSubstr(",student_top1,student_top5,student_some_new_one,teacher_"),
                                                 HasSubstr(",0.8812,0.99,0.5,0.9375,")));
}

}  // namespace
}  // namespace distill::cli
