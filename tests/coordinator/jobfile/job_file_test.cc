#include "coordinator/jobfile/job_file.h"

#include <algorithm>

#include "common/plan/loss_schema.h"
#include "coordinator/jobfile/job_keys.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

TEST(JobFileTest, ExpandsWrittenStages) {
  const StatusOr<ExpandedJob> job = Expand(kExplicitJob);
  ASSERT_TRUE(job.ok()) << job.status();
  const JobPlan& plan = job->plan;
  EXPECT_THAT(job->warnings, IsEmpty());
  EXPECT_EQ(plan.name, "mimic-job");
  EXPECT_EQ(plan.seed, 7u);
  EXPECT_EQ(plan.student.image_height, 28u);
  EXPECT_THAT(plan.student.mean, ElementsAre(0.286f));
  EXPECT_EQ(plan.preset, "");
  ASSERT_EQ(plan.teachers.size(), 1u);
  EXPECT_EQ(plan.teachers[0].digest, "d1d1d1d1d1d1d1d1");
  EXPECT_TRUE(plan.evaluate_teacher);
  ASSERT_EQ(plan.stages.size(), 2u);

  const StagePlan& mimic = plan.stages[0];
  EXPECT_THAT(mimic.trainable, ElementsAre("conv1", "bn1", "layer1"));
  EXPECT_EQ(mimic.student_until, "layer1");
  EXPECT_EQ(mimic.steps, 117u);  // a quarter of 60000 / 128 = 468 whole batches
  EXPECT_TRUE(mimic.needs_teacher);
  EXPECT_FALSE(mimic.uses_labels);
  EXPECT_EQ(mimic.optimizer.lr, 0.05);
  ASSERT_EQ(mimic.losses.size(), 1u);
  EXPECT_EQ(mimic.losses[0].name, "l2-layer1");
  EXPECT_EQ(mimic.losses[0].adapter, "conv1x1");  // 8 against 16 channels
  EXPECT_EQ(mimic.losses[0].student_channels, 8u);
  EXPECT_EQ(mimic.losses[0].teacher_channels, 16u);
  EXPECT_EQ(TextKnob(mimic.losses[0].knobs, "reduction"), "mean");

  const StagePlan& full = plan.stages[1];
  EXPECT_EQ(full.student_until, "");
  EXPECT_TRUE(full.uses_labels);
  EXPECT_EQ(full.steps, 100u);
  EXPECT_THAT(full.trainable, ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3", "fc"));
  EXPECT_THAT(full.trainable_globs, ElementsAre("**"));
  EXPECT_EQ(full.losses[1].name, "kd");
  EXPECT_EQ(NumberKnob(full.losses[1].knobs, "temperature"), 4);
  EXPECT_EQ(NumberKnob(full.losses[2].knobs, "temperature"), 1);
}

TEST(JobFileTest, RecipesReachTheStagesWithTheirGlobsExpanded) {
  const StatusOr<ExpandedJob> job = Expand(With(
      With(kExplicitJob, "optimizer: {lr: 0.05}",
           "accumulate: 4\nautocast: bf16\nsync_batch_norm: true\n"
           "optimizer: {type: lamb, lr: 0.05, betas: [0.8, 0.99], decay_norms_and_biases: false, ema_decay: 0.99,\n"
           "  lr_mult: [{modules: ['layer*'], factor: 2}, {modules: [fc, layer3.0.conv1], factor: 0.5}]}\n"
           "schedule: {type: poly, power: 2, min_factor: 0.01}"),
      "steps: 100",
      "steps: 100\n    optimizer: {type: adamw, lr_mult: []}\n"
      "    schedule: {type: one_cycle, pct_start: 0.2, div_factor: 10, final_div_factor: 100}"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.accumulate, 4u);
  EXPECT_EQ(job->plan.autocast, "bf16");
  EXPECT_TRUE(job->plan.sync_batch_norm);
  const OptimizerPlan& mimic = job->plan.stages[0].optimizer;
  EXPECT_EQ(mimic.type, "lamb");
  EXPECT_EQ(mimic.eps, 1e-6);
  EXPECT_EQ(mimic.beta1, 0.8);
  EXPECT_EQ(mimic.beta2, 0.99);
  EXPECT_FALSE(mimic.decay_norms_and_biases);
  EXPECT_EQ(mimic.ema_decay, 0.99);
  const std::vector<LrMultPlan> expected = {{{"layer1", "layer2", "layer3"}, 2}, {{"layer3.0.conv1", "fc"}, 0.5}};
  EXPECT_EQ(mimic.lr_mult, expected);
  EXPECT_EQ(job->plan.stages[0].schedule.power, 2);
  EXPECT_EQ(job->plan.stages[0].schedule.min_factor, 0.01);
  const OptimizerPlan& full = job->plan.stages[1].optimizer;
  EXPECT_EQ(full.type, "adamw");
  EXPECT_EQ(full.eps, 1e-8);  // the type's own
  EXPECT_EQ(full.beta1, 0.8);
  EXPECT_THAT(full.lr_mult, IsEmpty());
  const SchedulePlan& schedule = job->plan.stages[1].schedule;
  EXPECT_EQ(schedule.type, "one_cycle");
  EXPECT_EQ(schedule.warmup, 0);
  EXPECT_EQ(schedule.pct_start, 0.2);
  EXPECT_EQ(schedule.div_factor, 10);
  EXPECT_EQ(schedule.final_div_factor, 100);
}

TEST(JobFileTest, AMetricToSelectByIsOneOfTheTasks) {
  const auto with = [](const std::string& metric) {
    return With(With(kExplicitJob, "train_size: 60000", "train_size: 60000, holdout: 640"), "steps: 100",
                "steps: 100\n    select: best\n    select_by: " + metric);
  };
  const StatusOr<ExpandedJob> job = Expand(with("top5"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[0].select_by, "objective");
  EXPECT_EQ(job->plan.stages[1].select_by, "top5");
  EXPECT_THAT(Refusal(with("top_1")), HasSubstr("did you mean 'top1'?"));
  EXPECT_THAT(Refusal(with("mean_iou")),
              HasSubstr("'mean_iou' is for pixels, and the student answers for images: take top1 or objective"));
  EXPECT_THAT(Refusal(With(with("top5"), "num_classes: 10", "num_classes: 5")),
              HasSubstr("select_by: top5 needs more than five classes; take top1"));
}

TEST(JobFileTest, WhatAllStagesTakeFromOnePlaceIsWrongOnce) {
  const std::string refusal =
      Refusal(With(kExplicitJob, "optimizer: {lr: 0.05}", "optimizer: {lr_mult: [{modules: [layr1], factor: 2}]}"));
  EXPECT_THAT(refusal, HasSubstr("did you mean 'layer1'"));
  EXPECT_THAT(refusal, Not(HasSubstr("\n")));
}

TEST(JobFileTest, OverridesActBeforeValidation) {
  EXPECT_EQ(Expand(kExplicitJob, Fleet(), {"stages.1.steps=3", "seed=9"})->plan.stages[1].steps, 3u);
  EXPECT_EQ(Expand(kExplicitJob, Fleet(), {"seed=9"})->plan.seed, 9u);
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), {"seed=x"}),
              StartsWith("override 'seed=x': seed: expected a whole number"));
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), {"nam=x"}),
              AllOf(StartsWith("override 'nam=x': unknown key 'nam'"), HasSubstr("did you mean 'name'?")));
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), std::vector<std::string>(101, "seed=1")), HasSubstr("at most 100"));
}

