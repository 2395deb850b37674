#include "coordinator/jobfile/presets.h"

#include <algorithm>
#include <set>

#include "common/plan/loss_schema.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

JobPlan PlanOf(const std::string& preset, const std::string& options = "", const FleetView& fleet = Fleet()) {
  const StatusOr<ExpandedJob> job =
      Expand(With(kPresetJob, "preset: sskd", "preset: " + preset + (options.empty() ? "" : "\n" + options)), fleet);
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? job->plan : JobPlan{};
}

std::vector<std::string> Losses(const StagePlan& stage) {
  std::vector<std::string> names;
  for (const LossPlan& loss : stage.losses) names.push_back(loss.name);
  return names;
}

std::vector<uint64_t> Steps(const JobPlan& plan) {
  std::vector<uint64_t> steps;
  for (const StagePlan& stage : plan.stages) steps.push_back(stage.steps);
  return steps;
}

TEST(PresetsTest, ScratchIsOneStageOfCrossEntropy) {
  const JobPlan plan = PlanOf("scratch");
  ASSERT_EQ(plan.stages.size(), 1u);
  EXPECT_EQ(plan.preset, "scratch");
  EXPECT_THAT(Losses(plan.stages[0]), ElementsAre("cross_entropy"));
  EXPECT_THAT(plan.teachers, IsEmpty());
  EXPECT_EQ(plan.stages[0].steps, 402u);
}

TEST(PresetsTest, KdMixesLabelsAndSoftTargets) {
  const JobPlan plan = PlanOf("kd");
  ASSERT_EQ(plan.stages.size(), 1u);
  ASSERT_EQ(plan.stages[0].losses.size(), 2u);
  EXPECT_DOUBLE_EQ(plan.stages[0].losses[0].weight, 0.1);
  EXPECT_DOUBLE_EQ(plan.stages[0].losses[1].weight, 0.9);
  EXPECT_EQ(NumberKnob(plan.stages[0].losses[1].knobs, "temperature"), 4);
  const JobPlan pure = PlanOf("kd", "kd: {weight: 1, temperature: 2}");
  EXPECT_THAT(Losses(pure.stages[0]), ElementsAre("kd"));
  EXPECT_FALSE(pure.stages[0].uses_labels);
}

TEST(PresetsTest, CwdPairsStageEnds) {
  const JobPlan plan = PlanOf("cwd");
  ASSERT_EQ(plan.stages.size(), 1u);
  EXPECT_THAT(Losses(plan.stages[0]), ElementsAre("cross_entropy", "cwd-layer1", "cwd-layer2", "cwd-layer3"));
  EXPECT_EQ(plan.stages[0].losses[1].weight, 2);
  EXPECT_EQ(NumberKnob(plan.stages[0].losses[1].knobs, "temperature"), 1);
  const JobPlan mixed = PlanOf("cwd", "cwd: {kd_weight: 0.9}");
  EXPECT_THAT(Losses(mixed.stages[0]), ElementsAre("cross_entropy", "kd", "cwd-layer1", "cwd-layer2", "cwd-layer3"));
  EXPECT_DOUBLE_EQ(mixed.stages[0].losses[0].weight, 0.1);
}

TEST(PresetsTest, SskdTrainsStageByStageAndThenTheHead) {
  const JobPlan plan = PlanOf("sskd");
  ASSERT_EQ(plan.stages.size(), 4u);
  EXPECT_THAT(Steps(plan), ElementsAre(101u, 101u, 100u, 100u));  // 402 over 4, the remainder to the first
  EXPECT_THAT(plan.stages[0].trainable, ElementsAre("conv1", "bn1", "layer1"));
  EXPECT_THAT(plan.stages[1].trainable, ElementsAre("layer2"));
  EXPECT_THAT(plan.stages[2].trainable, ElementsAre("layer3"));
  EXPECT_THAT(plan.stages[3].trainable, ElementsAre("fc"));
  for (size_t k = 0; k < 3; ++k) {
    const StagePlan& stage = plan.stages[k];
    EXPECT_THAT(Losses(stage), ElementsAre("l2-layer" + std::to_string(k + 1)));
    EXPECT_EQ(stage.student_until, "layer" + std::to_string(k + 1));
    EXPECT_TRUE(stage.needs_teacher);
    EXPECT_FALSE(stage.uses_labels);             // shuffled labels cannot change the backbone
    EXPECT_EQ(stage.losses[0].adapter, "none");  // equal widths: the literal method
  }
  EXPECT_FALSE(plan.stages[3].needs_teacher);  // the teacher is released
  EXPECT_THAT(Losses(plan.stages[3]), ElementsAre("cross_entropy"));
}

