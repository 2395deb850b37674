// The losses that are there for comparison: at, sp, dkd, mgd, pixel_kd, l1, smooth_l1, each against its formula.
// (Differences, refusals and the like are every loss's: every_loss_test.cc.)
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

torch::Tensor Doubles(std::vector<double> values, std::vector<int64_t> shape) {
  return torch::tensor(values, torch::kFloat64).reshape(shape);
}

torch::Tensor Random(const std::vector<int64_t>& shape, uint64_t seed, double scale = 1) {
  torch::manual_seed(seed);
  return torch::randn(shape, torch::kFloat64) * scale;
}

// Numbers marked "wave" come from this Python, in float64:
//   wave = lambda shape, phase, scale: scale * torch.sin(0.37 * torch.arange(prod(shape))**2 + phase).reshape(shape)

TEST(AtLossTest, HandWorkedValues) {
  // Energies (1, 1) and (9, 16): maps (1, 1) / sqrt 2 and (9, 16) / sqrt 337.
  const torch::Tensor s = Doubles({1, -1}, {1, 1, 1, 2}), t = Doubles({3, 4}, {1, 1, 1, 2});
  const double a = 1 / std::sqrt(2.0) - 9 / std::sqrt(337.0), b = 1 / std::sqrt(2.0) - 16 / std::sqrt(337.0);
  EXPECT_NEAR(Value(*Build("at"), {s, t, {}}), (a * a + b * b) / 2, 1e-14);
  EXPECT_NEAR(Value(*Build("at", {{"reduction", "sum_over_batch"}}), {s, t, {}}), a * a + b * b, 1e-14);
}

TEST(AtLossTest, MatchesAnIndependentComposition) {
  //   s, t = wave((2,3,4,5), .1, 2), wave((2,4,4,5), .2, 3)
  //   def att(m, p):
  //     a = (m.abs()**p).mean(1).reshape(2, -1)
  //     return a / a.norm(dim=1, keepdim=True)
  //   ((att(s, 2) - att(t, 2))**2).mean(),  ((att(s, 3) - att(t, 3))**2).sum() / 2
  const LossInputs inputs{Wave({2, 3, 4, 5}, 0.1, 2), Wave({2, 4, 4, 5}, 0.2, 3), {}};
  EXPECT_NEAR(Value(*Build("at"), inputs), 0.003680670820, 1e-11);
  EXPECT_NEAR(Value(*Build("at", {{"power", 3.0}, {"reduction", "sum_over_batch"}}), inputs), 0.108660486410, 1e-11);
}

TEST(AtLossTest, SignAndScaleDoNotMatter) {
  const torch::Tensor map = Random({2, 3, 4, 4}, 1);
  EXPECT_NEAR(Value(*Build("at"), {map, map * -5, {}}), 0, 1e-15);
  EXPECT_NEAR(Value(*Build("at"), {map, map.flip(1), {}}), 0, 1e-15);  // nor the order of channels
}

TEST(AtLossTest, GradientsStayFiniteWhereAMapIsZero) {
  torch::Tensor s = Random({2, 3, 4, 4}, 2).relu();
  s[1].zero_();  // a dead sample, too
  const torch::Tensor t = Random({2, 3, 4, 4}, 3).relu();
  for (double power : {1.0, 1.5, 2.0, 4.0}) {
    const auto [value, gradient] = Differentiate(*Build("at", {{"power", power}}), {s, t, {}});
    EXPECT_TRUE(std::isfinite(value)) << power;
    EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << power;
  }
  EXPECT_THROW(Build("at", {{"power", 0.5}}), std::runtime_error);  // an infinite slope at 0
}