struct BadCase {
  const char* name;
  const char* from;     // in kExplicitJob ...
  const char* to;       // ... becomes this
  const char* place;    // start of the message
  const char* message;  // part of it
};
void PrintTo(const BadCase& bad, std::ostream* out) { *out << bad.name; }
class BadJobFileTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadJobFileTest, IsRefusedWithPlaceAndRemedy) {
  const BadCase& bad = GetParam();
  const StatusOr<ExpandedJob> job = Expand(With(kExplicitJob, bad.from, bad.to));
  ASSERT_FALSE(job.ok());
  EXPECT_EQ(job.status().code(), StatusCode::kInvalidArgument);
  const std::string message(job.status().message());
  EXPECT_THAT(message, AllOf(HasSubstr(bad.place), HasSubstr(bad.message)));
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 0) << "one mistake, one message:\n" << message;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadJobFileTest,
    testing::Values(
        BadCase{"UnknownKey", "seed: 7", "sede: 7", "job.yaml:2:1: ", "unknown key 'sede'; did you mean 'seed'?"},
        BadCase{"UnknownKeyInLoss", "weight: 0.1", "wieght: 0.1",
                "job.yaml:18:31: ", "unknown key 'wieght' in stages[1].losses[0]; did you mean 'weight'?"},
        BadCase{"KnobOfAnotherLoss", "type: l2,", "type: l2, temperature: 2,",
                "job.yaml:14:", "unknown key 'temperature' in stages[0].losses[0]"},
        BadCase{"WrongType", "seed: 7", "seed: seven", "job.yaml:2:7: ", "seed: expected a whole number, got 'seven'"},
        BadCase{"QuotedNumber", "seed: 7", "seed: '7'", "job.yaml:2:7: ", "in quotes"},
        BadCase{"Fraction", "students: 2", "students: 2.5", "job.yaml:3:11: ", "expected a whole number"},
        BadCase{"Negative", "students: 2", "students: -2", "job.yaml:3:11: ", "-2 is out of range"},
        BadCase{"ListForNumber", "seed: 7", "seed: [7]", "job.yaml:2:7: ", "got a list"},
        BadCase{"NotANumber", "lr: 0.05", "lr: .nan", "job.yaml:8:17: ", "optimizer.lr: expected a number"},
        BadCase{"HexRate", "lr: 0.05", "lr: 0x1", "job.yaml:8:17: ", "optimizer.lr: expected a number, got '0x1'"},
        BadCase{"InfiniteRate", "lr: 0.05", "lr: inf", "job.yaml:8:17: ", "optimizer.lr: expected a number, got 'inf'"},
        BadCase{"HugeRate", "lr: 0.05", "lr: 1e400", "job.yaml:8:17: ",
                "optimizer.lr: 1e400 cannot be held: magnitudes go from 2.22507e-308 to 1.79769e+308"},
        BadCase{"TinyRate", "lr: 0.05", "lr: 1e-400", "job.yaml:8:17: ", "optimizer.lr: 1e-400 cannot be held"},
        BadCase{"OctalRate", "lr: 0.05", "lr: 010", "job.yaml:8:17: ", "'010' could be read as octal; write 10"},
        BadCase{"OctalSeed", "seed: 7", "seed: 010", "job.yaml:2:7: ", "seed: '010' could be read as octal; write 10"},
        BadCase{"OctalNegative", "seed: 7", "seed: -00", "job.yaml:2:7: ", "could be read as octal; write 0"},
        BadCase{"ZeroRate", "lr: 0.05", "lr: 0", "job.yaml:8:17: ", "must be > 0"},
        BadCase{"BadName", "name: mimic-job", "name: Mimic Job", "job.yaml:1:7: ", "no job name"},
        BadCase{"MissingName", "name: mimic-job\n", "", "job.yaml:1:1: ", "missing required key 'name'"},
        BadCase{"MissingPath", "path: fashion-mnist, ", "", "job.yaml:", "missing required key 'path' in data"},
        BadCase{"ClimbingPath", "path: fashion-mnist", "path: ../etc", "job.yaml:7:14: ", "must not contain '..'"},
        BadCase{"Batch", "batch_size: 128", "batch_size: 127",
                "job.yaml:4:13: ", "not divisible by students 2; take 126"},
        BadCase{"UnknownArch", "arch: cifar_resnet8", "arch: cifar_resnet9",
                "job.yaml:5:17: ", "did you mean 'cifar_resnet8'?"},
        BadCase{"MeanCount", "mean: [0.286]", "mean: [0.286, 0.3]",
                "job.yaml:5:", "has 2 values, but the student has in_channels 1"},
        BadCase{"ZeroStd", "std: [0.353]", "std: [0]", "job.yaml:5:", "must be in (0, "},
        BadCase{"TinyImage", "image: [28, 28]", "image: [2, 2]", "job.yaml:5:10: ", "must be from 8"},
        BadCase{"OneSide", "image: [28, 28]", "image: [28]", "job.yaml:5:", "expected [height, width]"},
        BadCase{"UnknownLoss", "type: kd", "type: kdl", "job.yaml:19:16: ", "unknown loss 'kdl'; did you mean 'kd'?"},
        BadCase{"KnobRange", "temperature: 4", "temperature: 0", "job.yaml:19:46: ", "must be a number above 0"},
        BadCase{"TapOnLogits", "type: kd,", "type: kd, student: fc,", "job.yaml:19:", "takes no tap"},
        BadCase{"UnknownStudentTap", "student: layer1,", "student: layr1,",
                "job.yaml:14:29: ", "the student has no tap 'layr1'; did you mean 'layer1'?"},
        BadCase{"UnknownTeacherTap", "teacher: layer1}", "teacher: layer9}",
                "job.yaml:14:46: ", "the teacher has no tap 'layer9'"},
        BadCase{"MissingTap", ", teacher: layer1}", "}", "job.yaml:14:", "missing required key 'teacher'"},
        BadCase{"SpatialSizes", "teacher: layer1}", "teacher: layer2}",
                "job.yaml:14:29: ", "differ in height or width"},
        BadCase{"NoAdapter", "teacher: layer1}", "teacher: layer1, adapter: none}",
                "job.yaml:14:63: ", "differ in channels (8 and 16); set adapter: conv1x1"},
        BadCase{"AdapterOfALossThatTakesNone", "type: l2, student: layer1, teacher: layer1}",
                "type: at, student: layer1, teacher: layer1, adapter: conv1x1}",
                "job.yaml:14:63: ", "the loss 'at' takes no adapter"},
        BadCase{"TatGroups", "type: l2,", "type: tat, mode: hierarchical, grid_rows: 4, grid_cols: 4, groups: 3,",
                "job.yaml:14:", "groups 3 does not divide the 16 patches"},
        BadCase{"TatPatches", "type: l2,", "type: tat, mode: hierarchical, grid_rows: 32,",
                "job.yaml:14:", "into patches without a position"},
        BadCase{"Collapse", "type: l2,", "type: channel_transform, side: both,", "job.yaml:14:", "allow_collapse"},
        BadCase{"PreReluOfALayerWithoutSum", "student: layer1,", "student: bn1, tap_position: pre_relu,",
                "job.yaml:14:29: ", "'bn1' has no sum before a ReLU"},
        BadCase{"WeightSchedule", "type: l2,", "type: l2, weight_schedule: {start: 0.5, stop: 0.5},",
                "job.yaml:14:", "start must be below stop"},
        BadCase{"WholeKnob", "type: l2,", "type: tat, groups: 2.5,", "job.yaml:14:", "must be a whole number"},
        BadCase{"InputAlone", "    steps: 100\n", "    steps: 100\n    teacher_input: layer1\n",
                "job.yaml:17:20: ", "belong together"},
        BadCase{"InputInsideABlock", "    steps: 100\n",
                "    steps: 100\n    teacher_input: layer1\n    student_input: layer1.0.conv1\n",
                "job.yaml:17:20: ", "lies inside a block"},
        BadCase{"InputOfAnotherWidth", "    steps: 100\n",
                "    steps: 100\n    trainable: [layer2, layer3, fc]\n    teacher_input: layer1\n    student_input: "
                "layer1\n",
                "job.yaml:18:20: ", "need student and teacher of equal width"},
        BadCase{"SelectWithoutHoldout", "    steps: 100\n", "    steps: 100\n    select: best\n",
                "job.yaml:17:13: ", "data.holdout"},
        BadCase{"HoldoutNoMultiple", "train_size: 60000", "train_size: 60000, holdout: 100",
                "job.yaml:7:", "no multiple of a rank's batch of 64; take 64"},
        BadCase{"WeightsModulesAlone", "width: 8,", "width: 8, weights_modules: [fc],",
                "job.yaml:5:", "which is missing"},
        BadCase{"WeightsModulesMatchNothing", "width: 8,", "width: 8, weights: w.safetensors, weights_modules: [fx],",
                "job.yaml:5:", "'fx' matches no module"},
        BadCase{"FlatTap", "student: layer3, teacher: layer3", "student: fc, teacher: layer3",
                "job.yaml:20:57: ", "a feature loss needs [C, H, W]"},
        BadCase{"GlobMatchesNothing", "[conv1, bn1, layer1]", "[conv1, bn1, layer7]",
                "job.yaml:11:29: ", "'layer7' matches no module"},
        BadCase{"NoGradient", "[conv1, bn1, layer1]", "[conv1, bn1, layer1, layer2]",
                "job.yaml:11:17: ", "'layer2.0.conv1' trains, but no loss depends on it (the deepest tap is 'layer1')"},
        BadCase{"NoLength", "    steps: 100\n", "", "job.yaml:15:5: ", "give the stage's length"},
        BadCase{"BothLengths", "steps: 100", "steps: 100\n    epochs: 1", "job.yaml:17:13: ", "either epochs or steps"},
        BadCase{"EpochsWithoutSize", ", train_size: 60000", "", "job.yaml:12:13: ", "add data.train_size"},
        BadCase{"SmallEpoch", "train_size: 60000", "train_size: 100",
                "job.yaml:12:13: ", "holds no whole batch of 128"},
        BadCase{"LimitOverSize", "train_size: 60000", "train_size: 60000, train_limit: 70000",
                "job.yaml:7:", "more than data.train_size"},
        BadCase{"TwiceTheName", "name: full", "name: mimic", "job.yaml:15:11: ", "'mimic' is used twice"},
        BadCase{"StagesAndPreset", "stages:", "preset: kd\nstages:", "job.yaml:9:9: ", "either a preset or stages"},
        BadCase{"StagesAndBudget", "stages:", "budget: {steps: 1}\nstages:", "job.yaml:9:9: ", "belongs to presets"},
        BadCase{"PresetOptionsAlone",
                "stages:", "sskd: {policy: joint}\nstages:", "job.yaml:9:7: ", "belong to the preset 'sskd'"},
        BadCase{"Schedule", "optimizer: {lr: 0.05}", "schedule: {type: step}",
                "job.yaml:8:", "'step' needs milestones"},
        BadCase{"Milestones", "optimizer: {lr: 0.05}", "schedule: {type: step, milestones: [0.5, 0.5]}",
                "job.yaml:8:", "must ascend"},
        BadCase{"MilestonesWithCosine", "optimizer: {lr: 0.05}", "schedule: {milestones: [0.5]}",
                "job.yaml:8:", "belong to type 'step'"},
        BadCase{"SelectByAlone", "steps: 100", "steps: 100\n    select_by: top1",
                "job.yaml:17:16: ", "select_by: says what select: best and patience go by"},
        BadCase{"Accumulate", "optimizer: {lr: 0.05}", "accumulate: 3", "job.yaml:8:13: ",
                "accumulate: batch_size 128 cannot be divided into 3 equal parts on each of the 2 students; take a "
                "batch_size of 126"},
        BadCase{"Autocast", "optimizer: {lr: 0.05}", "autocast: bf61", "job.yaml:8:11: ", "did you mean 'bf16'?"},
        BadCase{"SyncBatchNorm", "optimizer: {lr: 0.05}", "sync_batch_norm: 1", "job.yaml:8:18: ", "sync_batch_norm"},
        BadCase{"UnknownOptimizer", "optimizer: {lr: 0.05}", "optimizer: {type: adanw}",
                "job.yaml:8:19: ", "did you mean 'adamw'?"},
        BadCase{"Betas", "optimizer: {lr: 0.05}", "optimizer: {type: adamw, betas: [0.9]}",
                "job.yaml:8:33: ", "optimizer.betas: expected two numbers, such as [0.9, 0.999], got 1"},
        BadCase{"BetasOfSgd", "optimizer: {lr: 0.05}", "optimizer: {betas: [0.9, 0.99]}",
                "job.yaml:8:20: ", "optimizer.betas: belongs to adam, adamw and lamb, not to sgd"},
        BadCase{"NesterovAdamW", "optimizer: {lr: 0.05}", "optimizer: {type: adamw, nesterov: true}",
                "job.yaml:8:36: ", "belongs to sgd, not to adamw"},
        BadCase{"EmaOfOne", "optimizer: {lr: 0.05}", "optimizer: {ema_decay: 1}",
                "job.yaml:8:24: ", "optimizer.ema_decay: 1 is out of range; it must be in [0, 1)"},
        BadCase{"MultiplierOfNoModule", "optimizer: {lr: 0.05}",
                "optimizer: {lr_mult: [{modules: [layer9], factor: 2}]}",
                "job.yaml:8:33: ", "optimizer.lr_mult[0].modules: "},
        BadCase{"MultiplierKey", "optimizer: {lr: 0.05}",
                "optimizer: {lr_mult: [{modules: [fc], factor: 2, factr: 2}]}",
                "job.yaml:8:50: ", "unknown key 'factr' in optimizer.lr_mult[0]; did you mean 'factor'?"},
        BadCase{"MultiplierMap", "optimizer: {lr: 0.05}", "optimizer: {lr_mult: {fc: 2}}",
                "job.yaml:8:22: ", "expected a list such as [{modules: [fc], factor: 10}]"},
        BadCase{"MomentumOfAdam", "optimizer: {lr: 0.05}", "optimizer: {type: adam, momentum: 0.9}",
                "job.yaml:8:35: ", "optimizer.momentum: belongs to sgd, not to adam"},
        BadCase{"GammaOfCosine", "optimizer: {lr: 0.05}", "schedule: {gamma: 0.5}",
                "job.yaml:8:19: ", "schedule.gamma: belongs to step, not to cosine"},
        BadCase{"PowerOfCosine", "optimizer: {lr: 0.05}", "schedule: {power: 2}",
                "job.yaml:8:19: ", "schedule.power: belongs to poly, not to cosine"},
        BadCase{"WarmupOfOneCycle", "optimizer: {lr: 0.05}", "schedule: {type: one_cycle, warmup: 0.1}",
                "job.yaml:8:37: ", "one_cycle rises by itself"},
        BadCase{"UnknownSchedule", "optimizer: {lr: 0.05}", "schedule: {type: onecycle}",
                "job.yaml:8:18: ", "did you mean 'one_cycle'?"},
        BadCase{"Nesterov", "optimizer: {lr: 0.05}", "optimizer: {nesterov: true, momentum: 0}",
                "job.yaml:8:", "needs a momentum"},
        BadCase{"Prefetch", "seed: 7", "prefetch: 64MB", "job.yaml:2:11: ", "such as 64MiB"},
        BadCase{"WireDtype", "seed: 7", "wire_dtype: f8", "job.yaml:2:13: ", "one of f32, f16, bf16"},
        BadCase{"Adapter", "weight: 0.9", "weight: 0.9, adapter: conv1x1", "job.yaml:19:", "takes no adapter"}),
    [](const testing::TestParamInfo<BadCase>& info) { return info.param.name; });

