#include "student_worker/train/stage_runner.h"

#include <ATen/autocast_mode.h>

#include "student_worker/train/trainable_set.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::Each;
using testing::HasSubstr;
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

// Properties 3 (phase isolation) and 5 (gradient reach) of the stage-by-stage specification.
TEST(StageRunnerTest, OnlyTheStagesModulesMove) {
  // Momentum and weight decay on: a frozen parameter that was in the optimizer, or a frozen batch norm in train mode,
  // would move.
  StagePlan stage = Stage("mimic-2", {"layer2"}, {FeatureLoss("l2", "layer2", 8, 16)}, 4);
  stage.student_until = "layer2";
  stage.optimizer.weight_decay = 0.1;
  Rank rank(SmallPlan({stage}));
  const auto teacher = SmallTeacher(8);
  const auto before = StateOf(*rank.net);
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(teacher, runner->teacher_taps());
  const auto teacher_before = StateOf(*teacher);
  Train(runner.get(), &source, 0, 4);

  const std::vector<std::string> changed = Changed(before, StateOf(*rank.net));
  EXPECT_THAT(changed, Each(StartsWith("layer2.")));
  for (const auto& [name, tensor] : before) {
    if (!name.starts_with("layer2.")) continue;
    EXPECT_THAT(changed, testing::Contains(name));
  }
  EXPECT_TRUE(Changed(teacher_before, StateOf(*teacher)).empty());
  for (const auto& item : rank.net->named_parameters()) {
    EXPECT_EQ(item.value().grad().defined(), item.key().starts_with("layer2.")) << item.key();
  }
}

// Properties 3 and 15.
TEST(StageRunnerTest, HeadStageMovesTheHeadAloneAndNeedsNoTeacher) {
  Rank rank(SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 4)}));
  const auto before = StateOf(*rank.net);
  auto runner = rank.Runner();
  EXPECT_TRUE(runner->teacher_taps().empty());
  SyntheticSource source(0, 16);
  Train(runner.get(), &source, 0, 4);
  EXPECT_EQ(Changed(before, StateOf(*rank.net)), (std::vector<std::string>{"fc.bias", "fc.weight"}));
}

// Property 7, the drift trap.
TEST(StageRunnerTest, FreezingByGradientAloneWouldMoveFrozenStatistics) {
  // The trap that ApplyTrainable avoids, shown on code that falls into it: gradients off, but the whole net in train
  // mode.
  Rank rank(SmallPlan({Stage("head", {"fc"}, {CrossEntropy()}, 1)}));
  ASSERT_TRUE(ApplyTrainable(rank.net.get(), {"fc"}).ok());
  const auto before = StateOf(*rank.net);
  rank.net->train();
  Take(rank.net->Forward(torch::randn({4, 1, 12, 12}), {""}));
  EXPECT_THAT(Changed(before, StateOf(*rank.net)), testing::Contains("bn1.running_mean"));
}