TEST(SpLossTest, HandWorkedValues) {
  // Student: orthogonal samples, G = I. Teacher: equal samples, G = [[1, 1], [1, 1]] / sqrt 2 by rows.
  const torch::Tensor s = Doubles({1, 0, 0, 1}, {2, 2, 1, 1}), t = Doubles({2, 2}, {2, 1, 1, 1});
  const double r = 1 / std::sqrt(2.0);
  EXPECT_NEAR(Value(*Build("sp"), {s, t, {}}), (2 * (1 - r) * (1 - r) + 2 * r * r) / 4, 1e-14);
}

TEST(SpLossTest, MatchesAnIndependentComposition) {
  //   s, t = wave((3,2,4,4), .1, 2), wave((3,5,2,2), .2, 3)
  //   def sim(m):
  //     g = torch.tensor([[(m[i] * m[j]).sum() for j in range(3)] for i in range(3)])
  //     return g / g.norm(dim=1, keepdim=True)
  //   ((sim(s) - sim(t))**2).sum() / 9
  EXPECT_NEAR(Value(*Build("sp"), {Wave({3, 2, 4, 4}, 0.1, 2), Wave({3, 5, 2, 2}, 0.2, 3), {}}), 0.080587854700, 1e-11);
}

TEST(SpLossTest, ScaleAndRotationOfTheFeaturesDoNotMatter) {
  const torch::Tensor map = Random({4, 3, 2, 2}, 4);
  const torch::Tensor rotation = std::get<0>(torch::linalg_qr(Random({12, 12}, 5)));
  const torch::Tensor turned = (map.flatten(1).matmul(rotation) * 7).view({4, 3, 2, 2});
  EXPECT_NEAR(Value(*Build("sp"), {map, turned, {}}), 0, 1e-14);
  torch::Tensor dead = map.clone();
  dead[2].zero_();
  EXPECT_TRUE(Differentiate(*Build("sp"), {dead, map, {}}).gradient.isfinite().all().item<bool>());
}

torch::Tensor Labels(std::vector<int64_t> labels) { return torch::tensor(labels, torch::kInt64); }

TEST(DkdLossTest, HandWorkedValues) {
  // At T = 1, label 0: p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4).
  const torch::Tensor t = Doubles({std::log(2.0), 0, 0}, {1, 3}), s = Doubles({0, std::log(2.0), 0}, {1, 3});
  const LossInputs inputs{s, t, Labels({0})};
  const auto value = [&](double alpha, double beta) {
    return Value(*Build("dkd", {{"temperature", 1.0}, {"alpha", alpha}, {"beta", beta}}), inputs);
  };
  const double target = 0.5 * std::log(2.0) + 0.5 * std::log(0.5 / 0.75);  // (1/2, 1/2) against (1/4, 3/4)
  const double others = 0.5 * std::log(0.5 / (2.0 / 3)) + 0.5 * std::log(0.5 / (1.0 / 3));
  EXPECT_NEAR(value(1, 0), target, 1e-14);
  EXPECT_NEAR(value(0, 1), others, 1e-14);
  EXPECT_NEAR(value(2, 3), 2 * target + 3 * others, 1e-13);
}

TEST(DkdLossTest, MatchesAnIndependentComposition) {
  //   s, t, y, T = wave((4,5), .1, 3), wave((4,5), .2, 4), [1, 4, 0, 2], 4.
  //   for each n:  a, b, k = softmax(t[n] / T), softmax(s[n] / T), y[n]
  //     tckd += a[k] * log(a[k] / b[k]) + (1 - a[k]) * log((1 - a[k]) / (1 - b[k]))
  //     ah, bh = a, b without k, each divided by its sum;  nckd += (ah * log(ah / bh)).sum()
  //   T**2 * tckd / 4,  T**2 * nckd / 4,  T**2 * (tckd + 8 * nckd) / 4
  const LossInputs inputs{Wave({4, 5}, 0.1, 3), Wave({4, 5}, 0.2, 4), Labels({1, 4, 0, 2})};
  EXPECT_NEAR(Value(*Build("dkd", {{"beta", 0.0}}), inputs), 0.020659138723, 1e-11);
  EXPECT_NEAR(Value(*Build("dkd", {{"alpha", 0.0}, {"beta", 1.0}}), inputs), 0.165173846402, 1e-11);
  EXPECT_NEAR(Value(*Build("dkd"), inputs), 1.342049909942, 1e-11);
}

