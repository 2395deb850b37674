// What losses with layers, weight schedules and settings of their own do in training: the optimizer's groups, sleeping
// losses, checkpoints, exports, and teachers whose maps are broken.
#include "student_worker/train/objective.h"

#include "common/zoo/weights.h"
#include "student_worker/train/stage_optimizer.h"
#include "tests/student_worker/train/train_fixtures.h"

namespace distill {
namespace {

using testing::Contains;
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

std::map<std::string, std::vector<uint8_t>> Bytes(const SafetensorsFile& file) {
  std::map<std::string, std::vector<uint8_t>> bytes;
  for (const auto& [name, tensor] : file.tensors)
    bytes[name].assign(tensor.bytes.data, tensor.bytes.data + tensor.bytes.size);
  return bytes;
}

// ---- WeightFactor

WeightSchedulePlan Schedule(const std::string& type, double warmup = 0, double start = 0, double stop = 1) {
  return {.type = type, .warmup = warmup, .start = start, .stop = stop};
}

TEST(WeightFactorTest, ConstantIsOneBetweenStartAndStop) {
  EXPECT_EQ(WeightFactor({}, 0), 1);
  EXPECT_EQ(WeightFactor({}, 0.999), 1);
  const auto part = Schedule("constant", 0, 0.25, 0.75);
  EXPECT_EQ(WeightFactor(part, 0.2499), 0);
  EXPECT_EQ(WeightFactor(part, 0.25), 1);
  EXPECT_EQ(WeightFactor(part, 0.7499), 1);
  EXPECT_EQ(WeightFactor(part, 0.75), 0);
}

TEST(WeightFactorTest, LinearAndCosineFallToZeroAtStop) {
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("linear"), 0), 1);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("linear"), 0.25), 0.75);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("linear", 0, 0.5), 0.75), 0.5);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("cosine"), 0.5), 0.5);
  EXPECT_NEAR(WeightFactor(Schedule("cosine"), 1.0 / 3), 0.75, 1e-15);
  EXPECT_NEAR(WeightFactor(Schedule("cosine", 0, 0, 0.5), 0.4999999), 0, 1e-9);
}

TEST(WeightFactorTest, WarmUpRisesFromZeroAndIsAShareOfTheActiveTime) {
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("constant", 0.5), 0), 0);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("constant", 0.5), 0.25), 0.5);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("constant", 0.5), 0.5), 1);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("constant", 0.5, 0.5), 0.625), 0.5);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("linear", 0.5), 0.75), 0.5);
  EXPECT_DOUBLE_EQ(WeightFactor(Schedule("constant", 1), 0.9), 0.9);
}

// ---- StageOptimizer

struct Group {
  torch::Tensor parameter;
  ParameterGroup group;
};
Group OneParameter(const std::string& name, std::vector<float> values) {
  Group made;
  made.parameter = torch::tensor(values).requires_grad_(true);
  made.group.parameters = {{name, made.parameter}};
  return made;
}

OptimizerPlan PlainSgd(double lr = 0.1, double weight_decay = 0) {
  OptimizerPlan plan;
  plan.lr = lr;
  plan.momentum = 0;
  plan.weight_decay = weight_decay;
  return plan;
}

TEST(StageOptimizerTest, GroupsHaveRatesAndDecaysOfTheirOwn) {
  for (const char* type : {"sgd", "adam"}) {
    OptimizerPlan plan = PlainSgd(0.1, 0.5);
    plan.type = type;
    Group net = OneParameter("net", {1}), slow = OneParameter("slow", {1}), constant = OneParameter("constant", {1}),
          free = OneParameter("free", {1});
    slow.group.lr_mult = 0.1;
    constant.group.constant_lr = true;
    free.group.weight_decay = 0;
    auto optimizer = Take(StageOptimizer::Create(plan, {net.group, slow.group, constant.group, free.group}));
    optimizer->SetScheduleFactor(0.5);
    for (Group* group : {&net, &slow, &constant, &free}) group->parameter.mutable_grad() = torch::ones({1});
    optimizer->Step();
    const auto moved = [](const Group& group) { return 1 - group.parameter[0].item<double>(); };
    if (plan.type == "sgd") {  // rate * (gradient + decay * weight)
      EXPECT_NEAR(moved(net), 0.05 * 1.5, 1e-6);
      EXPECT_NEAR(moved(slow), 0.005 * 1.5, 1e-6);
      EXPECT_NEAR(moved(constant), 0.1 * 1.5, 1e-6);
      EXPECT_NEAR(moved(free), 0.05, 1e-6);
    } else {  // Adam's first step is the rate, whatever the gradient
      EXPECT_NEAR(moved(net), 0.05, 1e-5);
      EXPECT_NEAR(moved(slow), 0.005, 1e-5);
      EXPECT_NEAR(moved(constant), 0.1, 1e-5);
      EXPECT_NEAR(moved(free), 0.05, 1e-5);
    }
  }
}

