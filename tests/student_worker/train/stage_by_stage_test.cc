// Training stage by stage (SSKD): the properties of its specification that concern the runner. The others are tests of
// the networks (prefix execution, caching), the losses (reductions, ReLU), the runner (isolation, resume) and the
// coordinator's preset (partition); each names its number.
#include "common/zoo/weights.h"
#include "student_worker/train/trainable_set.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

std::vector<StepResult> Train(StageRunner* runner, StepSource* source, uint64_t first, uint64_t end) {
  std::vector<StepResult> results;
  for (uint64_t step = first; step < end; ++step) {
    results.push_back(Take(runner->Step(source, step)));
    EXPECT_TRUE(results.back().stepped) << "step " << step;
  }
  return results;
}

void CopyState(const ZooNet& from, ZooNet* to) { ASSERT_TRUE(LoadWeights(SaveWeights(from), to).ok()); }

// Three phases and the head, as the preset makes them with the policy freeze_previous.
std::vector<StagePlan> Phases(uint32_t teacher_width, uint64_t steps) {
  std::vector<StagePlan> stages;
  const std::vector<std::vector<std::string>> trainable = {{"conv1", "bn1", "layer1"}, {"layer2"}, {"layer3"}};
  for (uint32_t k = 0; k < 3; ++k) {
    const std::string tap = "layer" + std::to_string(k + 1);
    StagePlan stage = Stage("mimic-" + std::to_string(k + 1), trainable[k],
                            {FeatureLoss("l2", tap, 4u << k, teacher_width << k)}, steps);
    stage.student_until = tap;
    stage.schedule.warmup = 0;
    stages.push_back(stage);
  }
  stages.push_back(Stage("head", {"fc"}, {CrossEntropy()}, steps));
  return stages;
}

// Labels moved by one class, or none: another batch for whoever reads them.
class RelabelledSource : public StepSource {
 public:
  RelabelledSource(SyntheticSource* source, bool none) : source_(source), none_(none) {}
  StatusOr<StepInput> Next(std::chrono::milliseconds beat) override {
    auto input = source_->Next(beat);
    if (input.ok()) {
      for (auto& label : input->labels) label = none_ ? kNoLabel : (label + 1) % 4;
    }
    return input;
  }

 private:
  SyntheticSource* const source_;  // outlives this
  const bool none_;
};

TEST(StageByStageTest, Property2ACopyInTrainModeStartsAboveZero) {
  Rank rank(SmallPlan(Phases(4, 1)));
  const auto teacher = SmallTeacher(4);
  CopyState(*teacher, rank.net.get());
  auto runner = rank.Runner(0);
  SyntheticSource source(0, 16);
  source.SetTeacher(teacher, runner->teacher_taps());
  // Batch statistics against running ones.
  EXPECT_GT(Train(runner.get(), &source, 0, 1)[0].terms[0], 1e-3);
}

TEST(StageByStageTest, Property12TheExactStudentWithTheTeachersHeadGivesTheTeachersLogits) {
  const auto teacher = SmallTeacher(4);
  auto student = Take(ZooNet::Create(SmallStudent()));
  student->InitWeights(5);
  CopyState(*teacher, student.get());
  student->eval();
  torch::NoGradGuard no_grad;
  const torch::Tensor x = torch::rand({5, 1, 12, 12});
  const auto maps = Take(teacher->Forward(x, {"layer3", ""}));
  EXPECT_TRUE(torch::equal(Take(student->ForwardAfter("layer3", maps[0], {""}))[0], maps[1]));
}

TEST(StageByStageTest, Property14LabelsAreNotReadBeforeTheHead) {
  const auto teacher = SmallTeacher(8);
  const auto run = [&](bool relabelled) {
    Rank rank(SmallPlan(Phases(8, 2)));
    std::vector<std::map<std::string, torch::Tensor>> states;
    for (uint32_t k = 0; k < 4; ++k) {
      auto runner = rank.Runner(k);
      SyntheticSource source(2 * k, 16);
      if (k < 3) source.SetTeacher(teacher, runner->teacher_taps());
      RelabelledSource other(&source, /*none=*/k < 2);
      Train(runner.get(), relabelled ? static_cast<StepSource*>(&other) : &source, 0, 2);
      states.push_back(StateOf(*rank.net));
    }
    return states;
  };
  const auto right = run(false), wrong = run(true);
  for (uint32_t k = 0; k < 3; ++k) EXPECT_THAT(Changed(right[k], wrong[k]), IsEmpty()) << "phase " << k + 1;
  EXPECT_THAT(Changed(right[3], wrong[3]), Not(IsEmpty()));  // the head reads them
}