TEST(JobFileTest, ReportsAllProblemsInTheOrderOfTheFile) {
  std::string yaml = With(kExplicitJob, "seed: 7", "sede: 7");
  yaml = With(yaml, "arch: cifar_resnet8", "arch: cifar_resnet8, colour: red");
  yaml = With(yaml, "temperature: 4", "temperature: hot");
  yaml = With(yaml, "teacher: layer3", "teacher: layer5");
  const std::string message = Refusal(yaml);
  const size_t a = message.find("job.yaml:2:1: unknown key 'sede'"),
               b = message.find("unknown key 'colour' in student"), c = message.find("expected a number, got 'hot'"),
               d = message.find("the teacher has no tap 'layer5'");
  EXPECT_NE(d, std::string::npos) << message;
  EXPECT_TRUE(a < b && b < c && c < d) << message;
  EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 3) << message;
}

TEST(JobFileTest, LossesOnATeacherNeedOne) {
  const std::string message = Refusal(With(kExplicitJob, "teacher: fashion\n", ""));
  EXPECT_THAT(message, AllOf(HasSubstr("the loss 'l2' needs a teacher; name one: teacher: MODEL"),
                             HasSubstr("the loss 'kd'"), HasSubstr("the loss 'cwd'")));
  EXPECT_THAT(Refusal(With(kPresetJob, "teacher: fashion\n", "")), HasSubstr("'sskd' needs a teacher"));
}