TEST(DkdLossTest, HintonsLossIsTheTargetPartPlusTheWeightedOthers) {
  // KL(p || q) = TCKD + (1 - p_y) NCKD, sample by sample.
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const torch::Tensor s = Random({1, 6}, seed, 3), t = Random({1, 6}, seed + 100, 3);
    const torch::Tensor labels = Labels({static_cast<int64_t>(seed % 6)});
    const double p = torch::softmax(t / 4, 1)[0][seed % 6].item<double>();
    EXPECT_NEAR(Value(*Build("dkd", {{"beta", 1 - p}}), {s, t, labels}), Value(*Build("kd"), {s, t, {}}), 1e-12);
  }
}

TEST(DkdLossTest, CertainPredictionsStayFinite) {
  // 1 - p_y is 0 in float32 long before these logits.
  const torch::Tensor s = torch::tensor({{60.0f, -60.0f, 0.0f}}), t = torch::tensor({{200.0f, -200.0f, 1.0f}});
  for (int64_t label : {0, 1, 2}) {
    const auto [value, gradient] = Differentiate(*Build("dkd", {{"temperature", 1.0}}), {s, t, Labels({label})});
    EXPECT_TRUE(std::isfinite(value)) << label;
    EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << label;
  }
}

TEST(DkdLossTest, RefusesLabelsThatDoNotFit) {
  const torch::Tensor logits = torch::zeros({3, 4});
  for (const torch::Tensor& labels :
       {torch::Tensor(), Labels({0, 1}), torch::zeros({3}), torch::zeros({3, 1}, torch::kInt64)}) {
    EXPECT_THAT(Refusal(*Build("dkd"), {logits, logits, labels}), testing::HasSubstr("labels"));
  }
  Refusal(*Build("dkd"), {torch::zeros({3, 1}), torch::zeros({3, 1}), Labels({0, 0, 0})});
}

std::unique_ptr<Loss> Mgd(Knobs knobs = {}, int64_t channels = 4) {
  return InDouble(Build("mgd", std::move(knobs), channels, channels, 5));
}

TEST(MgdLossTest, WithoutAMaskMatchesAnIndependentComposition) {
  //   s, t = wave((2,4,4,4), .1, 2), wave((2,4,4,4), .2, 3)
  //   h = torch.relu(F.conv2d(s, wave((4,4,3,3), .3), wave((4,), .4), padding=1))
  //   m = F.conv2d(h, wave((4,4,3,3), .5), wave((4,), .6), padding=1)
  //   ((m - t)**2).sum() / 2
  auto loss = Mgd({{"mask_ratio", 0.0}});
  SetParameter(*loss, "first.weight", Wave({4, 4, 3, 3}, 0.3));
  SetParameter(*loss, "first.bias", Wave({4}, 0.4));
  SetParameter(*loss, "second.weight", Wave({4, 4, 3, 3}, 0.5));
  SetParameter(*loss, "second.bias", Wave({4}, 0.6));
  EXPECT_NEAR(Value(*loss, {Wave({2, 4, 4, 4}, 0.1, 2), Wave({2, 4, 4, 4}, 0.2, 3), {}}), 10370.083466862243, 1e-7);
}

// The generator put out of the way: y = mask * s where s >= 0. So with T = 0, the loss is the sum of what is seen.
std::unique_ptr<Loss> SeeingMgd(Knobs knobs) {
  auto loss = Mgd(std::move(knobs));
  torch::Tensor centre = torch::zeros({4, 4, 3, 3});
  for (int64_t c = 0; c < 4; ++c) centre[c][c][1][1] = 1;
  for (const char* layer : {"first", "second"}) {
    SetParameter(*loss, std::string(layer) + ".weight", centre);
    SetParameter(*loss, std::string(layer) + ".bias", torch::zeros({4}));
  }
  return loss;
}