TEST(StageByStageTest, Property16ShallowStagesImitateDeepOnes) {
  ModelSpec deep = SmallStudent();
  deep.arch = "cifar_resnet20";  // three blocks in each stage, the student has one
  auto teacher = Take(ZooNet::Create(deep));
  teacher->InitWeights(3);
  teacher->eval();
  Rank rank(SmallPlan(Phases(4, 2)));
  for (uint32_t k = 0; k < 3; ++k) {
    auto runner = rank.Runner(k);
    SyntheticSource source(0, 16);
    source.SetTeacher(teacher, runner->teacher_taps());
    for (const StepResult& result : Train(runner.get(), &source, 0, 2)) EXPECT_GT(result.terms[0], 0);
  }
}

TEST(StageByStageTest, Property17EveryPhaseStartsAtItsRateWithEmptyMomentum) {
  const auto teacher = SmallTeacher(8);
  std::vector<StagePlan> stages = Phases(8, 3);
  stages[1].optimizer.lr = 0.03;
  Rank rank(SmallPlan(stages));
  for (uint32_t k = 0; k < 4; ++k) {
    auto runner = rank.Runner(k);
    for (const auto& [name, tensor] : runner->State().tensors) {
      if (!name.starts_with("optimizer.")) continue;
      EXPECT_THAT(std::vector<uint8_t>(tensor.bytes.data, tensor.bytes.data + tensor.bytes.size), Each(0)) << name;
    }
    SyntheticSource source(0, 16);
    if (k < 3) source.SetTeacher(teacher, runner->teacher_taps());
    const auto results = Train(runner.get(), &source, 0, 3);
    if (k < 3) {
      EXPECT_DOUBLE_EQ(results[0].learning_rate, stages[k].optimizer.lr);
      EXPECT_LT(results[2].learning_rate, results[0].learning_rate);
    }
  }
}

TEST(StageByStageTest, Property15TheHeadPhaseAsksForNoTeacher) {
  Rank rank(SmallPlan(Phases(8, 1)));
  EXPECT_THAT(rank.Runner(3)->teacher_taps(), IsEmpty());
  EXPECT_EQ(rank.Runner(1)->teacher_taps(), (std::vector<TapRequest>{{"layer2", WireDtype::kF32, false}}));
}

// ---- Blockwise: the teacher's map is the stage's input

StagePlan Blockwise(std::vector<std::string> trainable, uint32_t student, uint32_t teacher, uint64_t steps) {
  StagePlan stage = Stage("block-2", std::move(trainable), {FeatureLoss("l2", "layer2", student, teacher)}, steps);
  stage.student_until = "layer2";
  stage.teacher_input = "layer1";
  stage.student_input = "layer1";
  return stage;
}

TEST(BlockwiseTest, ThePrefixDoesNotRunAndOnlyTheStageMoves) {
  StagePlan stage = Blockwise({"layer2"}, 8, 8, 3);
  stage.frozen_bn = "train";  // so that whatever runs would show in its statistics
  stage.optimizer.weight_decay = 0.1;
  Rank rank(SmallPlan({stage}));
  const auto teacher = SmallTeacher(4);
  const auto before = StateOf(*rank.net);
  auto runner = rank.Runner();
  EXPECT_EQ(runner->teacher_taps(),
            (std::vector<TapRequest>{{"layer2", WireDtype::kF32, false}, {"layer1", WireDtype::kF32, false}}));
  SyntheticSource source(0, 16);
  source.SetTeacher(teacher, runner->teacher_taps());
  Train(runner.get(), &source, 0, 3);
  const auto changed = Changed(before, StateOf(*rank.net));
  EXPECT_THAT(changed, Not(IsEmpty()));
  EXPECT_THAT(changed, Each(StartsWith("layer2.")));
}

TEST(BlockwiseTest, StagesAreIndependentOfThePrefixTheyWillHave) {
  const JobPlan plan = SmallPlan({Blockwise({"layer2"}, 8, 8, 3)});
  const auto teacher = SmallTeacher(4);
  std::vector<std::map<std::string, torch::Tensor>> states;
  std::vector<double> losses;
  for (bool other_prefix : {false, true}) {
    Rank rank(plan);
    if (other_prefix) {
      torch::NoGradGuard no_grad;
      for (auto& item : rank.net->named_parameters()) {
        if (!item.key().starts_with("layer2.")) item.value().mul_(-3).add_(0.7);
      }
    }
    auto runner = rank.Runner();
    SyntheticSource source(0, 16);
    source.SetTeacher(teacher, runner->teacher_taps());
    losses.push_back(Train(runner.get(), &source, 0, 3).back().loss);
    auto state = StateOf(*rank.net);
    std::erase_if(state, [](const auto& item) { return !item.first.starts_with("layer2."); });
    states.push_back(std::move(state));
  }
  EXPECT_EQ(losses[0], losses[1]);
  EXPECT_THAT(Changed(states[0], states[1]), IsEmpty());
}

