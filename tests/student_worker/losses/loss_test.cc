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

TEST(L2LossTest, SumOverBatchIsTheMeanTimesTheSizeOfAMap) {
  torch::manual_seed(3);
  const torch::Tensor s = torch::randn({4, 3, 5, 2}, torch::kFloat64), t = torch::randn({4, 3, 5, 2}, torch::kFloat64);
  const double mean = Value(*Build("l2"), {s, t, {}});
  EXPECT_NEAR(Value(*Build("l2", {{"reduction", "sum_over_batch"}}), {s, t, {}}), 30 * mean, 1e-11);
  ExpectGradientMatchesDifferences(*Build("l2"), {s, t, {}});
}

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

}  // namespace
}  // namespace distill