TEST(StageOptimizerTest, ClippingBoundsTheNormOfAllGroupsTogether) {
  OptimizerPlan plan = PlainSgd(1);
  plan.clip_norm = 1;
  Group a = OneParameter("a", {0}), b = OneParameter("b", {0});
  auto optimizer = Take(StageOptimizer::Create(plan, {a.group, b.group}));
  a.parameter.mutable_grad() = torch::tensor({3.0f});
  b.parameter.mutable_grad() = torch::tensor({-4.0f});
  optimizer->Step();
  EXPECT_NEAR(a.parameter[0].item<double>(), -0.6, 1e-5);
  EXPECT_NEAR(b.parameter[0].item<double>(), 0.8, 1e-5);
  // Small gradients stay as they are.
  a.parameter.mutable_grad() = torch::tensor({0.3f});
  b.parameter.mutable_grad() = torch::tensor({0.4f});
  optimizer->Step();
  EXPECT_NEAR(a.parameter[0].item<double>(), -0.9, 1e-5);
  EXPECT_NEAR(b.parameter[0].item<double>(), 0.4, 1e-5);
  plan.clip_norm = -1;
  EXPECT_THAT(StageOptimizer::Create(plan, {a.group}).status().ToString(), HasSubstr("clip_norm is -1"));
}

// The decay trap, property 8 of the stage-by-stage specification.
TEST(StageOptimizerTest, WeightDecayMovesZeroGradientsButNotUndefinedOnes) {
  const OptimizerPlan plan = PlainSgd(0.1, 0.1);
  Group zero = OneParameter("zero", {1}), undefined = OneParameter("undefined", {1});
  auto optimizer = Take(StageOptimizer::Create(plan, {zero.group, undefined.group}));
  optimizer->ZeroGrad();
  zero.parameter.mutable_grad() = torch::zeros({1});
  optimizer->Step();
  EXPECT_NEAR(zero.parameter[0].item<double>(), 0.99, 1e-7);
  EXPECT_EQ(undefined.parameter[0].item<float>(), 1.0f);
  zero.parameter.mutable_grad() = torch::zeros({1});
  optimizer->ZeroGrad();
  EXPECT_FALSE(zero.parameter.grad().defined());
}

// ---- Losses with layers of their own

LossPlan Tat(const std::string& tap, uint32_t student, uint32_t teacher) {
  LossPlan loss = FeatureLoss("tat", tap, student, teacher);
  loss.adapter = "none";
  loss.knobs = {{"mode", "plain"}, {"gamma", "conv1x1_bn"}, {"phi", "conv3x3_bn"}, {"theta", "conv1x1_bn"}};
  return loss;
}
LossPlan ChannelTransform(const std::string& tap, uint32_t student, uint32_t teacher) {
  LossPlan loss = FeatureLoss("channel_transform", tap, student, teacher);
  loss.adapter = "none";
  loss.weight = 1e-3;
  return loss;
}
LossPlan Mgd(const std::string& tap, uint32_t student, uint32_t teacher) {
  LossPlan loss = FeatureLoss("mgd", tap, student, teacher);
  loss.weight = 1e-3;
  return loss;
}
// Three losses with layers, on a student of width 4 and a teacher of width 8.
std::vector<LossPlan> LossesWithLayers() {
  return {CrossEntropy(), ChannelTransform("layer1", 4, 8), Tat("layer2", 8, 16), Mgd("layer3", 16, 32)};
}

