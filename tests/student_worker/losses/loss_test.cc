// The losses on logits and features that are short enough to work by hand, the factory, and the adapter.
#include "student_worker/losses/loss.h"

#include "student_worker/losses/conv_block.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;

torch::Tensor Doubles(std::vector<double> values, std::vector<int64_t> shape) {
  return torch::tensor(values, torch::kFloat64).reshape(shape);
}

TEST(CrossEntropyLossTest, HandWorkedValues) {
  // softmax(0, ln 3) = (1/4, 3/4): loss = -ln(3/4) for label 1, -ln(1/4) for label 0.
  const torch::Tensor logits = Doubles({0, std::log(3.0), 0, std::log(3.0)}, {2, 2});
  const torch::Tensor labels = torch::tensor({1, 0}, torch::kInt64);
  const auto [value, gradient] = Differentiate(*Build("cross_entropy"), {logits, {}, labels});
  EXPECT_NEAR(value, 0.5 * (0.2876820724518 + 1.3862943611199), 1e-12);
  EXPECT_NEAR(gradient[0][1].item<double>(), 0.5 * (0.75 - 1), 1e-12);
  EXPECT_NEAR(gradient[1][1].item<double>(), 0.5 * 0.75, 1e-12);
}

TEST(CrossEntropyLossTest, LabelSmoothingSpreadsOverAllClasses) {
  const auto loss = Build("cross_entropy", {{"label_smoothing", 0.1}});
  const torch::Tensor labels = torch::tensor({1}, torch::kInt64);
  // 0.9 * 0.28768 + 0.1 * (1.38629 + 0.28768) / 2
  EXPECT_NEAR(Value(*loss, {Doubles({0, std::log(3.0)}, {1, 2}), {}, labels}), 0.3426126867852, 1e-10);
  torch::manual_seed(1);
  const torch::Tensor logits = torch::randn({5, 7}, torch::kFloat64);
  const torch::Tensor random_labels = torch::randint(0, 7, {5}, torch::kInt64);
  const auto options = torch::nn::functional::CrossEntropyFuncOptions().label_smoothing(0.1);
  EXPECT_NEAR(Value(*loss, {logits, {}, random_labels}),
              torch::nn::functional::cross_entropy(logits, random_labels, options).item<double>(), 1e-12);
  ExpectGradientMatchesDifferences(*loss, {logits, {}, random_labels});
}