TEST(JobFileTest, StagesMayNotBeEmpty) {
  const std::string text = kExplicitJob;
  EXPECT_THAT(Refusal(text.substr(0, text.find("stages:")) + "stages: []\n"),
              HasSubstr("expected 1 to 256 stages, got 0"));
  EXPECT_THAT(Refusal(text.substr(0, text.find("stages:"))), HasSubstr("missing 'preset'"));
}

TEST(JobFileTest, NothingButAMapOfKeysIsAJob) {
  for (const char* text : {"", "# empty\n", "null", "just text", "[1, 2]", "42"}) {
    EXPECT_THAT(Refusal(text), StartsWith("job.yaml:1:")) << text;
  }
}

TEST(JobFileTest, EveryPrefixOfAJobFileIsAnsweredWithoutHarm) {
  const std::string text = kExplicitJob;
  for (size_t n = 0; n < text.size(); n += 3) {
    const StatusOr<ExpandedJob> job = Expand(text.substr(0, n));
    if (!job.ok()) {
      EXPECT_EQ(job.status().code(), StatusCode::kInvalidArgument) << n;
    }
  }
}

// A key in the table that nobody reads would be accepted and ignored.
TEST(JobFileTest, EveryAcceptedKeyIsRead) {
  for (const JobSection& section : JobSections()) {
    for (const std::string_view key : section.keys) {
      std::string path(section.name);
      for (const auto& [from, to] : {std::pair<std::string, std::string>{"stages[].losses[]", "stages.0.losses.0"},
                                     {"stages[]", "stages.0"},
                                     {"data.pairs[]", "data.pairs.train"}}) {
        if (path == from) path = to;
      }
      path += path.empty() ? "" : ".";
      path += key;
      // Neither a map with an unknown key nor a list of maps is a value of any key.
      const bool is_list = key == "stages" || key == "losses";
      const std::string base =
          path.starts_with("stages")
              ? kExplicitJob
              : With(kPresetJob, "preset: sskd",
                     "preset: " + std::string(section.name == "kd" || section.name == "cwd" ? section.name : "sskd"));
      const std::string message = Refusal(base, Fleet(), {path + (is_list ? "={zz: 1}" : "=[{zz: 1}]")});
      EXPECT_THAT(message, HasSubstr("override '" + path))
          << "key " << path << " is accepted whatever it holds: " << message;
    }
  }
}