std::unique_ptr<SyntheticSource> SourceAt(uint64_t step, const std::shared_ptr<ZooNet>& teacher,
                                          const StageRunner& runner, uint32_t rank = 0, uint32_t ranks = 1) {
  auto source = std::make_unique<SyntheticSource>(step, 16, rank, ranks);
  source->SetTeacher(teacher, runner.teacher_taps());
  return source;
}

TEST(ObjectiveTest, NamesTermsDetailsAndOwnParameters) {
  Rank rank(SmallPlan({Stage("whole", WholeNet(), LossesWithLayers(), 2)}));
  auto runner = rank.Runner();
  EXPECT_EQ(runner->names(), (std::vector<std::string>{"cross_entropy", "channel_transform-layer1", "tat-layer2",
                                                       "mgd-layer3", "tat-layer2/entropy", "tat-layer2/max-weight"}));
  const auto result = Train(runner.get(), SourceAt(0, SmallTeacher(8), *runner).get(), 0, 1)[0];
  ASSERT_EQ(result.terms.size(), 6u);
  EXPECT_DOUBLE_EQ(result.loss, result.terms[0] + 1e-3 * result.terms[1] + result.terms[2] + 1e-3 * result.terms[3]);
  EXPECT_GT(result.terms[4], 0);  // nats over 36 positions
  EXPECT_LT(result.terms[4], std::log(36.0));
  EXPECT_GT(result.terms[5], 1.0 / 36);
  EXPECT_LE(result.terms[5], 1);
  const auto state = Bytes(runner->State());
  for (const char* name :
       {"loss.channel_transform-layer1.student.layer1.weight", "loss.channel_transform-layer1.student.layer2.bias",
        "loss.tat-layer2.gamma.weight", "loss.tat-layer2.gamma.norm_weight", "loss.tat-layer2.phi.norm_bias",
        "loss.tat-layer2.theta.weight", "loss.mgd-layer3.first.weight", "loss.mgd-layer3.second.bias",
        "adapter.mgd-layer3.weight", "optimizer.loss.tat-layer2.gamma.weight.momentum_buffer"}) {
    EXPECT_TRUE(state.contains(name)) << name;
  }
  EXPECT_FALSE(state.contains("adapter.tat-layer2.weight"));
}

TEST(ObjectiveTest, ItsOwnRateDecayAndScheduleHoldForALosssLayers) {
  const auto own_weight = [](const OwnParametersPlan& own, double schedule_end) {
    LossPlan loss = ChannelTransform("layer1", 4, 8);
    loss.own = own;
    StagePlan stage = Stage("mimic", {"layer1"}, {loss}, 2);
    stage.optimizer.momentum = 0;
    stage.optimizer.weight_decay = 0;
    stage.optimizer.lr = 0.01;
    stage.schedule.type = "step";
    stage.schedule.warmup = 0;
    stage.schedule.milestones = {0.4};
    stage.schedule.gamma = schedule_end;
    Rank rank(SmallPlan({stage}));
    auto runner = rank.Runner();
    auto source = SourceAt(0, SmallTeacher(8), *runner);
    const auto state = [&] {
      const auto bytes = Bytes(runner->State())["loss.channel_transform-layer1.student.layer2.weight"];
      torch::Tensor weight = torch::empty({8, 8});
      std::memcpy(weight.data_ptr(), bytes.data(), bytes.size());
      return weight;
    };
    std::vector<torch::Tensor> weights = {state()};
    for (uint64_t step = 0; step < 2; ++step) {
      Train(runner.get(), source.get(), step, step + 1);
      weights.push_back(state());
    }
    return weights;
  };
  const auto plain = own_weight({}, 1);
  const torch::Tensor first = plain[1] - plain[0];
  EXPECT_GT(first.abs().max().item<float>(), 0.0f);
  // Half the rate: half the first step. None: no step at all.
  const auto half = own_weight({.lr_mult = 0.5}, 1);
  EXPECT_TRUE(torch::allclose(half[1] - half[0], first * 0.5, 1e-3, 1e-6));
  const auto none = own_weight({.lr_mult = 0}, 1);
  EXPECT_TRUE(torch::equal(none[2], none[0]));
  // Weight decay of its own: a constant pull on top of the gradient.
  const auto decayed = own_weight({.weight_decay = 2}, 1);
  EXPECT_TRUE(torch::allclose(decayed[1] - decayed[0], first - 0.01 * 2 * plain[0], 1e-3, 1e-6));
  // The schedule's second step has next to no rate, but constant_lr does not see it.
  const auto scheduled = own_weight({}, 1e-6), constant = own_weight({.constant_lr = true}, 1e-6);
  EXPECT_TRUE(torch::allclose(scheduled[2], scheduled[1], 1e-5, 1e-7));
  EXPECT_GT((constant[2] - constant[1]).abs().max().item<float>(), 1e-5f);
}