// Property 1.
TEST(StageRunnerTest, ACopyOfTheTeacherInEvalModeHasZeroFeatureLoss) {
  StagePlan stage = Stage("head", {"fc"}, {CrossEntropy(), FeatureLoss("l2", "layer3", 16, 16)}, 1);
  Rank rank(SmallPlan({stage}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(rank.net, runner->teacher_taps());
  const StepResult result = Train(runner.get(), &source, 0, 1)[0];
  EXPECT_GT(result.terms[0], 0);
  EXPECT_EQ(result.terms[1], 0.0);
}

TEST(StageRunnerTest, AdaptersTrainWithTheStageAndStayOutOfTheNet) {
  Rank rank(SmallPlan({Stage("mimic", {"layer1"}, {FeatureLoss("l2", "layer1", 4, 8)}, 3)}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
  const SafetensorsFile before = runner->State();
  Train(runner.get(), &source, 0, 3);
  const SafetensorsFile after = runner->State();
  const auto bytes = [](const SafetensorsFile& file, const std::string& name) {
    const Buffer& buffer = file.tensors.at(name).bytes;
    return std::vector<uint8_t>(buffer.data, buffer.data + buffer.size);
  };
  EXPECT_NE(bytes(before, "adapter.l2-layer1.weight"), bytes(after, "adapter.l2-layer1.weight"));
  EXPECT_TRUE(after.tensors.contains("optimizer.adapter.l2-layer1.weight.momentum_buffer"));
  for (const auto& [name, tensor] : StateOf(*rank.net)) EXPECT_THAT(name, Not(HasSubstr("adapter")));
}

TEST(StageRunnerTest, ABranchOfWeightZeroIsNotComputed) {
  LossPlan off = FeatureLoss("cwd", "layer1", 4, 8);
  off.weight = 0;
  Rank rank(SmallPlan({Stage("whole", WholeNet(), {CrossEntropy(), off}, 1)}));
  auto runner = rank.Runner();
  EXPECT_TRUE(runner->teacher_taps().empty());
  EXPECT_EQ(runner->names(), std::vector<std::string>{"cross_entropy"});
  SyntheticSource source(0, 16);
  Train(runner.get(), &source, 0, 1);
}

// Property 5.
TEST(StageRunnerTest, TrainableParametersThatNoLossReachesStayFrozen) {
  const JobPlan plan = SmallPlan({Stage("mimic", WholeNet(), {FeatureLoss("l2", "layer2.0", 8, 8)}, 3)});
  OnRanks(2, [&](uint32_t r,
                 std::shared_ptr<KvClient> store) {  // a reducer that waited for them would fail in the second step
    Rank rank(plan, r, 2, std::move(store));
    const auto before = StateOf(*rank.net);
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, 2);
    source.SetTeacher(SmallTeacher(4), runner->teacher_taps());
    Train(runner.get(), &source, 0, 3);
    const auto changed = Changed(before, StateOf(*rank.net));
    EXPECT_THAT(changed, testing::Contains("layer2.0.conv2.weight"));
    EXPECT_THAT(changed, Each(Not(testing::AnyOf(StartsWith("layer3"), StartsWith("fc")))));
  });
}

TEST(StageRunnerTest, TotalIsTheWeightedSumOfTheTerms) {
  LossPlan feature = FeatureLoss("l2", "layer1", 4, 8);
  feature.weight = 0.25;
  Rank rank(SmallPlan({Stage("whole", WholeNet(), {CrossEntropy(2), feature}, 1)}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
  const StepResult result = Train(runner.get(), &source, 0, 1)[0];
  EXPECT_DOUBLE_EQ(result.loss, 2 * result.terms[0] + 0.25 * result.terms[1]);
}

TEST(StageRunnerTest, RequestsEachTeacherTapInTheEncodingsItsLossesBear) {
  LossPlan kd;
  kd.name = "kd";
  kd.type = "kd";
  kd.needs_teacher = true;
  JobPlan plan = SmallPlan({Stage(
      "whole", WholeNet(),
      {kd, FeatureLoss("cwd", "layer1", 4, 4), FeatureLoss("cwd", "layer2", 8, 8), FeatureLoss("l2", "layer2", 8, 8)},
      1)});
  plan.wire_dtype = "bf16";
  Rank rank(plan);
  const std::vector<TapRequest> expected = {{"", WireDtype::kF32, false},
                                            {"layer1", WireDtype::kBf16, true},
                                            {"layer2", WireDtype::kBf16, true},
                                            {"layer2", WireDtype::kBf16, false}};
  EXPECT_EQ(rank.Runner()->teacher_taps(), expected);
}

TEST(StageRunnerTest, TheOrderOfLossesDoesNotDecideHowASharedTapTravels) {
  LossPlan kd;
  kd.name = "kd";
  kd.type = "kd";
  kd.needs_teacher = true;
  LossPlan cwd = FeatureLoss("cwd", "", 4, 4);
  std::vector<LossPlan> losses = {kd, cwd, FeatureLoss("cwd", "layer1", 4, 4), FeatureLoss("l2", "layer1", 4, 4)};
  const std::vector<TapRequest> expected = {
      {"", WireDtype::kF32, false}, {"layer1", WireDtype::kF16, true}, {"layer1", WireDtype::kF16, false}};
  for (int order = 0; order < 2; ++order) {
    JobPlan plan = SmallPlan({Stage("whole", WholeNet(), losses, 1)});
    plan.wire_dtype = "f16";
    EXPECT_THAT(Take(Objective::Create(plan, plan.stages[0])).teacher_taps(),
                testing::UnorderedElementsAreArray(expected));
    std::reverse(losses.begin(), losses.end());
  }
}

TEST(StageRunnerTest, ALossThatIsNotFiniteNamesStepLossAndTapAndMovesNothing) {
  // The student's own fault: the teacher's maps are sound (objective_test.cc has those that are not).
  Rank rank(SmallPlan({Stage("mimic", {"layer1"}, {FeatureLoss("l2", "layer1", 4, 4)}, 3)}));
  auto runner = rank.Runner();
  SyntheticSource source(0, 16);
  source.SetTeacher(SmallTeacher(4), runner->teacher_taps());
  Train(runner.get(), &source, 0, 2);
  {
    torch::NoGradGuard no_grad;
    rank.net->named_parameters()["layer1.0.bn2.bias"][0] = NAN;
  }
  std::map<std::string, torch::Tensor> parameters;
  for (const auto& item : rank.net->named_parameters()) parameters[item.key()] = item.value().detach().clone();
  const auto result = runner->Step(&source, 2);
  EXPECT_EQ(result.status().code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(IsNotFinite(result.status()));
  EXPECT_FALSE(IsNotFinite(absl::FailedPreconditionError("another one")));
  for (const char* part : {"'mimic'", "step 2", "'l2-layer1'", "tap layer1", "nan"}) {
    EXPECT_THAT(result.status().ToString(), HasSubstr(part));
  }
  for (const auto& item : rank.net->named_parameters()) {
    EXPECT_TRUE(torch::allclose(item.value(), parameters[item.key()], 0, 0, /*equal_nan=*/true)) << item.key();
  }
}

TEST(StageRunnerTest, ContradictionsNameTheStage) {
  StagePlan stage = Stage("mimic", {"layer9"}, {FeatureLoss("l2", "layer1", 4, 4)}, 3);
  Rank rank(SmallPlan({stage}));
  const auto create = [&](const StagePlan& changed) {
    rank.plan.stages[0] = changed;
    return StageRunner::Create({.plan = &rank.plan,
                                .stage = 0,
                                .net = rank.net.get(),
                                .lockstep = rank.lockstep.get(),
                                .device = torch::kCPU})
        .status()
        .ToString();
  };
  EXPECT_THAT(create(stage), HasSubstr("stage 'mimic': the student has no module 'layer9'; did you mean 'layer"));
  stage.trainable = {"layer1"};
  stage.optimizer.type = "sdg";
  EXPECT_THAT(create(stage), HasSubstr("did you mean 'sgd'"));
  stage.optimizer.type = "sgd";
  stage.losses[0].weight = 0;
  EXPECT_THAT(create(stage), HasSubstr("no loss of non-zero weight"));
}

// Part j of each step's batch as the j-th input: what the pipeline gives where batches are computed in parts.
class InParts : public StepSource {
 public:
  InParts(uint32_t images, uint32_t parts, uint32_t rank = 0, uint32_t ranks = 1) {
    for (uint32_t part = 0; part < parts; ++part) {
      sources_.push_back(std::make_unique<SyntheticSource>(0, images, part * ranks + rank, ranks * parts));
    }
  }
  void SetTeacher(const std::shared_ptr<ZooNet>& teacher, const std::vector<TapRequest>& taps) {
    for (const auto& source : sources_) source->SetTeacher(teacher, taps);
  }
  StatusOr<StepInput> Next(std::chrono::milliseconds timeout) override {
    return sources_[next_++ % sources_.size()]->Next(timeout);
  }
  SyntheticSource& part(size_t i) { return *sources_[i]; }

 private:
  std::vector<std::unique_ptr<SyntheticSource>> sources_;
  size_t next_ = 0;
};

// A stage without batch norms that train, and so with one result however its batches are divided.
StagePlan Convolutions(uint64_t steps) {
  return Stage("convolutions", {"conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.0", "fc"},
               {CrossEntropy(), FeatureLoss("cwd", "layer1", 4, 8)}, steps);
}

TEST(AccumulationTest, PartsAddUpToTheWholeBatchOnAnyNumberOfRanks) {
  for (const char* optimizer : {"sgd", "adamw"}) {
    StagePlan stage = Convolutions(5);
    stage.optimizer.type = optimizer;
    stage.optimizer.lr = 0.01;
    JobPlan plan = SmallPlan({stage});
    const auto teacher = SmallTeacher(8);
    Rank alone(plan);
    auto runner = alone.Runner();
    SyntheticSource source(0, 32);
    source.SetTeacher(teacher, runner->teacher_taps());
    const auto expected = Train(runner.get(), &source, 0, 5);
    const auto expected_state = StateOf(*alone.net);
    for (const auto& [ranks, parts] : {std::pair{1u, 4u}, {2u, 2u}, {1u, 2u}}) {
      plan.accumulate = parts;
      std::vector<std::map<std::string, torch::Tensor>> states(ranks);
      OnRanks(ranks, [&, ranks = ranks, parts = parts](uint32_t r, std::shared_ptr<KvClient> store) {
        Rank rank(plan, r, ranks, std::move(store));
        auto mine = rank.Runner();
        InParts inputs(32, parts, r, ranks);
        inputs.SetTeacher(teacher, mine->teacher_taps());
        const auto results = Train(mine.get(), &inputs, 0, 5);
        for (size_t s = 0; s < 5; ++s) {
          EXPECT_NEAR(results[s].loss, expected[s].loss, 1e-4 * expected[s].loss) << parts << " parts, step " << s;
          EXPECT_NEAR(results[s].terms[1], expected[s].terms[1], 1e-4 * expected[s].terms[1]);
        }
        states[r] = StateOf(*rank.net);
      });
      EXPECT_THAT(Changed(states[0], states[ranks - 1]), testing::IsEmpty());
      for (const auto& [name, tensor] : expected_state) {
        if (!tensor.is_floating_point()) continue;
        const double gap = (states[0][name] - tensor).abs().max().item<double>();
        EXPECT_LT(gap, 2e-4) << optimizer << ", " << ranks << " ranks, " << parts << " parts: " << name;
      }
    }
  }
}

TEST(AccumulationTest, AStepWithABrokenPartIsSkippedAsAWhole) {
  JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy(), FeatureLoss("l2", "layer2", 8, 16)}, 4)});
  plan.accumulate = 3;
  for (const size_t broken : {0u, 1u, 2u}) {
    Rank rank(plan);
    auto runner = rank.Runner();
    InParts inputs(24, 3);
    inputs.SetTeacher(SmallTeacher(8), runner->teacher_taps());
    Train(runner.get(), &inputs, 0, 1);
    const auto before = StateOf(*rank.net);
    inputs.part(broken).poison_ = true;
    const StepResult skipped = Train(runner.get(), &inputs, 1, 2)[0];
    EXPECT_TRUE(skipped.skipped);
    EXPECT_EQ(skipped.skipped_tap, "layer2");
    EXPECT_THAT(Changed(before, StateOf(*rank.net)), testing::IsEmpty()) << "part " << broken;
    inputs.part(broken).poison_ = false;
    EXPECT_FALSE(Train(runner.get(), &inputs, 2, 3)[0].skipped);  // the next step begins with its own first part
  }
}

TEST(AccumulationTest, ARequestToStopBetweenPartsUndoesTheStep) {
  JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy()}, 4)});
  plan.accumulate = 2;
  Rank rank(plan);
  auto runner = rank.Runner();
  InParts inputs(16, 2);
  Train(runner.get(), &inputs, 0, 1);
  const auto before = StateOf(*rank.net);
  inputs.part(1).late_ = 1000;
  rank.control.Cancel();
  const StepResult result = Take(runner->Step(&inputs, 1));
  EXPECT_FALSE(result.stepped);
  EXPECT_TRUE(result.cancel);
  EXPECT_THAT(Changed(before, StateOf(*rank.net)), testing::IsEmpty());
}