// "--set KEY=null" makes a key absent, so that a baseline is one override away from its distillation job.
TEST(JobFileTest, AnOverrideOfNullTakesAKeyAway) {
  const std::string scratch = With(kPresetJob, "preset: sskd", "preset: scratch");
  for (const char* text : {"teacher=null", "teacher=", "teacher=~"}) {
    const StatusOr<ExpandedJob> job = Expand(scratch, FleetView{}, {text});
    ASSERT_TRUE(job.ok()) << text << ": " << job.status();
    EXPECT_THAT(job->plan.teachers, IsEmpty()) << text;
    EXPECT_THAT(job->warnings, IsEmpty()) << text;
  }
  const StatusOr<ExpandedJob> defaults =
      Expand(kExplicitJob, Fleet(), {"seed=null", "optimizer=null", "student.mean=null", "stages.1.losses.1.weight="});
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(defaults->plan.seed, 0u);
  EXPECT_EQ(defaults->plan.stages[1].optimizer.lr, 0.1);
  EXPECT_THAT(defaults->plan.student.mean, IsEmpty());
  EXPECT_EQ(defaults->plan.stages[1].losses[1].weight, 1);
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), {"teachr=null"}), HasSubstr("unknown key 'teachr'"));
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), {"name=null"}), HasSubstr("missing required key 'name'"));
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(), {"stages.0.losses.0.type=null"}),
              HasSubstr("missing required key 'type'"));
  // In the file itself a key without a value is more likely a slip.
  EXPECT_THAT(Refusal(With(kExplicitJob, "seed: 7", "seed:")), HasSubstr("expected a whole number, got nothing"));
}

