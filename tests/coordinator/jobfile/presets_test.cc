#include "coordinator/jobfile/presets.h"

#include <algorithm>
#include <set>
#include <sstream>

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

TEST(PresetsTest, AMetricSelectsForTheHeadOfSskdAlone) {
  const std::string held_out = With(kPresetJob, "train_size: 60000", "train_size: 60000, holdout: 640");
  const StatusOr<ExpandedJob> job =
      Expand(With(held_out, "budget:", "sskd: {select: best, select_by: top1, patience: 3}\nbudget:"));
  ASSERT_TRUE(job.ok()) << job.status();
  for (const StagePlan& stage : job->plan.stages) {
    EXPECT_EQ(stage.select, "best");
    EXPECT_EQ(stage.select_by, stage.name == "head" ? "top1" : "objective") << stage.name;
  }
  EXPECT_THAT(Refusal(With(held_out, "budget:", "sskd: {select_by: top1}\nbudget:")),
              HasSubstr("sskd.select_by: says what select: best and patience go by"));
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

TEST(PresetsTest, ChannelTransformAndTatCompareTheLastStage) {
  for (const auto& [preset, weight] : {std::pair<std::string, double>{"channel_transform", 2}, {"tat", 0.1}}) {
    const JobPlan plan = PlanOf(preset);
    ASSERT_EQ(plan.stages.size(), 1u);
    EXPECT_THAT(Losses(plan.stages[0]), ElementsAre("cross_entropy", preset + "-layer3"));
    EXPECT_EQ(plan.stages[0].losses[0].weight, 1);
    EXPECT_EQ(plan.stages[0].losses[1].weight, weight);
    EXPECT_EQ(plan.stages[0].losses[1].teacher_tap, "layer3");
    const JobPlan mixed = PlanOf(preset, preset + ": {weight: 7, kd_weight: 0.9, kd_temperature: 2}");
    EXPECT_THAT(Losses(mixed.stages[0]), ElementsAre("cross_entropy", "kd", preset + "-layer3"));
    EXPECT_DOUBLE_EQ(mixed.stages[0].losses[0].weight, 0.1);
    EXPECT_EQ(NumberKnob(mixed.stages[0].losses[1].knobs, "temperature"), 2);
    EXPECT_EQ(mixed.stages[0].losses[2].weight, 7);
  }
  EXPECT_EQ(TextKnob(PlanOf("channel_transform").stages[0].losses[1].knobs, "reduction"), "mean");
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

// ---- Pairs that the user names

std::string Sskd(const std::string& options) {
  return With(kPresetJob, "preset: sskd", "preset: sskd\nsskd:\n" + options);
}

TEST(SskdStagesTest, EachPairIsAPhaseWithItsOwnNameShareOptimizerAndSchedule) {
  const StatusOr<ExpandedJob> job = Expand(Sskd(R"yaml(  stages:
    - {student: relu, teacher: relu, name: stem, share: 2, optimizer: {lr: 0.02}}
    - {student: layer1, teacher: layer1, schedule: {type: step, milestones: [0.5]}}
    - {student: layer3, teacher: layer3.1, name: rest, optimizer: {type: adam}}
  head: {share: 3, label_smoothing: 0.1, optimizer: {lr: 0.5}, schedule: {type: constant}}
)yaml"));
  ASSERT_TRUE(job.ok()) << job.status();
  const JobPlan& plan = job->plan;
  ASSERT_EQ(plan.stages.size(), 4u);
  EXPECT_EQ(plan.stages[0].name, "stem");
  EXPECT_EQ(plan.stages[1].name, "mimic-2");
  EXPECT_EQ(plan.stages[2].name, "rest");
  EXPECT_EQ(plan.stages[3].name, "head");
  EXPECT_THAT(Steps(plan), ElementsAre(115u, 58u, 57u, 172u));  // 402 in 2 : 1 : 1 : 3, the remainder to the first
  EXPECT_THAT(plan.stages[0].trainable, ElementsAre("conv1", "bn1"));
  EXPECT_THAT(plan.stages[1].trainable, ElementsAre("layer1"));
  EXPECT_THAT(plan.stages[2].trainable, ElementsAre("layer2", "layer3"));  // layer2 has no pair: merged into the next
  EXPECT_THAT(plan.stages[3].trainable, ElementsAre("fc"));
  EXPECT_EQ(plan.stages[2].losses[0].student_tap, "layer3");
  EXPECT_EQ(plan.stages[2].losses[0].teacher_tap, "layer3.1");
  EXPECT_DOUBLE_EQ(plan.stages[0].optimizer.lr, 0.02);
  EXPECT_DOUBLE_EQ(plan.stages[1].optimizer.lr, 0.1);
  EXPECT_EQ(plan.stages[2].optimizer.type, "adam");
  EXPECT_DOUBLE_EQ(plan.stages[3].optimizer.lr, 0.5);
  EXPECT_EQ(plan.stages[0].schedule.type, "cosine");
  EXPECT_EQ(plan.stages[1].schedule.type, "step");
  EXPECT_EQ(plan.stages[3].schedule.type, "constant");
  EXPECT_DOUBLE_EQ(NumberKnob(plan.stages[3].losses[0].knobs, "label_smoothing"), 0.1);
}

// Property 4 of the stage-by-stage specification, for cuts at and inside stages.
TEST(SskdStagesTest, PhasesPartitionTheStudentWhereverItIsCut) {
  for (const char* student : {"cifar_resnet8", "cifar_resnet20", "resnet18"}) {
    for (const char* cuts : {"layer1", "relu layer2", "layer1.0 layer2.0 layer3", "bn1 layer1 layer3.0", "layer2.0"}) {
      std::string stages = "  stages:\n";
      std::istringstream list(cuts);
      for (std::string cut; list >> cut;) stages += "    - {student: " + cut + ", teacher: " + cut + "}\n";
      ModelSpec teacher = TeacherSpec();
      teacher.arch = student;
      const StatusOr<ExpandedJob> job =
          Expand(With(Sskd(stages), "arch: cifar_resnet8", std::string("arch: ") + student), Fleet(teacher));
      ASSERT_TRUE(job.ok()) << student << " " << cuts << ": " << job.status();
      const Architecture arch = Architecture::Create(job->plan.student).value();
      for (const StateEntry& entry : arch.StateDict()) {
        int phases = 0;
        for (const StagePlan& stage : job->plan.stages) {
          for (const std::string& module : stage.trainable) phases += IsUnder(entry.name, module);
        }
        EXPECT_EQ(phases, 1) << student << " cut at " << cuts << ": " << entry.name;
      }
    }
  }
}

TEST(SskdStagesTest, BlocksCanBeCutsAndWholeStagesStayOneModule) {
  ModelSpec deep = TeacherSpec();
  const StatusOr<ExpandedJob> job = Expand(With(Sskd("  stages:\n"
                                                     "    - {student: layer1.1, teacher: layer1.1}\n"
                                                     "    - {student: layer2.2, teacher: layer2}\n"),
                                                "arch: cifar_resnet8", "arch: cifar_resnet20"),
                                           Fleet(deep));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->plan.stages[0].trainable, ElementsAre("conv1", "bn1", "layer1.0", "layer1.1"));
  EXPECT_THAT(job->plan.stages[1].trainable, ElementsAre("layer1.2", "layer2"));
  EXPECT_THAT(job->plan.stages[2].trainable, ElementsAre("layer3", "fc"));
}

TEST(SskdStagesTest, OnePairIsMimicThenHead) {
  const StatusOr<ExpandedJob> job = Expand(Sskd("  stages: [{student: layer3, teacher: layer3}]\n"));
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->plan.stages.size(), 2u);
  EXPECT_EQ(job->plan.stages[0].name, "mimic-1");
  EXPECT_THAT(job->plan.stages[0].trainable, ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3"));
  EXPECT_THAT(job->plan.stages[1].trainable, ElementsAre("fc"));
}

TEST(SskdStagesTest, PoliciesUseTheNamedPairs) {
  const auto plan = [](const std::string& policy) {
    const auto job =
        Expand(Sskd("  policy: " + policy +
                    "\n  stages: [{student: layer1, teacher: layer1}, {student: layer3, teacher: layer3}]\n"));
    EXPECT_TRUE(job.ok()) << policy << ": " << job.status();
    return job.ok() ? job->plan : JobPlan{};
  };
  EXPECT_THAT(Losses(plan("cumulative_sum").stages[1]), ElementsAre("l2-layer1", "l2-layer3"));
  EXPECT_THAT(plan("cumulative_last").stages[1].trainable, ElementsAre("conv1", "bn1", "layer1", "layer2", "layer3"));
  EXPECT_EQ(plan("blockwise").stages[1].teacher_input, "layer1");
  const JobPlan joint = plan("joint");
  ASSERT_EQ(joint.stages.size(), 2u);
  EXPECT_THAT(Losses(joint.stages[0]), ElementsAre("l2-layer1", "l2-layer3"));
  EXPECT_THAT(Steps(joint), ElementsAre(268u, 134u));
}

struct BadSskd {
  const char* name;
  const char* options;
  const char* expected;
};
class BadSskdTest : public testing::TestWithParam<BadSskd> {};

TEST_P(BadSskdTest, IsRefusedAtItsPlace) {
  const std::string refusal = Refusal(Sskd(GetParam().options));
  EXPECT_THAT(refusal, HasSubstr(GetParam().expected));
  EXPECT_THAT(refusal, testing::StartsWith("job.yaml:"));
  EXPECT_THAT(refusal, testing::Not(HasSubstr("\n"))) << "one mistake, one message";
}

INSTANTIATE_TEST_SUITE_P(
    Options, BadSskdTest,
    testing::Values(
        BadSskd{"UnknownStudentTap", "  stages: [{student: layr1, teacher: layer1}]\n",
                "job.yaml:9:22: sskd.stages[0]: the student has no tap 'layr1'; did you mean 'layer1'?"},
        BadSskd{"UnknownTeacherTap", "  stages: [{student: layer1, teacher: layer9}]\n",
                "job.yaml:9:39: sskd.stages[0]: the teacher has no tap 'layer9'"},
        BadSskd{"InsideABlock", "  stages: [{student: layer1.0.conv1, teacher: layer1}]\n",
                "the student cannot be cut at 'layer1.0.conv1', which lies inside a block"},
        BadSskd{"NoMap", "  stages: [{student: fc, teacher: layer1}]\n", "cut at 'fc', which is no map"},
        BadSskd{"WrongOrder", "  stages: [{student: layer2, teacher: layer2}, {student: layer1, teacher: layer3}]\n",
                "sskd.stages[1]: the student's 'layer1' comes before 'layer2'"},
        BadSskd{"Twice", "  stages: [{student: layer2, teacher: layer2}, {student: layer2.0, teacher: layer3}]\n",
                "the student's 'layer2.0' ends where 'layer2' of the pair before it ends"},
        BadSskd{"TeacherOrder", "  stages: [{student: layer1, teacher: layer2}, {student: layer2, teacher: layer1}]\n",
                "the teacher's 'layer1' comes before 'layer2'"},
        BadSskd{"TeacherTwice", "  stages: [{student: relu, teacher: layer1}, {student: layer1, teacher: layer1}]\n",
                "the teacher's 'layer1' is in the pair before it too"},
        BadSskd{"NothingLeft", "  stages: [{student: bn1, teacher: bn1}, {student: relu, teacher: relu}]\n",
                "no parameters between the student's 'bn1' and 'relu'"},
        BadSskd{"OtherSize", "  stages: [{student: layer1, teacher: layer2}]\n",
                "job.yaml:9:22: stage 'mimic-1' of preset sskd.losses[0]: l2 of student 'layer1' [16, 28, 28] and "
                "teacher 'layer2' [32, 14, 14]"},
        BadSskd{"NoPairs", "  stages: []\n", "sskd.stages: expected 1 to 256 pairs, got 0"},
        BadSskd{"NoList", "  stages: layer1\n", "sskd.stages: expected a list of pairs"},
        BadSskd{"MissingTap", "  stages: [{student: layer1}]\n", "missing required key 'teacher' in sskd.stages[0]"},
        BadSskd{"NameOfTheHead", "  stages: [{student: layer1, teacher: layer1, name: head}]\n",
                "sskd.stages[0].name: 'head' is the name of another phase"},
        BadSskd{"NameTwice",
                "  stages: [{student: relu, teacher: relu, name: mimic-2}, {student: layer1, teacher: layer1}]\n",
                "sskd.stages[1].name: 'mimic-2' is the name of another phase"},
        BadSskd{"NameInJoint", "  policy: joint\n  stages: [{student: layer1, teacher: layer1, name: a}]\n",
                "joint trains all pairs in one phase"},
        BadSskd{"OptimizerInJoint",
                "  policy: joint\n  stages: [{student: layer1, teacher: layer1, optimizer: {lr: 1}}]\n",
                "sskd.stages[0].optimizer: the policy joint"},
        BadSskd{"ShareTwice", "  phase_shares: [1, 1, 1, 1]\n  head: {share: 2}\n",
                "sskd.head.share: give either this or sskd.phase_shares"},
        BadSskd{"NoShares", "  stages: [{student: layer1, teacher: layer1, share: 0}]\n  head: {share: 0}\n",
                "shares of the budget are all 0"},
        BadSskd{"ScheduleWithoutRestart", "  restart_lr: false\n  head: {schedule: {type: constant}}\n",
                "sskd.head.schedule: sskd.restart_lr: false runs the job's schedule once"},
        BadSskd{"KdInTheHead", "  head: {loss: kd}\n",
                "sskd.head.loss: 'kd' reads the teacher, which is released before the head's phase; use cross_entropy"},
        BadSskd{"UnknownHeadLoss", "  head: {loss: hinge}\n", "unknown loss 'hinge' of the head; use cross_entropy"},
        BadSskd{"HeadOfTheTeacherWithoutFile", "  head: {init: teacher}\n", "name it: student.weights"},
        BadSskd{"Mismatch", "  spatial_mismatch: bilinear\n", "sskd.spatial_mismatch: "}),
    [](const testing::TestParamInfo<BadSskd>& info) { return info.param.name; });

TEST(SskdStagesTest, PairsOfDifferentSizesNeedASpatialMismatch) {
  const FleetView fleet = TeacherWithStages({{16, 14}, {32, 7}});
  const std::string stages = "  stages: [{student: layer1, teacher: s1}, {student: layer3, teacher: s2}]\n";
  EXPECT_THAT(Refusal(Sskd(stages), fleet), HasSubstr("differ in height or width"));
  for (const char* way : {"pool_larger", "teacher_to_student", "student_to_teacher"}) {
    const auto job = Expand(Sskd(stages + "  spatial_mismatch: " + way + "\n"), fleet);
    ASSERT_TRUE(job.ok()) << way << ": " << job.status();
    for (size_t k = 0; k < 2; ++k) {
      EXPECT_EQ(TextKnob(job->plan.stages[k].losses[0].knobs, "spatial_mismatch"), way);
    }
    EXPECT_EQ(job->plan.stages[0].losses[0].student_height, 28u);
    EXPECT_EQ(job->plan.stages[0].losses[0].teacher_height, 14u);
  }
  // Pairs that are found have one size, with the knob or without.
  EXPECT_THAT(Refusal(Sskd("  spatial_mismatch: pool_larger\n"), TeacherWithStages({{8, 5}})),
              HasSubstr("sskd.stages and sskd.spatial_mismatch"));
}

TEST(SskdHeadTest, TheTeachersHeadIsReadFromItsFileWhenShapesAgree) {
  const std::string init = "  head: {init: teacher}\n";
  const auto with_file = [](const std::string& yaml) {
    return With(yaml, "width: 16,", "width: 16, weights: teachers/f.safetensors,");
  };
  const auto job = Expand(with_file(Sskd(init)));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->plan.student.weights_modules, ElementsAre("fc"));
  EXPECT_TRUE(job->plan.student.weights_of_teacher);
  EXPECT_EQ(job->plan.student.weights, "teachers/f.safetensors");
  const auto random = Expand(with_file(Sskd("  head: {init: random}\n")));
  ASSERT_TRUE(random.ok()) << random.status();
  EXPECT_FALSE(random->plan.student.weights_of_teacher);

  EXPECT_THAT(Refusal(With(with_file(Sskd(init)), "width: 16,", "width: 8,")),
              HasSubstr("the student's 'fc.weight' has shape [10, 32], the teacher's [10, 64]"));
  EXPECT_THAT(Refusal(with_file(Sskd(init)), TeacherWithStages({{16, 28}, {64, 7}})), HasSubstr("TorchScript archive"));
  EXPECT_THAT(Refusal(With(with_file(Sskd(init)), "width: 16,", "width: 16, weights_modules: [fc],")),
              HasSubstr("leave student.weights_modules out"));
}

// ---- Images without labels

std::string WithUnlabelled(const std::string& yaml, const std::string& more = ", unlabelled_size: 60000") {
  return With(yaml, "train_size: 60000", "train_size: 60000, unlabelled: extra" + more);
}

TEST(UnlabelledTest, TheKnobOpensTheBackbonePhasesAlone) {
  const auto job = Expand(WithUnlabelled(Sskd("  unlabelled_ok: true\n")));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.data.unlabelled, "extra");
  ASSERT_EQ(job->plan.stages.size(), 4u);
  for (size_t k = 0; k < 3; ++k) EXPECT_TRUE(job->plan.stages[k].unlabelled_ok);
  EXPECT_FALSE(job->plan.stages[3].unlabelled_ok);
  EXPECT_THAT(Steps(job->plan), ElementsAre(101u, 101u, 100u, 100u));  // steps are steps
  EXPECT_THAT(job->warnings, IsEmpty());
}