TEST(MultiplierTest, ModulesMoveByTheirOwnFactorAndTheLastOneHolds) {
  const auto moved = [](std::vector<LrMultPlan> lr_mult) {
    StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy()}, 1);
    stage.optimizer.momentum = 0;
    stage.optimizer.weight_decay = 0;
    stage.optimizer.lr_mult = std::move(lr_mult);
    Rank rank(SmallPlan({stage}));
    const auto before = StateOf(*rank.net);
    auto runner = rank.Runner();
    SyntheticSource source(0, 16);
    Train(runner.get(), &source, 0, 1);
    std::map<std::string, torch::Tensor> difference;
    for (const auto& [name, tensor] : StateOf(*rank.net)) difference[name] = tensor - before.at(name);
    return difference;
  };
  const auto plain = moved({});
  const auto scaled = moved({{{"layer1", "layer3", "fc"}, 10}, {{"layer3.0.conv1"}, 0}});
  const auto ratio = [&](const std::string& name) {
    return (scaled.at(name).norm() / plain.at(name).norm()).item<double>();
  };
  EXPECT_NEAR(ratio("conv1.weight"), 1, 1e-3);
  EXPECT_NEAR(ratio("layer1.0.conv2.weight"), 10, 1e-2);
  EXPECT_NEAR(ratio("fc.bias"), 10, 1e-2);
  EXPECT_NEAR(ratio("layer3.0.conv2.weight"), 10, 1e-2);
  EXPECT_EQ(ratio("layer3.0.conv1.weight"), 0);
}