TEST(MgdLossTest, TheMaskHidesItsShareOfPositionsOrChannels) {
  const torch::Tensor ones = torch::ones({32, 4, 16, 16}, torch::kFloat64), zeros = torch::zeros_like(ones);
  for (double ratio : {0.15, 0.5, 0.75}) {
    // The gradient is 2/N at what is seen and 0 at what is hidden.
    const auto spatial = SeeingMgd({{"mask_ratio", ratio}});
    torch::Tensor seen = Differentiate(*spatial, {ones, zeros, {}}).gradient * 16;
    EXPECT_TRUE(((seen == 0) | (seen == 1)).all().item<bool>());
    EXPECT_NEAR(1 - seen.mean().item<double>(), ratio, 0.02);  // of 8192 positions: 4 standard deviations
    for (int64_t c = 1; c < 4; ++c) EXPECT_TRUE(torch::equal(seen.select(1, c), seen.select(1, 0)));
    EXPECT_FALSE(torch::equal(seen[0], seen[1]));

    const torch::Tensor many = torch::ones({512, 4, 2, 2}, torch::kFloat64);
    const auto channel = SeeingMgd({{"mask_ratio", ratio}, {"mask", "channel"}});
    seen = Differentiate(*channel, {many, torch::zeros_like(many), {}}).gradient * 256;
    EXPECT_TRUE(torch::equal(seen.amax({2, 3}), seen.amin({2, 3})));  // whole channels
    EXPECT_NEAR(1 - seen.mean().item<double>(), ratio, 0.05);         // of 2048
  }
}

TEST(MgdLossTest, TheMaskDependsOnTheDrawAlone) {
  const auto loss = Mgd();
  LossInputs inputs{Random({2, 4, 8, 8}, 6), Random({2, 4, 8, 8}, 7), {}};
  inputs.draw = 41;
  const double value = Value(*loss, inputs);
  torch::manual_seed(1234);
  EXPECT_EQ(Value(*loss, inputs), value);
  inputs.draw = 42;
  EXPECT_NE(Value(*loss, inputs), value);
  inputs.draw = 41;
  EXPECT_EQ(Value(*loss, inputs), value);
}

TEST(MgdLossTest, ChannelMasksHaveTheGradientOfTheirValue) {
  const auto loss = Mgd({{"mask", "channel"}, {"reduction", "mean"}});
  LossInputs inputs{Random({2, 4, 3, 3}, 8), Random({2, 4, 3, 3}, 9), {}};
  inputs.draw = 3;
  ExpectGradientMatchesDifferences(*loss, inputs, 1e-6);
  ExpectParameterGradientsMatchDifferences(*loss, inputs, 1e-6);
}

TEST(MgdLossTest, TheGeneratorIsTwoConvolutionsOfTheTeachersWidth) {
  const auto parameters = Mgd({}, 6)->module()->named_parameters();
  ASSERT_EQ(parameters.size(), 4u);
  for (const char* name : {"first.weight", "second.weight"})
    EXPECT_EQ(parameters[name].sizes(), (std::vector<int64_t>{6, 6, 3, 3})) << name;
  for (const char* name : {"first.bias", "second.bias"})
    EXPECT_EQ(parameters[name].sizes(), std::vector<int64_t>{6}) << name;
  EXPECT_THROW(Build("mgd"), std::runtime_error);  // channels unknown
}