TEST(ObjectiveTest, TheWeightScheduleScalesTheTermButNotWhatIsLogged) {
  LossPlan kd_like = FeatureLoss("l2", "layer2", 8, 16);
  kd_like.weight = 2;
  kd_like.weight_schedule = Schedule("linear");
  Rank rank(SmallPlan({Stage("whole", WholeNet(), {CrossEntropy(), kd_like}, 4)}));
  auto runner = rank.Runner();
  const auto results = Train(runner.get(), SourceAt(0, SmallTeacher(8), *runner).get(), 0, 4);
  for (size_t step = 0; step < 4; ++step) {
    const double factor = 1 - static_cast<double>(step) / 4;
    EXPECT_DOUBLE_EQ(results[step].loss, results[step].terms[0] + 2 * factor * results[step].terms[1]) << step;
    EXPECT_GT(results[step].terms[1], 0);
  }
}

TEST(ObjectiveTest, UnknownWeightSchedulesAreRefused) {
  LossPlan loss = CrossEntropy();
  loss.weight_schedule.type = "step";
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {loss}, 4)});
  EXPECT_THAT(Objective::Create(plan, plan.stages[0]).status().ToString(), HasSubstr("unknown weight schedule 'step'"));
}

// Property 6 of the channel-wise transformation's specification, too: with a weight of 0 the student's gradients are
// exactly those of plain training, and the layers' are 0.
class SleepingLossTest : public testing::TestWithParam<uint32_t> {};

TEST_P(SleepingLossTest, ItTeachesNothingUntilItWakes) {
  const uint32_t ranks = GetParam();
  std::vector<LossPlan> losses = LossesWithLayers();
  for (size_t i = 1; i < losses.size(); ++i) losses[i].weight_schedule = Schedule("constant", 0, 0.5);
  StagePlan stage = Stage("whole", WholeNet(), losses, 6);
  stage.optimizer.weight_decay = 0.01;  // a sleeping loss's layers do not shrink either
  StagePlan plain = Stage("whole", WholeNet(), {CrossEntropy()}, 6);
  plain.optimizer.weight_decay = 0.01;
  const auto teacher = SmallTeacher(8);
  std::map<std::string, torch::Tensor> asleep, awake, without, without_later;
  const JobPlan with_plan = SmallPlan({stage}), plain_plan = SmallPlan({plain});
  OnRanks(ranks, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(with_plan, r, ranks, std::move(store));
    auto runner = rank.Runner();
    auto source = SourceAt(0, teacher, *runner, r, ranks);
    const auto own = [&] {
      auto bytes = Bytes(runner->State());
      std::erase_if(bytes, [](const auto& item) {
        return !item.first.starts_with("loss.") && !item.first.starts_with("adapter.");
      });
      return bytes;
    };
    const auto before = own();
    for (const StepResult& result : Train(runner.get(), source.get(), 0, 3)) {
      for (size_t i = 1; i < result.terms.size(); ++i) EXPECT_EQ(result.terms[i], 0.0) << runner->names()[i];
      EXPECT_DOUBLE_EQ(result.loss, result.terms[0]);
    }
    EXPECT_EQ(own(), before);
    if (r == 0) asleep = StateOf(*rank.net);
    for (const StepResult& result : Train(runner.get(), source.get(), 3, 6)) {
      for (size_t i = 1; i < 4; ++i) EXPECT_GT(result.terms[i], 0.0) << runner->names()[i];
    }
    for (const auto& [name, bytes] : own()) EXPECT_NE(bytes, before.at(name)) << name;
    if (r == 0) awake = StateOf(*rank.net);
  });
  OnRanks(ranks, [&](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plain_plan, r, ranks, std::move(store));
    auto runner = rank.Runner();
    SyntheticSource source(0, 16, r, ranks);
    Train(runner.get(), &source, 0, 3);
    if (r == 0) without = StateOf(*rank.net);
    Train(runner.get(), &source, 3, 6);
    if (r == 0) without_later = StateOf(*rank.net);
  });
  EXPECT_THAT(Changed(asleep, without), IsEmpty());
  EXPECT_THAT(Changed(awake, without_later), Not(IsEmpty()));
}