TEST(MultiplierTest, AModuleThatIsNotThereIsNamed) {
  StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy()}, 1);
  stage.optimizer.lr_mult = {{{"layer9"}, 10}};
  Rank rank(SmallPlan({stage}));
  const auto runner = StageRunner::Create(
      {.plan = &rank.plan, .stage = 0, .net = rank.net.get(), .lockstep = rank.lockstep.get(), .device = torch::kCPU});
  EXPECT_THAT(runner.status().ToString(),
              HasSubstr("stage 'whole': optimizer lr_mult: the student has no module 'layer9'"));
}

TEST(AutocastTest, TrainsInBfloat16CloseToFloat32AndRepeatably) {
  const auto train = [](const std::string& autocast) {
    StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy(), FeatureLoss("l2", "layer2", 8, 16)}, 5);
    stage.optimizer.lr = 0.01;
    JobPlan plan = SmallPlan({stage});
    plan.autocast = autocast;
    Rank rank(plan);
    auto runner = rank.Runner();
    SyntheticSource source(0, 16);
    source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
    const auto results = Train(runner.get(), &source, 0, 5);
    EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    return std::pair(results, StateOf(*rank.net));
  };
  const auto [full, full_state] = train("none");
  const auto [half, half_state] = train("bf16");
  const auto [again, again_state] = train("bf16");
  EXPECT_THAT(Changed(half_state, again_state), testing::IsEmpty());
  EXPECT_THAT(Changed(full_state, half_state), testing::Contains("layer2.0.downsample.0.weight"));
  for (size_t step = 0; step < 5; ++step) {
    EXPECT_NE(half[step].loss, full[step].loss) << step;
    EXPECT_NEAR(half[step].loss, full[step].loss, 0.03 * full[step].loss) << step;
  }
  for (const auto& [name, tensor] : half_state) {
    if (tensor.is_floating_point()) {
      EXPECT_EQ(tensor.scalar_type(), torch::kFloat32) << name;
    }
  }
}

