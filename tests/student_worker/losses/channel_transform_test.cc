// The properties of the channel-wise transformation, numbered as in its specification, and its knobs.
#include "student_worker/losses/conv_block.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;

// In float64, from `in` to `out` channels.
std::unique_ptr<Loss> Transform(uint32_t in, uint32_t out, Knobs knobs = {}, uint64_t seed = 1) {
  return InDouble(Build("channel_transform", std::move(knobs), in, out, seed));
}

LossInputs RandomMaps(std::vector<int64_t> student, std::vector<int64_t> teacher, uint64_t seed) {
  torch::manual_seed(seed);
  LossInputs inputs;
  inputs.student = torch::randn(student, torch::kFloat64) * 2;
  inputs.teacher = torch::randn(teacher, torch::kFloat64) * 3;
  return inputs;
}

torch::Tensor Parameter(const Loss& loss, const std::string& name) { return loss.module()->named_parameters()[name]; }

// W1 = W2 = I, no biases.
std::unique_ptr<Loss> Identity(int64_t channels) {
  auto loss = Transform(channels, channels);
  for (const char* layer : {"student.layer1", "student.layer2"}) {
    SetParameter(*loss, std::string(layer) + ".weight", torch::eye(channels));
    SetParameter(*loss, std::string(layer) + ".bias", torch::zeros({channels}));
  }
  return loss;
}

TEST(ChannelTransformTest, Property1IdentityOnNonNegativeMapsGivesZero) {
  const torch::Tensor map = RandomMaps({2, 3, 4, 4}, {1}, 1).student.relu();
  EXPECT_EQ(Value(*Identity(3), {map, map.clone(), {}}), 0.0);
}

TEST(ChannelTransformTest, Property2IdentityLosesTheNegativePart) {
  const torch::Tensor map = RandomMaps({2, 3, 4, 4}, {1}, 2).student;
  const double expected = map.clamp_max(0).square().sum().item<double>() / 2;
  EXPECT_NEAR(Value(*Identity(3), {map, map.clone(), {}}), expected, 1e-10 * expected);
}

TEST(ChannelTransformTest, Property3TwiceAsManyHiddenUnitsCarrySignedMaps) {
  auto loss = Transform(3, 3, {{"hidden_ratio", 2.0}, {"bias", false}});
  const torch::Tensor eye = torch::eye(3);
  SetParameter(*loss, "student.layer1.weight", torch::cat({eye, -eye}, 0));
  SetParameter(*loss, "student.layer2.weight", torch::cat({eye, -eye}, 1));
  const torch::Tensor map = RandomMaps({2, 3, 4, 4}, {1}, 3).student;
  EXPECT_EQ(Value(*loss, {map, map.clone(), {}}), 0.0);
}

TEST(ChannelTransformTest, Property4AZeroOutputLayerTeachesTheStudentNothing) {
  auto loss = Transform(3, 5);
  SetParameter(*loss, "student.layer2.weight", torch::zeros({5, 5}));
  SetParameter(*loss, "student.layer2.bias", torch::zeros({5}));
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 4);
  const auto [value, gradient] = Differentiate(*loss, inputs);
  const double expected = inputs.teacher.square().sum().item<double>() / 2;
  EXPECT_NEAR(value, expected, 1e-10 * expected);
  EXPECT_EQ(gradient.abs().max().item<double>(), 0.0);
  EXPECT_EQ(Parameter(*loss, "student.layer1.weight").grad().abs().max().item<double>(), 0.0);
  const torch::Tensor bias = Parameter(*loss, "student.layer2.bias").grad();
  EXPECT_TRUE(torch::allclose(bias, -inputs.teacher.sum({0, 2, 3}), 1e-10, 1e-10));  // -2/N with N = 2
}

TEST(ChannelTransformTest, Property4FreshOutputLayersAreNotZero) {
  EXPECT_GT(Parameter(*Transform(3, 5), "student.layer2.weight").abs().min().item<double>(), 0.0);
}