TEST(PixelKdLossTest, IsHintonsLossAtEveryPosition) {
  const torch::Tensor s = Random({2, 5, 3, 4}, 10, 2), t = Random({2, 5, 3, 4}, 11, 2);
  const auto pixels = [](const torch::Tensor& map) { return map.permute({0, 2, 3, 1}).reshape({-1, 5}); };
  for (double temperature : {1.0, 4.0}) {
    const Knobs knobs = {{"temperature", temperature}};
    EXPECT_NEAR(Value(*Build("pixel_kd", knobs), {s, t, {}}), Value(*Build("kd", knobs), {pixels(s), pixels(t), {}}),
                1e-13);
  }
}

TEST(PixelKdLossTest, Float32GoesThroughTheFusedKernel) {
  const torch::Tensor s = Random({2, 19, 7, 5}, 12, 2), t = Random({2, 19, 7, 5}, 13, 2);
  const auto exact = Differentiate(*Build("pixel_kd"), {s, t, {}});
  for (auto format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
    const auto single = Differentiate(
        *Build("pixel_kd"), {s.to(torch::kFloat32).contiguous(format), t.to(torch::kFloat32).contiguous(format), {}});
    EXPECT_NEAR(single.loss, exact.loss, 1e-6 * exact.loss);
    EXPECT_LT((single.gradient - exact.gradient).abs().max().item<double>(), 1e-7);
  }
}

TEST(KdLossTest, TheTemperatureMovesOverTheStage) {
  LossInputs inputs{Random({4, 6}, 14, 3), Random({4, 6}, 15, 3), {}};
  inputs.progress = 0.25;
  EXPECT_NEAR(Value(*Build("kd", {{"temperature", 8.0}, {"temperature_end", 4.0}}), inputs),
              Value(*Build("kd", {{"temperature", 7.0}}), inputs), 1e-12);
}

TEST(L1LossTest, HandWorkedValues) {
  const torch::Tensor s = Doubles({1, 2, 0, 4}, {1, 1, 2, 2}), t = Doubles({1, 0, 3, 4}, {1, 1, 2, 2});
  const auto mean = Differentiate(*Build("l1"), {s, t, {}});
  EXPECT_DOUBLE_EQ(mean.loss, 1.25);
  EXPECT_TRUE(torch::equal(mean.gradient.flatten(), Doubles({0, 0.25, -0.25, 0}, {4})));
  EXPECT_DOUBLE_EQ(Value(*Build("l1", {{"reduction", "sum"}}), {s, t, {}}), 5.0);
}

TEST(SmoothL1LossTest, HandWorkedValues) {
  // Differences 0, 0.5, -3, 1 with beta 1: 0, 0.125, 2.5, 0.5.
  const torch::Tensor s = Doubles({1, 0.5, 0, 4}, {1, 1, 2, 2}), t = Doubles({1, 0, 3, 3}, {1, 1, 2, 2});
  const auto one = Differentiate(*Build("smooth_l1", {{"reduction", "sum"}}), {s, t, {}});
  EXPECT_DOUBLE_EQ(one.loss, 3.125);
  EXPECT_TRUE(torch::equal(one.gradient.flatten(), Doubles({0, 0.5, -1, 1}, {4})));
  // beta 2: 0, 0.0625, 2, 0.25.
  EXPECT_DOUBLE_EQ(Value(*Build("smooth_l1", {{"reduction", "sum"}, {"beta", 2.0}}), {s, t, {}}), 2.3125);
}

TEST(ElementwiseLossTest, ComparesLogitsToo) {
  const torch::Tensor s = Doubles({1, 2, 0, 4}, {2, 2}), t = Doubles({1, 0, 3, 4}, {2, 2});
  EXPECT_DOUBLE_EQ(Value(*Build("l2"), {s, t, {}}), 3.25);
  EXPECT_DOUBLE_EQ(Value(*Build("l1", {{"reduction", "sum_over_batch"}}), {s, t, {}}), 2.5);
  EXPECT_THAT(Refusal(*Build("l2"), {s, torch::zeros({2, 3}), {}}), testing::HasSubstr("[2, 3]"));
}

}  // namespace
}  // namespace distill