TEST(JobFileTest, ATeacherThatNoStageReadsNeedNotBeServed) {
  const std::string labels_only =
      With(With(With(kExplicitJob, "      - {type: kd, weight: 0.9, temperature: 4}\n", ""),
                "      - {type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3}\n", ""),
           "{type: l2, student: layer1, teacher: layer1}", "{type: cross_entropy}");
  for (const std::string& text : {With(kPresetJob, "preset: sskd", "preset: scratch"),
                                  With(labels_only, "trainable: [conv1, bn1, layer1]", "trainable: ['**']")}) {
    const StatusOr<ExpandedJob> job = Expand(text, FleetView{});
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_THAT(job->plan.teachers, IsEmpty());
    EXPECT_FALSE(job->plan.evaluate_teacher);
    EXPECT_THAT(Texts(job->warnings), ElementsAre(HasSubstr("no stage reads 'fashion', so the job runs without it")));
  }
}

TEST(JobFileTest, AllProblemsAreKeptWithTheirPlaces) {
  std::string text = "name: many\n";
  for (int i = 0; i < 500; ++i) text += "unknown-" + std::to_string(i) + ": 1\n";
  const ExpandedJob job = ExpandJobFile({text, "job.yaml", {"seed=x"}}, Fleet());
  ASSERT_GE(job.problems.size(), 501u);
  EXPECT_EQ(job.problems[job.problems.size() - 2].mark.line, 501);
  EXPECT_EQ(job.problems.back().mark.override_index, 0);
  EXPECT_THAT(job.problems.back().text, StartsWith("seed: expected a whole number"));
}

TEST(JobFileTest, TeacherMustBeServed) {
  FleetView fleet = Fleet();
  fleet.models[0].name = "fashion-v2";
  StatusOr<ExpandedJob> job = Expand(kExplicitJob, fleet);
  EXPECT_EQ(job.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(job.status().message()),
              AllOf(StartsWith("job.yaml:6:10: teacher: no live teacher serves 'fashion'"),
                    HasSubstr("served now: fashion-v2"), HasSubstr("distill-teacher --model fashion=FILE")));
  job = Expand(kPresetJob, FleetView{});
  EXPECT_EQ(job.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(job.status().message()), HasSubstr("served now: nothing"));
  // A wrong file stays a wrong file, whatever the fleet.
  job = Expand(With(kExplicitJob, "seed: 7", "seed: x"), fleet);
  EXPECT_EQ(job.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(job.status().message()), AllOf(HasSubstr("seed"), HasSubstr("no live teacher")));
}