TEST(ChannelTransformTest, Property5TheTeachersMapGetsNoGradientAndStaysAsItIs) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 5);
  inputs.student.requires_grad_(true);
  inputs.teacher.requires_grad_(true);
  const torch::Tensor before = inputs.teacher.detach().clone();
  auto loss = Transform(3, 5);
  auto value = loss->Compute(inputs);
  ASSERT_TRUE(value.ok()) << value.status();
  value->backward();
  EXPECT_FALSE(inputs.teacher.grad().defined());
  EXPECT_TRUE(torch::equal(inputs.teacher.detach(), before));
  EXPECT_TRUE(inputs.student.grad().defined());
}

TEST(ChannelTransformTest, Property7APermutationOfPositionsChangesNothingButWithKernelThreeItDoes) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 5}, {2, 5, 4, 5}, 7);
  const torch::Tensor order = torch::randperm(20);
  const auto permuted = [&](const torch::Tensor& map) {
    return map.flatten(2).index_select(2, order).view(map.sizes());
  };
  const LossInputs moved{permuted(inputs.student), permuted(inputs.teacher), {}};
  const auto one = Transform(3, 5), three = Transform(3, 5, {{"kernel", 3.0}});
  const double value = Value(*one, inputs);
  EXPECT_NEAR(Value(*one, moved), value, 1e-10 * value);
  EXPECT_GT(std::abs(Value(*three, moved) - Value(*three, inputs)), 1e-3);
}

TEST(ChannelTransformTest, Property8APixelOfTheStudentTouchesThatPixelOnly) {
  // With T = 0 the loss is the sum of the transformed map's squares: its part at one pixel is that of a 1x1 map.
  auto loss = Transform(3, 5);
  LossInputs inputs = RandomMaps({1, 3, 4, 5}, {1, 5, 4, 5}, 8);
  inputs.teacher.zero_();
  const auto pixel = [](const torch::Tensor& map) { return map.slice(2, 2, 3).slice(3, 1, 2); };
  LossInputs changed = inputs;
  changed.student = inputs.student.clone();
  changed.student.slice(2, 2, 3).slice(3, 1, 2).add_(1.5);
  const double alone = Value(*loss, {pixel(changed.student), pixel(inputs.teacher), {}}) -
                       Value(*loss, {pixel(inputs.student), pixel(inputs.teacher), {}});
  EXPECT_NEAR(Value(*loss, changed) - Value(*loss, inputs), alone, 1e-9);
  EXPECT_GT(std::abs(alone), 1e-3);
}

TEST(ChannelTransformTest, Property9IsTwoLinearLayersOnTheChannelsOfEachPixel) {
  auto loss = Transform(3, 5);
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 9);
  const auto weight = [&](const char* name) { return Parameter(*loss, name).detach().flatten(1); };
  const auto bias = [&](const char* name) { return Parameter(*loss, name).detach(); };
  const torch::Tensor hidden =
      torch::linear(inputs.student.permute({0, 2, 3, 1}), weight("student.layer1.weight"), bias("student.layer1.bias"))
          .relu();
  const torch::Tensor made = torch::linear(hidden, weight("student.layer2.weight"), bias("student.layer2.bias"));
  const double expected = (made - inputs.teacher.permute({0, 2, 3, 1})).square().sum().item<double>() / 2;
  EXPECT_NEAR(Value(*loss, inputs), expected, 1e-10 * expected);
}

TEST(ChannelTransformTest, Property10StackingTheBatchWithItselfDoublesThePlainSumOnly) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 10);
  const LossInputs twice{
      torch::cat({inputs.student, inputs.student}), torch::cat({inputs.teacher, inputs.teacher}), {}};
  for (const auto& [reduction, factor] : {std::pair{"sum_over_batch", 1.0}, {"mean", 1.0}, {"sum", 2.0}}) {
    const auto loss = Transform(3, 5, {{"reduction", reduction}});
    const double value = Value(*loss, inputs);
    EXPECT_NEAR(Value(*loss, twice), factor * value, 1e-10 * value) << reduction;
  }
}