TEST(WeightAverageInStageTest, AveragesEveryStepThatWasTakenAndNoOther) {
  StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy(), FeatureLoss("l2", "layer2", 8, 16)}, 4);
  stage.optimizer.ema_decay = 0.99;
  Rank rank(SmallPlan({stage}));
  auto runner = rank.Runner();
  ASSERT_NE(runner->average(), nullptr);
  SyntheticSource source(0, 16);
  source.SetTeacher(SmallTeacher(8), runner->teacher_taps());
  Train(runner.get(), &source, 0, 2);
  EXPECT_EQ(runner->average()->updates(), 2u);
  source.poison_ = true;
  Train(runner.get(), &source, 2, 3);
  EXPECT_EQ(runner->average()->updates(), 2u);
  const auto weights = StateOf(*rank.net);
  runner->average()->Swap();
  EXPECT_THAT(Changed(weights, StateOf(*rank.net)), testing::Contains("bn1.running_mean"));
  EXPECT_THAT(Changed(weights, StateOf(*rank.net)), testing::Contains("fc.weight"));
}

// (optimizer, ranks); "ema": sgd with an average of the weights
class ResumeTest : public testing::TestWithParam<std::tuple<std::string, uint32_t>> {};

// Property 18.
TEST_P(ResumeTest, AResumedStageIsBitIdenticalToAnUnbrokenOne) {
  const auto& [optimizer, ranks] = GetParam();
  StagePlan stage = Stage("whole", WholeNet(), {CrossEntropy(), FeatureLoss("l2", "layer2", 8, 16)}, 8);
  stage.optimizer.type = optimizer == "ema" ? "sgd" : optimizer;
  stage.optimizer.lr = stage.optimizer.type == "sgd" ? 0.1 : 1e-3;
  if (optimizer == "ema") {
    stage.optimizer.ema_decay = 0.9;
    stage.optimizer.decay_norms_and_biases = false;
    stage.optimizer.lr_mult = {{{"fc"}, 2}};
  }
  const JobPlan plan = SmallPlan({stage});
  const auto teacher = SmallTeacher(8);
  const auto source_at = [&](uint64_t step, uint32_t rank, uint32_t world, const StageRunner& runner) {
    auto source = std::make_unique<SyntheticSource>(step, 16, rank, world);
    source->SetTeacher(teacher, runner.teacher_taps());
    return source;
  };
  std::map<std::string, torch::Tensor> unbroken, resumed, halfway;
  SafetensorsFile state;
  OnRanks(ranks, [&, world = ranks](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, world, std::move(store));
    auto runner = rank.Runner();
    Train(runner.get(), source_at(0, r, world, *runner).get(), 0, 3);
    ASSERT_TRUE(BroadcastNet(rank.group.get(), rank.net.get(), true).ok());
    if (r == 0) {
      halfway = StateOf(*rank.net);
      state = runner->State();
    }
    Train(runner.get(), source_at(3, r, world, *runner).get(), 3, 8);
    if (r == 0) unbroken = StateOf(*rank.net);
    if (r == 0 && optimizer == "ema") {
      runner->average()->Swap();
      for (const auto& [name, tensor] : StateOf(*rank.net)) unbroken["average." + name] = tensor;
    }
  });
  OnRanks(ranks, [&, world = ranks](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, world, std::move(store));
    if (r == 0) {  // the other ranks have a fresh net: all that they need comes from rank 0
      torch::NoGradGuard no_grad;
      for (auto& item : rank.net->named_parameters()) item.value().copy_(halfway.at(item.key()));
      for (auto& item : rank.net->named_buffers()) item.value().copy_(halfway.at(item.key()));
    } else {
      rank.net->InitWeights(1234);
    }
    ASSERT_TRUE(BroadcastNet(rank.group.get(), rank.net.get(), false).ok());
    auto runner = rank.Runner();
    if (r == 0) {
      const Status loaded = runner->LoadState(state);
      ASSERT_TRUE(loaded.ok()) << loaded;
    }
    ASSERT_TRUE(runner->BroadcastState().ok());
    Train(runner.get(), source_at(3, r, world, *runner).get(), 3, 8);
    if (r == 0) resumed = StateOf(*rank.net);
    if (r == 0 && optimizer == "ema") {
      runner->average()->Swap();
      for (const auto& [name, tensor] : StateOf(*rank.net)) resumed["average." + name] = tensor;
    }
  });
  EXPECT_FALSE(Changed(halfway, unbroken).empty());
  EXPECT_THAT(Changed(unbroken, resumed), testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Optimizers, ResumeTest,
                         testing::Values(std::tuple("sgd", 1u), std::tuple("adam", 1u), std::tuple("sgd", 2u),
                                         std::tuple("adam", 2u), std::tuple("sgd", 3u), std::tuple("adamw", 1u),
                                         std::tuple("adamw", 2u), std::tuple("lamb", 1u), std::tuple("lamb", 2u),
                                         std::tuple("ema", 1u), std::tuple("ema", 2u)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "On" + std::to_string(std::get<1>(info.param));
                         });