TEST(UnlabelledTest, EpochsCountTheImagesThatAPhaseMayUse) {
  const auto steps = [](const std::string& yaml) {
    const auto job = Expand(With(yaml, "steps: 402", "epochs: 4"));
    EXPECT_TRUE(job.ok()) << job.status();
    return job.ok() ? Steps(job->plan) : std::vector<uint64_t>();
  };
  EXPECT_THAT(steps(kPresetJob), ElementsAre(468u, 468u, 468u, 468u));
  EXPECT_THAT(steps(WithUnlabelled(Sskd("  unlabelled_ok: true\n"))), ElementsAre(937u, 937u, 937u, 468u));
  EXPECT_THAT(steps(WithUnlabelled(Sskd("  unlabelled_ok: true\n"), ", unlabelled_size: 128, train_limit: 1280")),
              ElementsAre(11u, 11u, 11u, 10u));
  // 1280 - 256 + 128 images, in batches of 128.
  EXPECT_THAT(
      steps(WithUnlabelled(Sskd("  unlabelled_ok: true\n"), ", unlabelled_size: 128, train_limit: 1280, holdout: 256")),
      ElementsAre(9u, 9u, 9u, 8u));
  EXPECT_THAT(Refusal(With(WithUnlabelled(Sskd("  unlabelled_ok: true\n"), ""), "steps: 402", "epochs: 4")),
              HasSubstr("add data.unlabelled_size"));
}