TEST(ChannelTransformTest, Property11SumOverBatchIsTheMeanTimesTheTeachersMapSize) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 6}, {2, 5, 4, 6}, 11);
  const double mean = Value(*Transform(3, 5, {{"reduction", "mean"}}), inputs);
  EXPECT_NEAR(Value(*Transform(3, 5), inputs), 5 * 4 * 6 * mean, 1e-10 * 120 * mean);
}

TEST(ChannelTransformTest, Property12HiddenUnitsMayBePermutedAndRescaled) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 12);
  auto loss = Transform(3, 5);
  const double value = Value(*loss, inputs);
  const torch::Tensor w1 = Parameter(*loss, "student.layer1.weight").detach().flatten(1).clone();
  const torch::Tensor b1 = Parameter(*loss, "student.layer1.bias").detach().clone();
  const torch::Tensor w2 = Parameter(*loss, "student.layer2.weight").detach().flatten(1).clone();
  const torch::Tensor order = torch::tensor({3, 0, 4, 1, 2});
  SetParameter(*loss, "student.layer1.weight", w1.index_select(0, order));
  SetParameter(*loss, "student.layer1.bias", b1.index_select(0, order));
  SetParameter(*loss, "student.layer2.weight", w2.index_select(1, order));
  EXPECT_NEAR(Value(*loss, inputs), value, 1e-10 * value);
  const torch::Tensor scale = torch::tensor({0.5, 2.0, 3.0, 0.1, 7.0}, torch::kFloat64);
  SetParameter(*loss, "student.layer1.weight", w1 * scale.unsqueeze(1));
  SetParameter(*loss, "student.layer1.bias", b1 * scale);
  SetParameter(*loss, "student.layer2.weight", w2 / scale);
  EXPECT_NEAR(Value(*loss, inputs), value, 1e-10 * value);
}

TEST(ChannelTransformTest, Property13TheOrderOfTheTeachersChannelsIsThatOfTheOutputRows) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 13);
  auto loss = Transform(3, 5);
  const double value = Value(*loss, inputs);
  const torch::Tensor order = torch::tensor({3, 0, 4, 1, 2});
  const torch::Tensor w2 = Parameter(*loss, "student.layer2.weight").detach().clone();
  const torch::Tensor b2 = Parameter(*loss, "student.layer2.bias").detach().clone();
  SetParameter(*loss, "student.layer2.weight", w2.index_select(0, order));
  SetParameter(*loss, "student.layer2.bias", b2.index_select(0, order));
  EXPECT_GT(std::abs(Value(*loss, inputs) - value), 1e-3);
  inputs.teacher = inputs.teacher.index_select(1, order);
  EXPECT_NEAR(Value(*loss, inputs), value, 1e-10 * value);
}

TEST(ChannelTransformTest, Property14WithoutActivationTheLayersCollapseIntoOne) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 14);
  auto two = Transform(3, 5, {{"activation", "identity"}});
  auto one = Transform(3, 5, {{"depth", 0.0}});
  const torch::Tensor w1 = Parameter(*two, "student.layer1.weight").detach().flatten(1);
  const torch::Tensor w2 = Parameter(*two, "student.layer2.weight").detach().flatten(1);
  SetParameter(*one, "student.layer1.weight", w2.matmul(w1));
  SetParameter(
      *one, "student.layer1.bias",
      w2.matmul(Parameter(*two, "student.layer1.bias").detach()) + Parameter(*two, "student.layer2.bias").detach());
  const double value = Value(*two, inputs);
  EXPECT_NEAR(Value(*one, inputs), value, 1e-10 * value);
  EXPECT_GT(std::abs(Value(*Transform(3, 5), inputs) - value), 1e-3);  // with ReLU it is another function
}