INSTANTIATE_TEST_SUITE_P(Ranks, SleepingLossTest, testing::Values(1u, 2u));

// The weighted sum of the other terms, whatever is in the maps that a sleeping loss would read.
TEST(ObjectiveTest, ASleepingLossIsZeroWhateverTheStudentsMapHolds) {
  LossPlan asleep = FeatureLoss("l2", "layer2", 8, 16);
  asleep.weight_schedule = Schedule("constant", 0, 0.5);
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), {FeatureLoss("l2", "layer1", 4, 4), asleep}, 4)});
  const Objective objective = Take(Objective::Create(plan, plan.stages[0]));
  Objective::Inputs inputs;
  inputs.student = {torch::randn({2, 4, 3, 3}).requires_grad_(true),
                    torch::full({2, 8, 2, 2}, std::numeric_limits<float>::infinity()).requires_grad_(true)};
  inputs.teacher = {torch::randn({2, 4, 3, 3}), torch::randn({2, 16, 2, 2})};
  const Objective::Part part = Take(objective.Compute(inputs));
  const Objective::Value value = Take(objective.Combine(part, part.report, nullptr));
  EXPECT_GT(value.total.item<double>(), 0);
  EXPECT_NEAR(value.total.item<double>(), value.weighted, 1e-6);
  EXPECT_EQ(value.terms[1], 0.0);
  value.total.backward();
  EXPECT_EQ(inputs.student[1].grad().abs().max().item<float>(), 0.0f);
  for (const ParameterGroup& group : objective.OwnParameters()) {
    for (const NamedTensor& parameter : group.parameters) {
      EXPECT_EQ(parameter.tensor.grad().abs().max().item<float>(), 0.0f) << parameter.name;
    }
  }
}

// Property 17 of the channel-wise transformation's specification, T14 of the target-aware transformer's.
TEST(ObjectiveTest, TheExportedStudentHasNoneOfTheLayersAndTheSameLogits) {
  Rank rank(SmallPlan({Stage("whole", WholeNet(), LossesWithLayers(), 3)}));
  std::vector<std::string> expected;
  for (const StateEntry& entry : rank.net->architecture().StateDict()) expected.push_back(entry.name);
  std::sort(expected.begin(), expected.end());
  const torch::Tensor images = torch::rand({4, 1, 12, 12});
  const auto logits = [&](ZooNet* net) {
    torch::NoGradGuard no_grad;
    net->eval();
    return Take(net->Forward(images, {""}))[0];
  };
  torch::Tensor with_layers;
  {
    auto runner = rank.Runner();
    Train(runner.get(), SourceAt(0, SmallTeacher(8), *runner).get(), 0, 3);
    with_layers = logits(rank.net.get());
  }
  EXPECT_TRUE(torch::equal(logits(rank.net.get()), with_layers));  // the stage and its layers are gone
  const SafetensorsFile exported = SaveWeights(*rank.net);
  std::vector<std::string> names;
  for (const auto& [name, tensor] : exported.tensors) names.push_back(name);
  EXPECT_EQ(names, expected);
  auto fresh = Take(ZooNet::Create(SmallStudent()));
  ASSERT_TRUE(LoadWeights(exported, fresh.get()).ok());
  EXPECT_TRUE(torch::equal(logits(fresh.get()), with_layers));
}

// Property 5 and T13, T14: a step leaves the teacher's parameters and buffers bit-equal.
TEST(ObjectiveTest, TheTeacherStaysAsItIs) {
  Rank rank(SmallPlan({Stage("whole", WholeNet(), LossesWithLayers(), 3)}));
  const auto teacher = SmallTeacher(8);
  const auto before = StateOf(*teacher);
  auto runner = rank.Runner();
  Train(runner.get(), SourceAt(0, teacher, *runner).get(), 0, 3);
  EXPECT_THAT(Changed(before, StateOf(*teacher)), IsEmpty());
  for (const torch::Tensor& parameter : teacher->parameters()) EXPECT_FALSE(parameter.grad().defined());
}