TEST(BlockwiseTest, TheFirstStepsLossIsThatOfTheBlockOnTheTeachersMap) {
  Rank rank(SmallPlan({Blockwise({"layer2"}, 8, 8, 1)}));
  const auto teacher = SmallTeacher(4);
  auto copy = Take(ZooNet::Create(SmallStudent()));
  CopyState(*rank.net, copy.get());
  ASSERT_TRUE(ApplyTrainable(copy.get(), {"layer2"}).ok());
  auto runner = rank.Runner();
  SyntheticSource source(0, 16), again(0, 16);
  source.SetTeacher(teacher, runner->teacher_taps());
  again.SetTeacher(teacher, runner->teacher_taps());
  const StepInput input = Take(again.Next(std::chrono::milliseconds(1)));
  const torch::Tensor target = Take(FromWireTensor(input.features.taps[0]));
  const torch::Tensor given = Take(FromWireTensor(input.features.taps[1]));
  const torch::Tensor made = Take(copy->ForwardAfter("layer1", given, {"layer2"}))[0];
  const double expected = (made - target).square().mean().item<double>();
  EXPECT_NEAR(Train(runner.get(), &source, 0, 1)[0].terms[0], expected, 1e-5 * expected);
}

TEST(BlockwiseTest, TwoRanksEndEqualAndAMapOfNaNsAsInputIsSkipped) {
  const JobPlan plan = SmallPlan({Blockwise({"layer2", "layer1"}, 8, 8, 4)});  // layer1 is not reached: stays frozen
  const auto teacher = SmallTeacher(4);
  std::vector<std::map<std::string, torch::Tensor>> states(2);
  testing::internal::CaptureStderr();
  OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, 2, std::move(store));
    const auto before = StateOf(*rank.net);
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, 2);
    source.SetTeacher(teacher, runner->teacher_taps());
    source.poison_tap_ = 1;
    Train(runner.get(), &source, 0, 3);
    source.poison_ = r == 0;
    EXPECT_TRUE(Train(runner.get(), &source, 3, 4)[0].skipped);
    ASSERT_TRUE(BroadcastNet(rank.group.get(), rank.net.get(), true).ok());
    states[r] = StateOf(*rank.net);
    EXPECT_THAT(Changed(before, states[r]), Each(StartsWith("layer2.")));
  });
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("tap=layer1"));
  EXPECT_THAT(Changed(states[0], states[1]), IsEmpty());
}

TEST(BlockwiseTest, AnInputThatTheNetCannotStartFromIsRefused) {
  StagePlan stage = Blockwise({"layer2"}, 8, 8, 1);
  const auto refusal = [&](const std::string& input) {
    stage.student_input = input;
    Rank rank(SmallPlan({stage}));
    return StageRunner::Create({.plan = &rank.plan,
                                .stage = 0,
                                .net = rank.net.get(),
                                .lockstep = rank.lockstep.get(),
                                .device = torch::kCPU})
        .status()
        .ToString();
  };
  EXPECT_THAT(refusal("layer9"), HasSubstr("student_input 'layer9'"));
  EXPECT_THAT(refusal("fc"), HasSubstr("student_input 'fc'"));
  EXPECT_THAT(refusal("layer1.0.conv1"), HasSubstr("layer1.0.conv1"));  // its block adds what came before it
  EXPECT_THAT(refusal("layer3"), HasSubstr("layer2"));                  // the tap lies before it
}

TEST(BlockwiseTest, MapsOfAnotherShapeNameBoth) {
  Rank rank(SmallPlan({Blockwise({"layer2"}, 8, 16, 1)}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(SmallTeacher(8), runner->teacher_taps());  // 8 channels after layer1, the student has 4
  const auto result = runner->Step(&source, 0);
  EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().ToString(), testing::AllOf(HasSubstr("(16, 8, 12, 12)"), HasSubstr("(N, 4, 12, 12)")));
}

// ---- frozen_bn

TEST(FrozenBnTest, TrainMovesTheStatisticsOfFrozenModulesAndNothingElse) {
  StagePlan stage = Stage("head", {"fc"}, {CrossEntropy()}, 2);
  stage.frozen_bn = "train";
  stage.optimizer.weight_decay = 0.1;
  Rank rank(SmallPlan({stage}));
  const auto before = StateOf(*rank.net);
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  Train(runner.get(), &source, 0, 2);
  const auto changed = Changed(before, StateOf(*rank.net));
  for (const char* name :
       {"bn1.running_mean", "layer1.0.bn2.running_var", "layer3.0.bn1.num_batches_tracked", "fc.weight"})
    EXPECT_THAT(changed, testing::Contains(name));
  for (const std::string& name : changed) {
    EXPECT_TRUE(name.starts_with("fc.") || name.find("running_") != std::string::npos ||
                name.find("num_batches") != std::string::npos)
        << name;
  }
  for (const auto& item : rank.net->named_parameters())
    EXPECT_EQ(item.value().requires_grad(), item.key().starts_with("fc.")) << item.key();
}

}  // namespace
}  // namespace distill