TEST(ChannelTransformTest, Property15WorkedExample) {
  for (auto dtype : {torch::kFloat64, torch::kFloat32}) {
    auto loss = Build("channel_transform", {}, 1, 1);
    loss->module()->to(dtype);
    SetParameter(*loss, "student.layer1.weight", torch::full({1}, 2.0));
    SetParameter(*loss, "student.layer1.bias", torch::full({1}, -1.0));
    SetParameter(*loss, "student.layer2.weight", torch::full({1}, 3.0));
    SetParameter(*loss, "student.layer2.bias", torch::full({1}, 0.5));
    const torch::Tensor s = torch::tensor({0.0, 1.0, 2.0, -1.0}, dtype).view({1, 1, 2, 2});
    const torch::Tensor t = torch::tensor({1.0, 2.0, 3.0, 4.0}, dtype).view({1, 1, 2, 2});
    const auto [value, gradient] = Differentiate(*loss, {s, t, {}});
    EXPECT_EQ(value, 57.0);
    EXPECT_TRUE(torch::equal(gradient.flatten(), torch::tensor({0.0, 18.0, 78.0, 0.0}, dtype)));
    const auto grad = [&](const char* name) { return Parameter(*loss, name).grad().item<double>(); };
    EXPECT_EQ(grad("student.layer1.weight"), 87.0);
    EXPECT_EQ(grad("student.layer1.bias"), 48.0);
    EXPECT_EQ(grad("student.layer2.weight"), 42.0);
    EXPECT_EQ(grad("student.layer2.bias"), 8.0);
  }
}

TEST(ChannelTransformTest, Property16TheMeanOverRanksIsTheWholeIffTheirBatchesAreEqual) {
  const auto loss = Transform(3, 5);
  const LossInputs inputs = RandomMaps({4, 3, 4, 4}, {4, 5, 4, 4}, 16);
  const auto rows = [&](int64_t begin, int64_t end) {
    return Value(*loss, {inputs.student.slice(0, begin, end), inputs.teacher.slice(0, begin, end), {}});
  };
  const double whole = Value(*loss, inputs);
  EXPECT_NEAR((rows(0, 2) + rows(2, 4)) / 2, whole, 1e-10 * whole);
  EXPECT_GT(std::abs((rows(0, 1) + rows(1, 4)) / 2 - whole), 1e-3);          // a ragged batch
  EXPECT_NEAR((1 * rows(0, 1) + 3 * rows(1, 4)) / 4, whole, 1e-10 * whole);  // weighted by its samples
}

TEST(ChannelTransformTest, GradientInClosedForm) {
  // E = 2/N (MLP(F_s) - F_t), A = W1 F_s + b1:  dL/dF_s = W1^T (1[A > 0] (W2^T E))
  auto loss = Transform(3, 5);
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, {2, 5, 4, 4}, 17);
  const auto matrix = [&](const char* name) { return Parameter(*loss, name).detach().flatten(1); };
  const auto column = [&](const char* name) { return Parameter(*loss, name).detach().unsqueeze(1); };
  const torch::Tensor a = matrix("student.layer1.weight").matmul(inputs.student.flatten(2)) +
                          column("student.layer1.bias");  // (N, C_h, H*W)
  const torch::Tensor e =
      matrix("student.layer2.weight").matmul(a.relu()) + column("student.layer2.bias") - inputs.teacher.flatten(2);
  const torch::Tensor expected =
      matrix("student.layer1.weight")
          .t()
          .matmul((a > 0).to(torch::kFloat64) * matrix("student.layer2.weight").t().matmul(e));
  EXPECT_TRUE(torch::allclose(Differentiate(*loss, inputs).gradient.flatten(2), expected, 1e-12, 1e-12));
}