TEST(ObjectiveTest, TheLayersOfAStageStartAnewAndDifferBetweenStages) {
  const LossPlan loss = ChannelTransform("layer1", 4, 8);
  Rank rank(SmallPlan({Stage("a", {"layer1"}, {loss}, 2), Stage("b", {"layer1"}, {loss}, 2)}));
  const auto a = Bytes(rank.Runner(0)->State()), again = Bytes(rank.Runner(0)->State()),
             b = Bytes(rank.Runner(1)->State());
  const std::string name = "loss.channel_transform-layer1.student.layer1.weight";
  EXPECT_EQ(a.at(name), again.at(name));
  EXPECT_NE(a.at(name), b.at(name));
}

// ---- Broken teacher maps

std::map<std::string, torch::Tensor> ParametersOf(const ZooNet& net) {
  std::map<std::string, torch::Tensor> copies;
  for (const auto& item : net.named_parameters()) copies[item.key()] = item.value().detach().clone();
  return copies;
}

TEST(BrokenTeacherMapTest, TheStepIsSkippedOnAllRanksAndTrainingGoesOn) {
  const auto teacher = SmallTeacher(8);
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), LossesWithLayers(), 6)});
    std::vector<std::map<std::string, torch::Tensor>> ends(2);
    testing::internal::CaptureStderr();
    OnRanks(2, [&](uint32_t r, std::shared_ptr<KvClient> store) {
      Rank rank(plan, r, 2, std::move(store));
      auto runner = rank.Runner();
      auto source = SourceAt(0, teacher, *runner, r, 2);
      Train(runner.get(), source.get(), 0, 2);
      const auto before = ParametersOf(*rank.net), whole = StateOf(*rank.net);
      const auto state = Bytes(runner->State());
      source->poison_with_ = bad;
      source->poison_ = r == 1;  // rank 0's maps are sound
      for (const StepResult& result : Train(runner.get(), source.get(), 2, 4)) {
        EXPECT_TRUE(result.skipped) << "rank " << r;
        EXPECT_THAT(result.terms, IsEmpty());
      }
      EXPECT_THAT(Changed(whole, StateOf(*rank.net)), IsEmpty()) << "rank " << r;
      EXPECT_EQ(Bytes(runner->State()), state) << "rank " << r;
      source->poison_ = false;
      for (const StepResult& result : Train(runner.get(), source.get(), 4, 6)) {
        EXPECT_FALSE(result.skipped) << "rank " << r;
        EXPECT_FALSE(result.terms.empty());
      }
      EXPECT_THAT(Changed(before, ParametersOf(*rank.net)), Not(IsEmpty()));
      ends[r] = ParametersOf(*rank.net);
    });
    const std::string log = testing::internal::GetCapturedStderr();
    EXPECT_THAT(Changed(ends[0], ends[1]), IsEmpty());
    EXPECT_THAT(log, HasSubstr("a teacher map holds NaN or infinity; the step is skipped"));
    EXPECT_THAT(log, testing::AllOf(HasSubstr("stage=whole"), HasSubstr("step=2"), HasSubstr("tap=layer1"),
                                    HasSubstr("in_a_row=2")));
  }
}

TEST(BrokenTeacherMapTest, AResumedStageSkipsTheSameStepAndEndsEqual) {
  const auto teacher = SmallTeacher(8);
  const JobPlan plan = SmallPlan({Stage("whole", WholeNet(), LossesWithLayers(), 4)});
  // Skipping a step is the same as never having had it.
  const auto run = [&](bool poison) {
    Rank rank(plan);
    auto runner = rank.Runner();
    Train(runner.get(), SourceAt(0, teacher, *runner).get(), 0, 1);
    if (poison) {
      auto broken = SourceAt(1, teacher, *runner);
      broken->poison_ = true;
      Train(runner.get(), broken.get(), 1, 2);
    }
    Train(runner.get(), SourceAt(2, teacher, *runner).get(), 2, 4);
    return StateOf(*rank.net);
  };
  EXPECT_THAT(Changed(run(true), run(false)), IsEmpty());
}