TEST(UnlabelledTest, WithoutTheKnobTheImagesAreRefusedWithTheRemedy) {
  EXPECT_THAT(Refusal(WithUnlabelled(kPresetJob)),
              HasSubstr("data.unlabelled: no stage may draw from images without labels; allow it to the backbone "
                        "phases: sskd: {unlabelled_ok: true}, or leave data.unlabelled out"));
  EXPECT_THAT(Refusal(WithUnlabelled(kExplicitJob)), HasSubstr("unlabelled_ok: true in stages[]"));
  EXPECT_THAT(Refusal(With(WithUnlabelled(kPresetJob), "preset: sskd", "preset: kd")),
              HasSubstr("the preset 'kd' takes images with labels only"));
}

TEST(UnlabelledTest, AStageThatReadsLabelsCannotHaveTheKnob) {
  const std::string mimic =
      With(WithUnlabelled(kExplicitJob), "    epochs: 0.25\n", "    epochs: 1\n    unlabelled_ok: true\n");
  const auto job = Expand(mimic);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->plan.stages[0].steps, 937u);
  EXPECT_TRUE(job->plan.stages[0].unlabelled_ok);
  EXPECT_FALSE(job->plan.stages[1].unlabelled_ok);
  EXPECT_THAT(Refusal(With(mimic, "    steps: 100\n", "    steps: 100\n    unlabelled_ok: true\n")),
              HasSubstr("stages[1]: 'full' reads labels, so it cannot draw from images without"));
}