TEST(ChannelTransformTest, GradientsOfMapAndLayersMatchDifferencesForEveryKnob) {
  const LossInputs inputs = RandomMaps({2, 3, 3, 3}, {2, 4, 3, 3}, 18);
  for (const Knobs& knobs : std::vector<Knobs>{{},
                                               {{"depth", 0.0}},
                                               {{"depth", 3.0}, {"activation", "gelu"}},
                                               {{"norm", "batchnorm"}},
                                               {{"bias", false}, {"hidden_width", 7.0}},
                                               {{"kernel", 3.0}, {"reduction", "mean"}},
                                               {{"side", "both"}, {"allow_collapse", true}}}) {
    SCOPED_TRACE(knobs.empty() ? "defaults" : knobs.begin()->first);
    const auto loss = Transform(3, 4, knobs);
    ExpectGradientMatchesDifferences(*loss, inputs, 1e-6);
    ExpectParameterGradientsMatchDifferences(*loss, inputs, 1e-6);
  }
  const auto on_teacher = Transform(4, 4, {{"side", "teacher"}, {"allow_collapse", true}});
  const LossInputs equal{inputs.teacher * 0.5, inputs.teacher, {}};
  ExpectGradientMatchesDifferences(*on_teacher, equal, 1e-6);
  ExpectParameterGradientsMatchDifferences(*on_teacher, equal, 1e-6);
}

TEST(ChannelTransformTest, MatchesAnIndependentComposition) {
  // With wave(shape, phase, scale) = scale * torch.sin(0.37 * arange(numel)**2 + phase).reshape(shape), in float64:
  //   s, t = wave((2,3,4,4), .1, 2), wave((2,5,4,4), .2, 3)
  //   h = torch.relu(torch.einsum('oi,nihw->nohw', wave((10,3), .3), s) + wave((10,), .4).view(1,-1,1,1))
  //   m = torch.einsum('oi,nihw->nohw', wave((5,10), .5), h) + wave((5,), .6).view(1,-1,1,1)
  //   ((m - t)**2).sum() / 2
  auto loss = Transform(3, 5, {{"hidden_ratio", 2.0}});
  SetParameter(*loss, "student.layer1.weight", Wave({10, 3}, 0.3));
  SetParameter(*loss, "student.layer1.bias", Wave({10}, 0.4));
  SetParameter(*loss, "student.layer2.weight", Wave({5, 10}, 0.5));
  SetParameter(*loss, "student.layer2.bias", Wave({5}, 0.6));
  EXPECT_NEAR(Value(*loss, {Wave({2, 3, 4, 4}, 0.1, 2), Wave({2, 5, 4, 4}, 0.2, 3), {}}), 1188.376176156420, 1e-8);
}

TEST(ChannelTransformTest, KnobsShapeTheLayers) {
  const auto shape = [](const Loss& loss, const char* name) { return Parameter(loss, name).sizes().vec(); };
  using Shape = std::vector<int64_t>;
  EXPECT_EQ(shape(*Transform(3, 8), "student.layer1.weight"), (Shape{8, 3, 1, 1}));
  EXPECT_EQ(shape(*Transform(3, 8, {{"hidden_ratio", 0.5}}), "student.layer1.weight"), (Shape{4, 3, 1, 1}));
  EXPECT_EQ(shape(*Transform(3, 8, {{"hidden_ratio", 0.01}}), "student.layer1.weight"), (Shape{1, 3, 1, 1}));
  EXPECT_EQ(shape(*Transform(3, 8, {{"hidden_width", 6.0}}), "student.layer2.weight"), (Shape{8, 6, 1, 1}));
  EXPECT_EQ(shape(*Transform(3, 8, {{"kernel", 3.0}}), "student.layer2.weight"), (Shape{8, 8, 3, 3}));
  EXPECT_EQ(Transform(3, 8, {{"depth", 2.0}})->module()->parameters().size(), 6u);
  EXPECT_EQ(Transform(3, 8, {{"bias", false}})->module()->parameters().size(), 2u);
  EXPECT_EQ(Transform(3, 8, {{"norm", "batchnorm"}})->module()->parameters().size(), 6u);
  // Equal channels keep the transformation: it is the method, not only an adapter.
  EXPECT_EQ(Transform(4, 4)->module()->parameters().size(), 4u);
  // 512 -> 512, as in the specification's table of costs.
  int64_t count = 0;
  for (const torch::Tensor& parameter : Build("channel_transform", {}, 512, 512)->module()->parameters())
    count += parameter.numel();
  EXPECT_EQ(count, 525312);
}