TEST(BrokenTeacherMapTest, TwentyInARowFailWithTheTapsName) {
  LossPlan output = FeatureLoss("l2", "layer1", 4, 8);
  Rank rank(SmallPlan({Stage("mimic", {"layer1"}, {output}, 60)}));
  auto runner = rank.Runner();
  auto source = SourceAt(0, SmallTeacher(8), *runner);
  testing::internal::CaptureStderr();
  source->poison_ = true;
  Train(runner.get(), source.get(), 0, 19);
  source->poison_ = false;
  Train(runner.get(), source.get(), 19, 20);  // a sound one: the count begins again
  source->poison_ = true;
  Train(runner.get(), source.get(), 20, 39);
  const auto result = runner->Step(source.get(), 39);
  testing::internal::GetCapturedStderr();
  EXPECT_EQ(result.status().code(), StatusCode::kFailedPrecondition);
  for (const char* part : {"'mimic'", "step 39", "tap 'layer1'", "20 steps in a row", "wire_dtype"}) {
    EXPECT_THAT(result.status().ToString(), HasSubstr(part));
  }
  EXPECT_FALSE(IsNotFinite(result.status()));
}

WireTensor MapOf(float largest) {
  WireTensor map{.shape = {2, 1, 1, 1}, .largest = largest};
  map.bytes = Buffer::FromVector(std::vector<uint8_t>(8));
  return map;
}

TEST(BrokenTeacherMapTest, FindsTheFirstTapThatIsNotFinite) {
  const std::vector<TapRequest> taps = {{"", WireDtype::kF32, false}, {"layer1", WireDtype::kF32, false}};
  const auto first = [&](float output, float map) {
    return Objective::LookAt(taps, {MapOf(output), MapOf(map)}).not_finite;
  };
  for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(first(3e38f, bad), "layer1");
    EXPECT_EQ(first(bad, bad), "output");
  }
  EXPECT_EQ(first(3e38f, 3e38f), "");
  EXPECT_THAT(Objective::LookAt({{"layer1"}}, {WireTensor{.shape = {0, 1, 1, 1}}}).vanished, IsEmpty());
}

// A half-precision wire rounds 1e-9 to 0 without a word.
TEST(BrokenTeacherMapTest, MapsThatVanishAreNamedWithTheRemedy) {
  const auto vanished = [](WireDtype dtype, float largest, bool less_row_max = false) {
    return Objective::LookAt({{"layer1", dtype, less_row_max}}, {MapOf(largest)}).vanished;
  };
  for (float largest : {0.0f, 5e-5f}) {
    EXPECT_THAT(vanished(WireDtype::kF16, largest),
                testing::ElementsAre(testing::AllOf(HasSubstr("'layer1'"), HasSubstr("wire_dtype to bf16 or f32"))));
  }
  EXPECT_THAT(vanished(WireDtype::kF16, 1e-3f), IsEmpty());
  for (WireDtype dtype : {WireDtype::kBf16, WireDtype::kF32}) {
    EXPECT_THAT(vanished(dtype, 0), testing::ElementsAre(HasSubstr("'layer1' is 0 everywhere")));
    EXPECT_THAT(vanished(dtype, 5e-5f), IsEmpty());
  }
  EXPECT_THAT(vanished(WireDtype::kBf16, 0, true), testing::ElementsAre(HasSubstr("constant in each channel")));
}

TEST(BrokenTeacherMapTest, AStageSaysOnceThatAMapVanished) {
  Rank rank(SmallPlan({Stage("mimic", {"layer1"}, {FeatureLoss("l2", "layer1", 4, 8)}, 4)}));
  auto runner = rank.Runner();
  const auto teacher = SmallTeacher(8);
  {
    torch::NoGradGuard no_grad;
    for (auto& item : teacher->named_parameters()) item.value().zero_();
  }
  testing::internal::CaptureStderr();
  Train(runner.get(), SourceAt(0, teacher, *runner).get(), 0, 2);
  testing::internal::GetCapturedStderr();
  EXPECT_THAT(runner->TakeWarnings(),
              testing::ElementsAre(testing::AllOf(HasSubstr("'mimic'"), HasSubstr("step 0"), HasSubstr("'layer1'"))));
  Train(runner.get(), SourceAt(2, teacher, *runner).get(), 2, 4);
  EXPECT_THAT(runner->TakeWarnings(), IsEmpty());
}