TEST(JobFileTest, TeachersMustAgreeAboutTheWeights) {
  FleetView fleet = Fleet();
  fleet.models.push_back(fleet.models[0]);
  EXPECT_TRUE(Expand(kExplicitJob, fleet).ok());
  fleet.models[1].digest = "eeee";
  const StatusOr<ExpandedJob> job = Expand(kExplicitJob, fleet);
  EXPECT_EQ(job.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(job.status().message()), AllOf(HasSubstr("d1d1d1d1d1d1"), HasSubstr("eeee")));
}

TEST(JobFileTest, TeacherAndStudentSeeTheSamePixels) {
  ModelSpec spec = TeacherSpec();
  spec.in_channels = 3;
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(spec)), HasSubstr("takes images of 3 channels, the student of 1"));
  spec = TeacherSpec();
  spec.image_height = spec.image_width = 32;
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(spec)),
              HasSubstr("takes images [32, 32] (height, width), the student [28, 28]"));
  spec = TeacherSpec();
  spec.num_classes = 100;
  EXPECT_THAT(Refusal(kExplicitJob, Fleet(spec)), HasSubstr("the student has 10 classes, the teacher 100"));
}

TEST(JobFileTest, MeasuredTapsStandInForAnArchitecture) {
  FleetView fleet = Fleet();
  fleet.models[0].spec.arch = "torchscript";
  EXPECT_THAT(Refusal(kExplicitJob, fleet), HasSubstr("describes itself wrongly"));
  fleet.models[0].taps = {
      {"layer1", "Tensor", {8, 28, 28}, true}, {"layer3", "Tensor", {32, 7, 7}, true}, {"", "Tensor", {10}, false}};
  const StatusOr<ExpandedJob> job = Expand(kExplicitJob, fleet);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[0].losses[0].adapter, "none");
  EXPECT_EQ(job->plan.teachers[0].spec.arch, "torchscript");
}

TEST(JobFileTest, WarnsOfWhatIsProbablyNotMeant) {
  const auto warnings = [](const std::string& from, const std::string& to) {
    const StatusOr<ExpandedJob> job = Expand(With(kExplicitJob, from, to));
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? Texts(job->warnings) : std::vector<std::string>{};
  };
  EXPECT_THAT(warnings("steps: 100", "steps: 0"),
              ElementsAre(AllOf(StartsWith("job.yaml:16:12: "), HasSubstr("0 steps"))));
  EXPECT_THAT(warnings("weight: 2", "weight: 0"), ElementsAre(HasSubstr("weight 0")));
  EXPECT_THAT(warnings("students: 2", "students: 1\nsync_batch_norm: true"),
              ElementsAre(HasSubstr("one student has all images of a batch anyway")));
  EXPECT_THAT(warnings("student: layer3, teacher: layer3", "student: avgpool, teacher: avgpool"),
              ElementsAre(HasSubstr("single position")));
  EXPECT_THAT(warnings("    steps: 100", "    trainable: [fc]\n    steps: 100"),
              ElementsAre(HasSubstr("'cwd-layer3' depends on no trained module")));
}

TEST(JobFileTest, ATeacherThatNobodyReadsIsLeftOut) {
  const StatusOr<ExpandedJob> job = Expand(With(kPresetJob, "preset: sskd", "preset: scratch"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->plan.teachers, IsEmpty());
  EXPECT_FALSE(job->plan.evaluate_teacher);
  EXPECT_THAT(Texts(job->warnings), ElementsAre(HasSubstr("no stage reads 'fashion'")));
}

TEST(JobFileTest, AWeightOfZeroNeedsNoTeacher) {
  const std::string yaml = With(With(kExplicitJob, "weight: 0.9", "weight: 0"), "weight: 2", "weight: 0");
  const StatusOr<ExpandedJob> job = Expand(yaml);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->plan.stages[1].needs_teacher);
  EXPECT_THAT(Refusal(With(yaml, "weight: 0.1", "weight: 0")), HasSubstr("no loss has a weight above 0"));
}

TEST(JobFileTest, ShortcutAndBodyOfABlockDoNotSeeEachOther) {
  // Trains the body, but looks only at the shortcut: those parameters would never get a gradient.
  std::string yaml = With(kExplicitJob, "[conv1, bn1, layer1]", "[layer2.0.conv1]");
  yaml = With(yaml, "student: layer1, teacher: layer1", "student: layer2.0.downsample, teacher: layer2");
  EXPECT_THAT(Refusal(yaml), HasSubstr("'layer2.0.conv1' trains, but no loss depends on it"));
  EXPECT_TRUE(Expand(With(yaml, "[layer2.0.conv1]", "[layer1, layer2.0.downsample]")).ok());
}