TEST(StageRunnerTest, StateOfAnotherStageIsRefused) {
  Rank rank(SmallPlan({Stage("a", {"fc"}, {CrossEntropy()}, 1), Stage("b", {"layer3"}, {CrossEntropy()}, 1)}));
  const SafetensorsFile head = rank.Runner(0)->State();
  const Status status = rank.Runner(1)->LoadState(head);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
}

// Batch norm sees each rank's own part of the batch, so the comparison with one process is exact only where it is
// frozen.
TEST(DataParallelTest, TwoRanksEqualOneProcessWithTheWholeBatch) {
  for (const char* optimizer : {"sgd", "adam"}) {
    StagePlan stage =
        Stage("convolutions", {"conv1", "layer1.0.conv1", "layer2.0.conv2", "layer3.0.downsample.0", "fc"},
              {CrossEntropy(), FeatureLoss("cwd", "layer1", 4, 8)}, 6);
    stage.optimizer.type = optimizer;
    stage.optimizer.lr = 0.01;
    const JobPlan plan = SmallPlan({stage});
    const auto teacher = SmallTeacher(8);
    Rank alone(plan);
    auto runner = alone.Runner();
    SyntheticSource source(0, 32);
    source.SetTeacher(teacher, runner->teacher_taps());
    const auto expected = Train(runner.get(), &source, 0, 6);
    const auto expected_state = StateOf(*alone.net);
    std::vector<std::map<std::string, torch::Tensor>> states(2);
    OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
      Rank rank(plan, r, 2, std::move(store));
      auto mine = rank.Runner();
      SyntheticSource part(0, 32, r, 2);
      part.SetTeacher(teacher, mine->teacher_taps());
      const auto results = Train(mine.get(), &part, 0, 6);
      for (size_t s = 0; s < 6; ++s)
        EXPECT_NEAR(results[s].loss, expected[s].loss, 1e-4 * expected[s].loss) << "rank " << r << " step " << s;
      states[r] = StateOf(*rank.net);
    });
    EXPECT_THAT(Changed(states[0], states[1]), testing::IsEmpty());
    for (const auto& [name, tensor] : expected_state) {
      if (!tensor.is_floating_point()) continue;
      const double gap = (states[0][name] - tensor).abs().max().item<double>();
      EXPECT_LT(gap, 2e-4) << optimizer << " " << name;
    }
  }
}