// ---- Resuming with layers: (optimizer, ranks)

class ResumeWithLayersTest : public testing::TestWithParam<std::tuple<std::string, uint32_t>> {};

TEST_P(ResumeWithLayersTest, AResumedStageIsBitIdenticalToAnUnbrokenOne) {
  const auto& [optimizer, ranks] = GetParam();
  std::vector<LossPlan> losses = LossesWithLayers();
  losses[2].weight_schedule = Schedule("cosine", 0.3, 0.1, 0.9);
  losses[3].own = {.lr_mult = 0.5, .constant_lr = true, .weight_decay = 0};
  StagePlan stage = Stage("whole", WholeNet(), losses, 8);
  stage.optimizer.type = optimizer;
  stage.optimizer.lr = optimizer == "adam" ? 1e-3 : 0.02;
  stage.optimizer.clip_norm = 5;
  const JobPlan plan = SmallPlan({stage});
  const auto teacher = SmallTeacher(8);
  std::map<std::string, torch::Tensor> unbroken, resumed, halfway;
  std::map<std::string, std::vector<uint8_t>> unbroken_state, resumed_state;
  SafetensorsFile state;
  OnRanks(ranks, [&, world = ranks](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, world, std::move(store));
    auto runner = rank.Runner();
    Train(runner.get(), SourceAt(0, teacher, *runner, r, world).get(), 0, 3);
    ASSERT_TRUE(BroadcastNet(rank.group.get(), rank.net.get(), true).ok());
    if (r == 0) {
      halfway = StateOf(*rank.net);
      state = runner->State();
    }
    Train(runner.get(), SourceAt(3, teacher, *runner, r, world).get(), 3, 8);
    if (r == 0) {
      unbroken = StateOf(*rank.net);
      unbroken_state = Bytes(runner->State());
    }
  });
  OnRanks(ranks, [&, world = ranks](uint32_t r, std::shared_ptr<KvClient> store) {
    Rank rank(plan, r, world, std::move(store));
    if (r == 0) {
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
    Train(runner.get(), SourceAt(3, teacher, *runner, r, world).get(), 3, 8);
    if (r == 0) {
      resumed = StateOf(*rank.net);
      resumed_state = Bytes(runner->State());
    }
  });
  EXPECT_FALSE(Changed(halfway, unbroken).empty());
  EXPECT_THAT(Changed(unbroken, resumed), IsEmpty());
  EXPECT_EQ(unbroken_state, resumed_state);
  EXPECT_NE(Bytes(state), unbroken_state);
}

INSTANTIATE_TEST_SUITE_P(Optimizers, ResumeWithLayersTest,
                         testing::Values(std::tuple("sgd", 1u), std::tuple("adam", 1u), std::tuple("sgd", 2u),
                                         std::tuple("adam", 2u)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "On" + std::to_string(std::get<1>(info.param));
                         });

TEST(ObjectiveTest, TheMasksOfMgdDifferBetweenSteps) {
  // The same images and teacher in every step: only the draw changes the term.
  StagePlan stage = Stage("mimic", {"layer3"}, {Mgd("layer3", 16, 32)}, 4);
  stage.optimizer.lr = 0;
  const JobPlan plan = SmallPlan({stage});
  Rank rank(plan);
  auto runner = rank.Runner();
  const auto teacher = SmallTeacher(8);
  std::vector<double> terms;
  for (uint64_t step = 0; step < 3; ++step) {
    terms.push_back(Train(runner.get(), SourceAt(0, teacher, *runner).get(), step, step + 1)[0].terms[0]);
  }
  EXPECT_NE(terms[0], terms[1]);
  EXPECT_NE(terms[1], terms[2]);
  EXPECT_EQ(Train(runner.get(), SourceAt(0, teacher, *runner).get(), 0, 1)[0].terms[0], terms[0]);
}

}  // namespace
}  // namespace distill