TEST(UnlabelledTest, WithoutAnyLabelStagesThatReadThemAreRefusedByName) {
  const std::string none = With(WithUnlabelled(Sskd("  unlabelled_ok: true\n")), "train_size: 60000", "train_size: 0");
  EXPECT_THAT(Refusal(none), HasSubstr("'head' reads labels, but data.train_size says that no training image has one"));
  EXPECT_THAT(Refusal(With(none, "steps: 402", "epochs: 4")), HasSubstr("'head' reads labels"));
  // The backbone alone needs none.
  const auto job = Expand(With(With(none, "  unlabelled_ok: true\n", "  unlabelled_ok: true\n  head: {share: 0}\n"),
                               "steps: 402", "epochs: 3"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(Steps(job->plan), ElementsAre(468u, 468u, 468u, 0u));
}

TEST(UnlabelledTest, ContradictionsInTheDataSectionAreNamed) {
  EXPECT_THAT(Refusal(With(kPresetJob, "train_size: 60000", "train_size: 60000, unlabelled_size: 5")),
              HasSubstr("data.unlabelled_size: counts the images of `unlabelled`, which is missing"));
  EXPECT_THAT(Refusal(With(kPresetJob, "train_size: 60000", "train_size: 0")), HasSubstr("data.train_size"));
  EXPECT_THAT(Refusal(With(WithUnlabelled(Sskd("  unlabelled_ok: true\n")), "extra", "train")),
              HasSubstr("'train' holds the images with labels"));
  EXPECT_THAT(Refusal(With(WithUnlabelled(Sskd("  unlabelled_ok: true\n")), "extra", "a/b")),
              HasSubstr("NAME-images-idx3-ubyte"));
  EXPECT_THAT(Refusal(With(WithUnlabelled(Sskd("  unlabelled_ok: true\n")), "extra", "../b")),
              HasSubstr("must not contain '..'"));
  const auto job = Expand(Sskd("  unlabelled_ok: true\n"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(Texts(job->warnings), ElementsAre(HasSubstr("unlabelled_ok has no effect")));
  EXPECT_FALSE(job->plan.stages[0].unlabelled_ok);
}

TEST(PresetsTest, TheLastTeacherStageOfASizeCounts) {
  const JobPlan plan = PlanOf("sskd", "", TeacherWithStages({{4, 28}, {6, 28}, {8, 14}}));
  EXPECT_EQ(plan.stages[0].losses[0].teacher_tap, "s2");
}

TEST(PresetsTest, AZeroBudgetIsAllowedWithAWarningPerStage) {
  const StatusOr<ExpandedJob> job = Expand(With(kPresetJob, "steps: 402", "steps: 2"));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(Texts(job->warnings), ElementsAre(HasSubstr("'mimic-3'"), HasSubstr("'head'")));
}

}  // namespace
}  // namespace distill