TEST(ChannelTransformTest, ATransformedTeacherNeedsPermission) {
  for (const char* side : {"teacher", "both"}) {
    EXPECT_THROW(Transform(4, 4, {{"side", side}}), std::runtime_error) << side;
    EXPECT_NE(Transform(4, 4, {{"side", side}, {"allow_collapse", true}}), nullptr) << side;
  }
  EXPECT_THROW(Transform(3, 4, {{"side", "teacher"}, {"allow_collapse", true}}), std::runtime_error);
}

TEST(ChannelTransformTest, OneSampleOfOnePositionIsATwoLayerPerceptron) {
  auto loss = Transform(3, 5);
  const LossInputs inputs = RandomMaps({1, 3, 1, 1}, {1, 5, 1, 1}, 19);
  ExpectGradientMatchesDifferences(*loss, inputs);
  ExpectParameterGradientsMatchDifferences(*loss, inputs);
}

TEST(ChannelTransformTest, MapsOfDifferentSizeAreRefusedOrResized) {
  const LossInputs inputs = RandomMaps({2, 3, 8, 8}, {2, 5, 4, 4}, 20);
  const std::string refusal = Refusal(*Transform(3, 5), inputs);
  EXPECT_THAT(refusal, HasSubstr("[2, 3, 8, 8]"));
  EXPECT_THAT(refusal, HasSubstr("[2, 5, 4, 4]"));
  const double pooled = Value(*Transform(3, 5), {torch::avg_pool2d(inputs.student, 2), inputs.teacher, {}});
  EXPECT_NEAR(Value(*Transform(3, 5, {{"spatial_mismatch", "pool_larger"}}), inputs), pooled, 1e-10 * pooled);
  const double lifted =
      Value(*Transform(3, 5), {inputs.student, torch::upsample_bilinear2d(inputs.teacher, {8, 8}, false), {}});
  EXPECT_NEAR(Value(*Transform(3, 5, {{"spatial_mismatch", "teacher_to_student"}}), inputs), lifted, 1e-10 * lifted);
}

TEST(ChannelTransformTest, HalfPrecisionSumsDoNotOverflow) {
  // 0.2^2 summed over 2048x64x64: infinity in float16, 335380 in float32 (0.2 is rounded in float16).
  auto loss = Build("channel_transform", {{"depth", 0.0}, {"bias", false}}, 1, 2048);
  SetParameter(*loss, "student.layer1.weight", torch::zeros({2048}));
  const torch::Tensor t = torch::full({1, 2048, 64, 64}, 0.2, torch::kFloat16);
  EXPECT_NEAR(Value(*loss, {torch::ones({1, 1, 64, 64}, torch::kFloat16), t, {}}), 335380, 335380 * 1e-4);
}

TEST(ChannelTransformTest, SquaresInDoubleLoseNothing) {
  torch::manual_seed(12);
  const torch::Tensor s = torch::rand({1, 1, 512, 512}), t = torch::rand({1, 1, 512, 512}) * 1000;
  const auto value = [&](const std::string& dtype, torch::Dtype input) {
    const auto loss = Build("channel_transform", {{"loss_dtype", dtype}, {"reduction", "sum"}, {"depth", 0.0}}, 1, 1);
    loss->module()->to(input);
    return Differentiate(*loss, {s.to(input), t.to(input), {}});
  };
  const LossAndGradient exact = value("f32", torch::kFloat64);
  const LossAndGradient got = value("f64", torch::kFloat32);
  EXPECT_EQ(static_cast<float>(got.loss), got.loss);  // handed on in the student's type
  EXPECT_NEAR(got.loss, exact.loss, 1e-7 * exact.loss);
  EXPECT_EQ(got.gradient.scalar_type(), torch::kFloat32);
  EXPECT_LT((got.gradient - exact.gradient).abs().max().item<double>(),
            1e-6 * exact.gradient.abs().max().item<double>());
}

}  // namespace
}  // namespace distill