TEST(JobFileTest, LossesOfOneKindGetDifferentNames) {
  const std::string two = "- {type: kd, weight: 0.9, temperature: 4}\n      - {type: kd, weight: 0.1, temperature: 1}";
  const StatusOr<ExpandedJob> job = Expand(With(kExplicitJob, "- {type: kd, weight: 0.9, temperature: 4}", two));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[1].losses[1].name, "kd");
  EXPECT_EQ(job->plan.stages[1].losses[2].name, "kd-2");
  EXPECT_THAT(Refusal(With(With(kExplicitJob, "type: kd,", "type: kd, name: x,"), "type: cwd,", "type: cwd, name: x,")),
              HasSubstr("'x' is used twice in this stage"));
}

TEST(JobFileTest, DataIsIdxOrAnImageFolder) {
  const StatusOr<ExpandedJob> job =
      Expand(With(kExplicitJob, "{path: fashion-mnist", "{format: image_folder, path: photos"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.format, "image_folder");
  EXPECT_EQ(job->plan.data.path, "photos");
  EXPECT_THAT(Refusal(With(kExplicitJob, "{path: fashion-mnist", "{format: image_foldr, path: photos")),
              ::testing::HasSubstr("did you mean 'image_folder'"));
}

TEST(JobFileTest, AnchorsSaveTyping) {
  const std::string yaml = With(With(kExplicitJob, "optimizer: {lr: 0.05}", "optimizer: &o {lr: 0.05, type: adam}"),
                                "steps: 100", "steps: 100\n    optimizer: *o");
  const StatusOr<ExpandedJob> job = Expand(yaml);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[1].optimizer.type, "adam");
}

TEST(JobFileTest, LossesCarryScheduleOwnSettingsAndSizes) {
  const StatusOr<ExpandedJob> job = Expand(
      With(kExplicitJob, "type: l2,",
           "type: tat, weight_schedule: {type: cosine, warmup: 0.2, stop: 0.9}, own: {lr_mult: 2, weight_decay: 0},"));
  ASSERT_TRUE(job.ok()) << job.status();
  const LossPlan& loss = job->plan.stages[0].losses[0];
  EXPECT_EQ(loss.weight_schedule, (WeightSchedulePlan{"cosine", 0.2, 0, 0.9}));
  EXPECT_EQ(loss.own, (OwnParametersPlan{2, false, 0}));
  EXPECT_EQ(loss.adapter, "none");  // tat brings its own layers
  EXPECT_EQ(loss.student_height, 28u);
  EXPECT_EQ(loss.teacher_width, 28u);
  // 28 x 28 is 784 positions: plain attention, embeddings of one pixel.
  EXPECT_EQ(TextKnob(loss.knobs, "mode"), "plain");
  EXPECT_EQ(TextKnob(loss.knobs, "gamma"), "conv1x1_bn");
  EXPECT_EQ(TextKnob(loss.knobs, "spatial_mismatch"), "none");
}

TEST(JobFileTest, DkdOfTwoClassesIsWarnedOf) {
  ModelSpec two = TeacherSpec();
  two.num_classes = 2;
  const std::string text = With(kExplicitJob, "{type: kd, weight: 0.9, temperature: 4}", "{type: dkd}");
  StatusOr<ExpandedJob> job = Expand(With(text, "num_classes: 10", "num_classes: 2"), Fleet(two));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(Texts(job->warnings), ElementsAre(AllOf(HasSubstr("stages[1].losses[1]: dkd: of two classes"),
                                                      HasSubstr("beta 8 has no effect"))));
  job = Expand(With(text, "num_classes: 10", "num_classes: 2"), Fleet(two), {"stages.1.losses.1.beta=0"});
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->warnings, IsEmpty());
  EXPECT_THAT(Expand(text)->warnings, IsEmpty());
}

TEST(JobFileTest, DkdReadsLabelsToo) {
  const StatusOr<ExpandedJob> job =
      Expand(With(With(kExplicitJob, "type: kd, weight: 0.9, temperature: 4", "type: dkd, weight: 0.9"),
                  "      - {type: cross_entropy, weight: 0.1}\n", ""));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_TRUE(job->plan.stages[1].uses_labels);
}

TEST(JobFileTest, MapsOfDifferentSizesCompareWhenAskedTo) {
  const StatusOr<ExpandedJob> job =
      Expand(With(kExplicitJob, "teacher: layer1}", "teacher: layer2, spatial_mismatch: pool_larger}"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[0].losses[0].teacher_height, 14u);
}

TEST(JobFileTest, StagesInheritOptimizerAndSchedule) {
  const StatusOr<ExpandedJob> job = Expand(With(
      kExplicitJob, "steps: 100", "steps: 100\n    optimizer: {lr: 0.5}\n    schedule: {type: constant, warmup: 0}"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[0].optimizer.lr, 0.05);
  EXPECT_EQ(job->plan.stages[0].schedule.type, "cosine");
  EXPECT_EQ(job->plan.stages[1].optimizer.lr, 0.5);
  EXPECT_EQ(job->plan.stages[1].optimizer.momentum, 0.9);
  EXPECT_EQ(job->plan.stages[1].schedule.type, "constant");
}

}  // namespace
}  // namespace distill