TEST(PresetsTest, SskdPhasesPartitionTheStudent) {
  const JobPlan plan = PlanOf("sskd");
  ModelSpec spec = plan.student;
  const Architecture arch = Architecture::Create(spec).value();
  std::set<std::string> seen;
  for (const StagePlan& stage : plan.stages) {
    for (const std::string& module : stage.trainable) {
      EXPECT_TRUE(seen.insert(module).second) << module << " trains twice";
    }
  }
  for (const std::string& path : arch.ModulePaths()) {
    EXPECT_TRUE(std::any_of(seen.begin(), seen.end(), [&](const std::string& m) { return IsUnder(path, m); }))
        << path << " never trains";
  }
}

TEST(PresetsTest, SskdPolicies) {
  JobPlan plan = PlanOf("sskd", "sskd: {policy: cumulative_last}");
  EXPECT_THAT(plan.stages[2].trainable, ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3"));
  EXPECT_THAT(Losses(plan.stages[2]), ElementsAre("l2-layer3"));
  plan = PlanOf("sskd", "sskd: {policy: cumulative_sum}");
  EXPECT_THAT(Losses(plan.stages[2]), ElementsAre("l2-layer1", "l2-layer2", "l2-layer3"));
  plan = PlanOf("sskd", "sskd: {policy: joint}");
  ASSERT_EQ(plan.stages.size(), 2u);
  EXPECT_THAT(Losses(plan.stages[0]), ElementsAre("l2-layer1", "l2-layer2", "l2-layer3"));
  EXPECT_THAT(Steps(plan), ElementsAre(302u, 100u));
}

TEST(PresetsTest, SskdBlockwiseFeedsEachStageWithTheTeachersMap) {
  const JobPlan plan = PlanOf("sskd", "sskd: {policy: blockwise}");
  ASSERT_EQ(plan.stages.size(), 4u);
  EXPECT_EQ(plan.stages[0].teacher_input, "");  // the first stage sees the images
  EXPECT_EQ(plan.stages[1].teacher_input, "layer1");
  EXPECT_EQ(plan.stages[1].student_input, "layer1");
  EXPECT_EQ(plan.stages[2].teacher_input, "layer2");
  EXPECT_THAT(plan.stages[2].trainable, ElementsAre("layer3"));
  EXPECT_EQ(plan.stages[3].teacher_input, "");  // the head sees the student's own features
  EXPECT_THAT(Refusal(With(With(kPresetJob, "budget:", "sskd: {policy: blockwise}\nbudget:"), "width: 16", "width: 8")),
              HasSubstr("blockwise stages need student and teacher of equal width"));
}

TEST(PresetsTest, SskdKnobsReachTheStages) {
  const JobPlan plan = PlanOf("sskd",
                              "sskd: {feature_loss: smooth_l1, reduction: sum_over_batch, tap_position: pre_relu, "
                              "frozen_bn: train, adapter: conv3x3, phase_shares: [1, 2, 0, 1]}");
  ASSERT_EQ(plan.stages.size(), 4u);
  EXPECT_THAT(Steps(plan), ElementsAre(101u, 201u, 0u, 100u));
  for (size_t k = 0; k < 3; ++k) {
    const LossPlan& loss = plan.stages[k].losses[0];
    EXPECT_EQ(loss.type, "smooth_l1");
    EXPECT_EQ(TextKnob(loss.knobs, "reduction"), "sum_over_batch");
    EXPECT_EQ(loss.student_tap, "layer" + std::to_string(k + 1) + ".0.add");
    EXPECT_EQ(loss.teacher_tap, "layer" + std::to_string(k + 1) + ".2.add");
    EXPECT_EQ(loss.adapter, "conv3x3");
    EXPECT_EQ(plan.stages[k].frozen_bn, "train");
  }
  EXPECT_THAT(Refusal(With(kPresetJob, "budget:", "sskd: {phase_shares: [1, 2]}\nbudget:")),
              HasSubstr("sskd.phase_shares: has 2 values, needs 4"));
}

TEST(PresetsTest, SskdWithoutRestartHasOneScheduleOverTheBudget) {
  const JobPlan plan = PlanOf("sskd", "sskd: {restart_lr: false}");
  EXPECT_DOUBLE_EQ(plan.stages[0].schedule.begin, 0);
  for (size_t k = 0; k + 1 < plan.stages.size(); ++k) {
    EXPECT_DOUBLE_EQ(plan.stages[k].schedule.end, plan.stages[k + 1].schedule.begin);
  }
  EXPECT_DOUBLE_EQ(plan.stages.back().schedule.end, 1);
  EXPECT_DOUBLE_EQ(PlanOf("sskd").stages[2].schedule.begin, 0);
}

TEST(PresetsTest, FinetuneComesOnTopAndUnderItsOwnName) {
  const JobPlan plan = PlanOf("sskd", "sskd: {finetune: {epochs: 1}}");
  ASSERT_EQ(plan.stages.size(), 5u);
  EXPECT_EQ(plan.stages[4].name, "finetune");
  EXPECT_EQ(plan.stages[4].steps, 468u);
  EXPECT_DOUBLE_EQ(plan.stages[4].optimizer.lr, 0.01);
  EXPECT_THAT(Losses(plan.stages[4]), ElementsAre("cross_entropy"));
  EXPECT_THAT(Steps(plan), ElementsAre(101u, 101u, 100u, 100u, 468u));
}

TEST(PresetsTest, EpochsAreTheTotal) {
  const StatusOr<ExpandedJob> job = Expand(With(kPresetJob, "steps: 402", "epochs: 3"));
  ASSERT_TRUE(job.ok());
  uint64_t total = 0;
  for (const uint64_t steps : Steps(job->plan)) total += steps;
  EXPECT_EQ(total, 3u * 468);
}

TEST(PresetsTest, APresetNeedsItsBudget) {
  EXPECT_THAT(Refusal(With(kPresetJob, "budget: {steps: 402}\n", "")), HasSubstr("a preset needs its length"));
  EXPECT_THAT(Refusal(With(kPresetJob, "{steps: 402}", "{}")), HasSubstr("a preset needs its length"));
}

// A teacher whose stages are measured taps of given sizes.
FleetView TeacherWithStages(const std::vector<std::pair<uint32_t, uint32_t>>& channels_and_sizes) {
  FleetView fleet = Fleet();
  fleet.models[0].spec.arch = "torchscript";
  int k = 0;
  for (const auto& [channels, size] : channels_and_sizes) {
    fleet.models[0].taps.push_back({"s" + std::to_string(++k), "Tensor", {channels, size, size}, true});
  }
  return fleet;
}

TEST(PresetsTest, UnpairedStudentStagesMergeIntoTheNextPair) {
  const JobPlan plan = PlanOf("sskd", "", TeacherWithStages({{4, 14}, {8, 7}}));
  ASSERT_EQ(plan.stages.size(), 3u);
  EXPECT_THAT(plan.stages[0].trainable, ElementsAre("conv1", "bn1", "layer1", "layer2"));
  EXPECT_EQ(plan.stages[0].losses[0].student_tap, "layer2");
  EXPECT_EQ(plan.stages[0].losses[0].teacher_tap, "s1");
  EXPECT_EQ(plan.stages[0].losses[0].adapter, "conv1x1");
  EXPECT_THAT(plan.stages[1].trainable, ElementsAre("layer3"));
}

TEST(PresetsTest, AnUnpairedTailTrainsWithTheHead) {
  const JobPlan plan = PlanOf("sskd", "", TeacherWithStages({{16, 28}, {8, 3}}));
  ASSERT_EQ(plan.stages.size(), 2u);
  EXPECT_THAT(plan.stages[0].trainable, ElementsAre("conv1", "bn1", "layer1"));
  EXPECT_THAT(plan.stages[1].trainable, ElementsAre("layer2", "layer3", "fc"));
}

TEST(PresetsTest, RefusesWhenNoStageFits) {
  EXPECT_THAT(Refusal(kPresetJob, TeacherWithStages({{8, 5}})),
              HasSubstr("no stage of the student has the output size of a teacher stage"));
  EXPECT_THAT(Refusal(kPresetJob, TeacherWithStages({{8, 5}})), HasSubstr("layer2 14x14"));
}

TEST(PresetsTest, TheLastTeacherStageOfASizeCounts) {
  const JobPlan plan = PlanOf("sskd", "", TeacherWithStages({{4, 28}, {6, 28}, {8, 14}}));
  EXPECT_EQ(plan.stages[0].losses[0].teacher_tap, "s2");
}

TEST(PresetsTest, AZeroBudgetIsAllowedWithAWarningPerStage) {
  const StatusOr<ExpandedJob> job = Expand(With(kPresetJob, "steps: 402", "steps: 2"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->warnings, ElementsAre(HasSubstr("'mimic-3'"), HasSubstr("'head'")));
}

}  // namespace
}  // namespace distill