TEST(CrossEntropyLossTest, RefusesLabelsThatDoNotFit) {
  const auto loss = Build("cross_entropy");
  EXPECT_EQ(loss->Compute({torch::zeros({3, 2}), {}, torch::zeros({2}, torch::kInt64)}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(loss->Compute({torch::zeros({3, 2}), {}, {}}).status().code(), StatusCode::kInvalidArgument);
}

TEST(KdLossTest, HandWorkedValues) {
  // At T = 2: p = softmax(ln 3, 0) = (3/4, 1/4), q = (1/2, 1/2), KL = 0.75 ln 1.5 + 0.25 ln 0.5 = 0.1308120359.
  const auto loss = Build("kd", {{"temperature", 2.0}});
  const auto one = Differentiate(*loss, {Doubles({0, 0}, {1, 2}), Doubles({2 * std::log(3.0), 0}, {1, 2}), {}});
  EXPECT_NEAR(one.loss, 4 * 0.1308120359411, 1e-11);
  EXPECT_NEAR(one.gradient[0][0].item<double>(), 2 * (0.5 - 0.75), 1e-12);
  EXPECT_NEAR(one.gradient[0][1].item<double>(), 2 * (0.5 - 0.25), 1e-12);
  // A second sample that agrees with its teacher halves the mean.
  const auto two = Value(*loss, {Doubles({0, 0, 5, 1}, {2, 2}), Doubles({2 * std::log(3.0), 0, 5, 1}, {2, 2}), {}});
  EXPECT_NEAR(two, 2 * 0.1308120359411, 1e-11);
}

TEST(KdLossTest, MatchesTorchsKlDivergenceAndDifferences) {
  torch::manual_seed(2);
  const torch::Tensor s = torch::randn({6, 10}, torch::kFloat64) * 3, t = torch::randn({6, 10}, torch::kFloat64) * 3;
  const auto loss = Build("kd", {{"temperature", 4.0}});
  const torch::Tensor reference = 16 *
                                  torch::kl_div(torch::log_softmax(s / 4, 1), torch::log_softmax(t / 4, 1),
                                                at::Reduction::Sum, /*log_target=*/true) /
                                  6;
  EXPECT_NEAR(Value(*loss, {s, t, {}}), reference.item<double>(), 1e-12);
  ExpectGradientMatchesDifferences(*loss, {s, t, {}});
  EXPECT_EQ(Value(*loss, {t, t, {}}), 0.0);
}

TEST(L2LossTest, HandWorkedValues) {
  const torch::Tensor s = Doubles({1, 2, 0, 4}, {1, 1, 2, 2}), t = Doubles({1, 0, 3, 4}, {1, 1, 2, 2});
  const auto mean = Differentiate(*Build("l2"), {s, t, {}});
  EXPECT_DOUBLE_EQ(mean.loss, 3.25);
  EXPECT_DOUBLE_EQ(mean.gradient.flatten()[1].item<double>(), 1.0);   // 2 * (2 - 0) / 4
  EXPECT_DOUBLE_EQ(mean.gradient.flatten()[2].item<double>(), -1.5);  // 2 * (0 - 3) / 4
  EXPECT_DOUBLE_EQ(Value(*Build("l2", {{"reduction", "sum_over_batch"}}), {s, t, {}}), 13.0);
}

// Property 11 of the stage-by-stage specification (SSKD).
TEST(L2LossTest, SumOverBatchIsTheMeanTimesTheSizeOfAMap) {
  torch::manual_seed(3);
  const torch::Tensor s = torch::randn({4, 3, 5, 2}, torch::kFloat64), t = torch::randn({4, 3, 5, 2}, torch::kFloat64);
  const double mean = Value(*Build("l2"), {s, t, {}});
  EXPECT_NEAR(Value(*Build("l2", {{"reduction", "sum_over_batch"}}), {s, t, {}}), 30 * mean, 1e-11);
  ExpectGradientMatchesDifferences(*Build("l2"), {s, t, {}});
}

// Property 13.
TEST(L2LossTest, PostReluLossIsAtMostThePreReluLoss) {
  torch::manual_seed(4);
  const torch::Tensor s = torch::randn({2, 3, 4, 4}), t = torch::randn({2, 3, 4, 4});
  EXPECT_LE(Value(*Build("l2"), {s.relu(), t.relu(), {}}), Value(*Build("l2"), {s, t, {}}));
}

TEST(MakeLossTest, NamesTheNearestTypeAndKnob) {
  LossPlan plan;
  plan.name = "feature";
  plan.type = "cwb";
  const auto unknown = MakeLoss(plan);
  EXPECT_EQ(unknown.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(unknown.status().ToString(), HasSubstr("feature"));
  EXPECT_THAT(unknown.status().ToString(), HasSubstr("did you mean 'cwd'"));
  plan.type = "cwd";
  plan.knobs = {{"temprature", 4.0}};
  const auto knob = MakeLoss(plan);
  EXPECT_EQ(knob.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(knob.status().ToString(), HasSubstr("temperature"));
}

TEST(AdapterTest, IsAOneByOneConvolutionOfTheSeed) {
  LossPlan plan;
  plan.name = "l2-1";
  plan.adapter = "conv1x1";
  plan.student_channels = 3;
  plan.teacher_channels = 5;
  const auto a = MakeAdapter(plan, SeedFor("stage-1", 7));
  torch::manual_seed(99);  // the global generator must not matter
  const auto b = MakeAdapter(plan, SeedFor("stage-1", 7));
  const auto other_seed = MakeAdapter(plan, SeedFor("stage-1", 8));
  const auto other_stage = MakeAdapter(plan, SeedFor("stage-2", 7));
  ASSERT_TRUE(a.ok() && b.ok() && other_seed.ok() && other_stage.ok());
  EXPECT_TRUE(torch::equal((*a)->weight, (*b)->weight));
  EXPECT_FALSE(torch::equal((*a)->weight, (*other_seed)->weight));
  EXPECT_FALSE(torch::equal((*a)->weight, (*other_stage)->weight));
  EXPECT_LE((*a)->weight.abs().max().item<float>(), 1 / std::sqrt(3.0f));
  EXPECT_EQ((*a)->parameters().size(), 1u);
  EXPECT_TRUE((*a)->weight.requires_grad());

  const torch::Tensor x = torch::randn({2, 3, 4, 4});
  const torch::Tensor y = (*a)->forward(x);
  const torch::Tensor by_hand = torch::einsum("oi,nihw->nohw", {(*a)->weight.flatten(1), x});
  EXPECT_LT((y - by_hand).abs().max().item<float>(), 1e-5);
}

// Property 10.
TEST(AdapterTest, IdentityWeightsGiveTheLossOfNoAdapter) {
  ConvBlock adapter({.in = 4, .out = 4}, 1);
  {
    torch::NoGradGuard no_grad;
    adapter.weight.copy_(torch::eye(4).view({4, 4, 1, 1}));
  }
  torch::manual_seed(5);
  const torch::Tensor s = torch::randn({2, 4, 3, 3}), t = torch::randn({2, 4, 3, 3});
  EXPECT_NEAR(Value(*Build("l2"), {adapter.forward(s), t, {}}), Value(*Build("l2"), {s, t, {}}), 1e-6);
}

TEST(AdapterTest, NoneGivesNullAndUnknownKindsAreRefused) {
  LossPlan plan;
  plan.name = "l2-1";
  const auto none = MakeAdapter(plan, 1);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
  plan.adapter = "conv5x5";
  EXPECT_EQ(MakeAdapter(plan, 1).status().code(), StatusCode::kInvalidArgument);
  plan.adapter = "conv1x1";
  EXPECT_EQ(MakeAdapter(plan, 1).status().code(), StatusCode::kInvalidArgument);
}

// y = norm(conv(x)) as torch's own modules compute it, with the block's weights.
torch::Tensor Convolved(const ConvBlock& block, const torch::Tensor& x) {
  const int64_t kernel = block.options().kernel;
  torch::nn::Conv2d conv(torch::nn::Conv2dOptions(block.options().in, block.options().out, kernel)
                             .padding(kernel / 2)
                             .bias(block.options().bias));
  torch::NoGradGuard no_grad;
  conv->weight.copy_(block.weight);
  if (block.options().bias) conv->bias.copy_(block.bias);
  return conv->forward(x);
}

TEST(ConvBlockTest, EveryNormIsTheOneOfTorchsModules) {
  torch::manual_seed(6);
  const torch::Tensor x = torch::randn({3, 4, 5, 6}) * 2 + 1;
  using Norm = ConvBlock::Norm;
  for (Norm norm : {Norm::kNone, Norm::kBatch, Norm::kPerSample, Norm::kFrozen}) {
    for (int64_t kernel : {1, 3}) {
      ConvBlock block({.in = 4, .out = 7, .kernel = kernel, .bias = kernel == 3, .norm = norm}, 11);
      torch::NoGradGuard no_grad;
      if (norm != Norm::kNone) {
        block.norm_weight.copy_(torch::randn({7}));
        block.norm_bias.copy_(torch::randn({7}));
      }
      torch::Tensor expected = Convolved(block, x);
      if (norm == Norm::kPerSample) {
        torch::nn::InstanceNorm2d module(torch::nn::InstanceNorm2dOptions(7).affine(true));
        module->weight.copy_(block.norm_weight);
        module->bias.copy_(block.norm_bias);
        expected = module->forward(expected);
      } else if (norm != Norm::kNone) {
        torch::nn::BatchNorm2d module(7);
        module->train(norm == Norm::kBatch);
        module->weight.copy_(block.norm_weight);
        module->bias.copy_(block.norm_bias);
        expected = module->forward(expected);
      }
      const torch::Tensor y = block.forward(x);
      EXPECT_LT((y - expected).abs().max().item<float>(), 2e-5f) << static_cast<int>(norm) << " kernel " << kernel;
      // Without running statistics: the same again, and in eval mode.
      EXPECT_TRUE(torch::equal(block.forward(x), y));
      block.eval();
      EXPECT_TRUE(torch::equal(block.forward(x), y));
      EXPECT_TRUE(block.buffers().empty());
    }
  }
}

TEST(ConvBlockTest, GradientsAreRightForOneSampleBehindATransposition) {
  // Where torch's batch norm alone is wrong: one contiguous sample, and a gradient that lies as channels last.
  torch::manual_seed(9);
  const torch::Tensor weights = torch::randn({1, 12, 5}, torch::kFloat64);
  for (ConvBlock::Norm norm : {ConvBlock::Norm::kBatch, ConvBlock::Norm::kPerSample}) {
    ConvBlock block({.in = 2, .out = 5, .norm = norm}, 1);
    const auto value = [&](const torch::Tensor& x) {
      return (block.forward(x).flatten(2).transpose(1, 2).square() * weights).sum();
    };
    const torch::Tensor x = torch::randn({1, 2, 3, 4}, torch::kFloat64);
    const torch::Tensor leaf = x.clone().requires_grad_(true);
    value(leaf).backward();
    torch::NoGradGuard no_grad;
    for (int64_t i = 0; i < x.numel(); ++i) {
      torch::Tensor up = x.clone(), down = x.clone();
      up.flatten()[i] += 1e-5;
      down.flatten()[i] -= 1e-5;
      const double numeric = (value(up) - value(down)).item<double>() / 2e-5;
      EXPECT_NEAR(leaf.grad().flatten()[i].item<double>(), numeric, 1e-5 * std::max(1.0, std::abs(numeric))) << i;
    }
  }
}

TEST(ConvBlockTest, PerSampleIsBatchNormOfOneSampleAtATime) {
  torch::manual_seed(7);
  const torch::Tensor x = torch::randn({3, 4, 5, 5});
  ConvBlock batch({.in = 4, .out = 4, .norm = ConvBlock::Norm::kBatch}, 3);
  ConvBlock alone({.in = 4, .out = 4, .norm = ConvBlock::Norm::kPerSample}, 3);
  const torch::Tensor y = alone.forward(x);
  for (int64_t n = 0; n < 3; ++n) {
    EXPECT_LT((batch.forward(x.slice(0, n, n + 1)) - y.slice(0, n, n + 1)).abs().max().item<float>(), 1e-5f);
  }
}

TEST(ConvBlockTest, ActivationsFollowTheNorm) {
  torch::manual_seed(8);
  const torch::Tensor x = torch::randn({2, 3, 4, 4});
  using Activation = ConvBlock::Activation;
  ConvBlock none({.in = 3, .out = 5, .norm = ConvBlock::Norm::kBatch}, 4);
  const torch::Tensor y = none.forward(x);
  ConvBlock relu({.in = 3, .out = 5, .norm = ConvBlock::Norm::kBatch, .activation = Activation::kRelu}, 4);
  ConvBlock gelu({.in = 3, .out = 5, .norm = ConvBlock::Norm::kBatch, .activation = Activation::kGelu}, 4);
  EXPECT_TRUE(torch::equal(relu.forward(x), y.relu()));
  EXPECT_TRUE(torch::equal(gelu.forward(x), torch::gelu(y)));
}

TEST(ConvBlockTest, WeightsComeFromTheSeedWithinTorchsBounds) {
  const ConvBlock::Options options{.in = 8, .out = 64, .kernel = 3, .bias = true, .norm = ConvBlock::Norm::kBatch};
  ConvBlock a(options, 1);
  torch::manual_seed(99);  // the global generator must not matter
  ConvBlock b(options, 1), c(options, 2);
  EXPECT_TRUE(torch::equal(a.weight, b.weight));
  EXPECT_TRUE(torch::equal(a.bias, b.bias));
  EXPECT_FALSE(torch::equal(a.weight, c.weight));
  // Uniform in +-1/sqrt(fan in): nothing beyond, something near the ends, mean near 0.
  const double bound = 1 / std::sqrt(8.0 * 9);
  EXPECT_LE(a.weight.abs().max().item<double>(), bound * (1 + 1e-6));
  EXPECT_GT(a.weight.abs().max().item<double>(), 0.99 * bound);
  EXPECT_LE(a.bias.abs().max().item<double>(), bound * (1 + 1e-6));
  EXPECT_LT(std::abs(a.weight.mean().item<double>()), 0.05 * bound);
  EXPECT_TRUE(torch::equal(a.norm_weight, torch::ones({64})));
  EXPECT_TRUE(torch::equal(a.norm_bias, torch::zeros({64})));
  std::vector<std::string> names;
  for (const auto& item : a.named_parameters()) names.push_back(item.key());
  EXPECT_EQ(names, (std::vector<std::string>{"weight", "bias", "norm_weight", "norm_bias"}));
}

TEST(ConvBlockTest, ComputesInTheInputsType) {
  ConvBlock block({.in = 3, .out = 5, .bias = true, .norm = ConvBlock::Norm::kPerSample}, 5);
  const torch::Tensor x = torch::randn({2, 3, 4, 4}, torch::kFloat64);
  const torch::Tensor y = block.forward(x);
  EXPECT_EQ(y.scalar_type(), torch::kFloat64);
  EXPECT_LT((y - block.forward(x.to(torch::kFloat32))).abs().max().item<double>(), 1e-5);
}

TEST(AdapterTest, EachKindHasItsLayers) {
  LossPlan plan;
  plan.name = "cwd-1";
  plan.student_channels = 3;
  plan.teacher_channels = 5;
  struct Kind {
    const char* adapter;
    int64_t kernel;
    size_t parameters;
    bool negative;  // whether it puts out negative values
  };
  for (const Kind& kind : {Kind{"conv1x1", 1, 1, true},
                           {"conv3x3", 3, 1, true},
                           {"conv1x1_bn", 1, 3, true},
                           {"conv1x1_bn_relu", 1, 3, false}}) {
    plan.adapter = kind.adapter;
    const auto adapter = MakeAdapter(plan, 1);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    EXPECT_EQ((*adapter)->weight.size(2), kind.kernel) << kind.adapter;
    EXPECT_EQ((*adapter)->parameters().size(), kind.parameters) << kind.adapter;
    const torch::Tensor y = (*adapter)->forward(torch::randn({2, 3, 4, 4}));
    EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 5, 4, 4})) << kind.adapter;
    EXPECT_EQ(y.min().item<float>() < 0, kind.negative) << kind.adapter;
  }
}

}  // namespace
}  // namespace distill