TEST(DataParallelTest, NobodyStepsWhenOneRankFails) {
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy()}, 4)});
  OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, 2, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, 2);
    Train(runner.get(), &source, 0, 2);
    const std::vector<torch::Tensor> before = [&] {
      std::vector<torch::Tensor> copies;
      for (const torch::Tensor& parameter : rank.net->parameters()) copies.push_back(parameter.detach().clone());
      return copies;
    }();
    if (r == 1) source.error_ = absl::NotFoundError("the teacher is gone");
    const auto result = runner->Step(&source, 2);
    EXPECT_EQ(result.status().code(), r == 1 ? StatusCode::kNotFound : StatusCode::kAborted) << result.status();
    EXPECT_EQ(rank.lockstep->peer_failed(), r == 0);
    const auto parameters = rank.net->parameters();
    for (size_t i = 0; i < parameters.size(); ++i)
      EXPECT_TRUE(torch::equal(parameters[i], before[i])) << "parameter " << i;
  });
}

TEST(DataParallelTest, ALateRankIsWaitedFor) {
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy()}, 4)});
  std::vector<std::map<std::string, torch::Tensor>> states(2);
  for (int late : {0, 7}) {
    OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
      Rank rank(plan, r, 2, std::move(store));
      auto runner = rank.Runner();
      SyntheticSource source(0, 16, r, 2);
      if (r == 1) source.late_ = late;
      Train(runner.get(), &source, 0, 3);
      if (r == 0) states[late > 0 ? 1 : 0] = StateOf(*rank.net);
    });
  }
  EXPECT_THAT(Changed(states[0], states[1]), testing::IsEmpty());
}

TEST(DataParallelTest, ARequestToStopReachesAllRanksInTheSameStep) {
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy()}, 8)});
  OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, 2, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, 2);
    Train(runner.get(), &source, 0, 2);
    if (r == 1) rank.control.Cancel();
    const StepResult result = Train(runner.get(), &source, 2, 3)[0];
    EXPECT_TRUE(result.cancel) << "rank " << r;
    EXPECT_FALSE(result.terminate) << "rank " << r;
  });
}

TEST(DataParallelTest, ARequestToStopEndsTheWaitForATeacher) {
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {CrossEntropy()}, 8)});
  OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, 2, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, 2);
    if (r == 1) source.late_ = 1 << 30;
    if (r == 0) rank.control.Terminate();
    const auto before = StateOf(*rank.net);
    const StepResult result = Take(runner->Step(&source, 0));
    EXPECT_FALSE(result.stepped) << "rank " << r;
    EXPECT_TRUE(result.terminate) << "rank " << r;
    // Rank 0 had run the net already, which moves batch norms' statistics; a checkpoint must not hold half a step.
    EXPECT_THAT(Changed(before, StateOf(*rank.net)), testing::IsEmpty()) << "rank " << r;
  });
}

TEST(LockstepTest, WorkOfOneRankHoldsTheOthersAndItsErrorReachesThem) {
  const JobPlan plan = SmallPlan({});
  OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, 2, std::move(store));
    int ran = 0;
    const auto work = [&] {
      ++ran;
      return OkStatus();
    };
    EXPECT_TRUE(rank.lockstep->Together("test-work", r == 0 ? std::function<Status()>(work) : nullptr).ok());
    EXPECT_EQ(ran, r == 0 ? 1 : 0);
    const auto fails = []() -> Status { throw std::runtime_error("boom"); };
    const Status status = rank.lockstep->Together("test-work", r == 0 ? std::function<Status()>(fails) : nullptr);
    EXPECT_EQ(status.code(), r == 0 ? StatusCode::kInternal : StatusCode::kAborted) << status;
    EXPECT_EQ(rank.lockstep->peer_failed(), r == 1);
  });
}

TEST(TrainableSetTest, TheGuardRestoresEachModulesMode) {
  Rank rank(SmallPlan({}));
  ASSERT_TRUE(ApplyTrainable(rank.net.get(), {"layer2.0"}).ok());
  {
    const EvalModeGuard guard(rank.net.get());
    for (const auto& module : rank.net->modules(false)) EXPECT_FALSE(module->is_training());
  }
  EXPECT_TRUE(rank.net->FindModule("layer2.0.bn1")->is_training());
  EXPECT_FALSE(rank.net->FindModule("layer1.0.bn1")->is_training());
  EXPECT_FALSE(rank.net->FindModule("bn1")->is_training());
}

}  // namespace
}  // namespace distill
