// The properties of channel-wise distillation, numbered as in its specification (T1 to T15; T14, that a step leaves the
// teacher's buffers alone, is tests/student_worker/train's), and its knobs.
#include "common/plan/loss_schema.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;

torch::Tensor Map(std::vector<double> values, std::vector<int64_t> shape) {
  return torch::tensor(values, torch::kFloat64).reshape(shape);
}

// Maps of standard deviation 2 and 3: far from uniform, far from each other.
LossInputs RandomMaps(std::vector<int64_t> shape, uint64_t seed) {
  torch::manual_seed(seed);
  LossInputs inputs;
  inputs.student = torch::randn(shape, torch::kFloat64) * 2;
  inputs.teacher = torch::randn(shape, torch::kFloat64) * 3;
  return inputs;
}

struct Golden {
  double temperature;
  LossInputs inputs;
  double loss;
  std::vector<double> gradient;
};

// Values of the specification's table, computed there in float64.
std::vector<Golden> GoldenCases() {
  const LossInputs ramp{Map({3, 2, 1, 0}, {1, 1, 2, 2}), Map({0, 1, 2, 3}, {1, 1, 2, 2}), {}};
  const LossInputs peaks{Map({0, 1, 0, 0, 0, 0, 1, 0}, {1, 2, 2, 2}), Map({1, 0, 0, 0, 0, 0, 2, 0}, {1, 2, 2, 2}), {}};
  return {{1, ramp, 1.9853054692, {0.6118556566, 0.1497384993, -0.1497384993, -0.6118556566}},
          {4, ramp, 2.4567613063, {0.7385433284, 0.2411313213, -0.2411313213, -0.7385433284}},
          {1,
           peaks,
           0.2073196014,
           {-0.1502445909, 0.1502445909, 0, 0, 0.0393112846, 0.0393112846, -0.1179338539, 0.0393112846}},
          {4,
           peaks,
           0.1883271300,
           {-0.1325974471, 0.1325974471, 0, 0, 0.0366248012, 0.0366248012, -0.1098744035, 0.0366248012}}};
}

TEST(CwdLossTest, GoldenValuesInDoubleAndFloat) {
  for (const Golden& golden : GoldenCases()) {
    const auto loss = Build("cwd", {{"temperature", golden.temperature}});
    // float32: each log-softmax is rounded to about 1e-7, and T^2 = 16 multiplies their difference.
    for (const auto& [dtype, tolerance] : {std::pair{torch::kFloat64, 1e-9}, std::pair{torch::kFloat32, 2e-6}}) {
      SCOPED_TRACE(testing::Message() << "T " << golden.temperature << " tolerance " << tolerance);
      LossInputs inputs{golden.inputs.student.to(dtype), golden.inputs.teacher.to(dtype), {}};
      const auto [value, gradient] = Differentiate(*loss, inputs);
      EXPECT_NEAR(value, golden.loss, tolerance);
      for (size_t i = 0; i < golden.gradient.size(); ++i) {
        EXPECT_NEAR(gradient.flatten()[i].item<double>(), golden.gradient[i], tolerance) << "element " << i;
      }
    }
  }
}

TEST(CwdLossTest, EqualMapsGiveExactlyZeroLossAndGradient) {  // T1
  const torch::Tensor map = RandomMaps({2, 3, 5, 7}, 1).student.to(torch::kFloat32);
  const auto [value, gradient] = Differentiate(*Build("cwd"), {map, map.clone(), {}});
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(gradient.abs().max().item<float>(), 0.0f);
}

TEST(CwdLossTest, ConstantsPerChannelChangeNothing) {  // T2
  const auto loss = Build("cwd", {{"temperature", 2.0}});
  const LossInputs inputs = RandomMaps({2, 3, 4, 5}, 2);
  const auto [value, gradient] = Differentiate(*loss, inputs);
  LossInputs shifted = inputs;
  shifted.student = inputs.student + torch::randn({2, 3, 1, 1}, torch::kFloat64) * 1000;
  shifted.teacher = inputs.teacher + torch::randn({2, 3, 1, 1}, torch::kFloat64) * 1000;
  EXPECT_NEAR(Value(*loss, shifted), value, 1e-11 * value);
  EXPECT_LT(gradient.flatten(2).sum(2).abs().max().item<double>(), 1e-14);
}

TEST(CwdLossTest, PermutationsOfPositionsAndChannelsChangeNothingButSwappingMapsDoes) {  // T3
  const auto loss = Build("cwd");
  const LossInputs inputs = RandomMaps({2, 3, 4, 5}, 3);
  const double value = Value(*loss, inputs);
  const torch::Tensor positions = torch::randperm(20), channels = torch::tensor({2, 0, 1});
  const auto permuted = [&](const torch::Tensor& map) {
    return map.flatten(2).index_select(2, positions).view({2, 3, 4, 5});
  };
  EXPECT_NEAR(Value(*loss, {permuted(inputs.student), permuted(inputs.teacher), {}}), value, 1e-13);
  EXPECT_NEAR(Value(*loss, {inputs.student.index_select(1, channels), inputs.teacher.index_select(1, channels), {}}),
              value, 1e-13);
  EXPECT_GT(std::abs(Value(*loss, {inputs.teacher, inputs.student, {}}) - value), 1e-3);
}

TEST(CwdLossTest, GradientIsClosedFormAndBounded) {  // T5
  for (double temperature : {1.0, 4.0}) {
    const auto loss = Build("cwd", {{"temperature", temperature}});
    const LossInputs inputs = RandomMaps({2, 3, 3, 3}, 5);
    const torch::Tensor gradient = Differentiate(*loss, inputs).gradient;
    const torch::Tensor q = torch::softmax(inputs.student.flatten(2) / temperature, 2);
    const torch::Tensor p = torch::softmax(inputs.teacher.flatten(2) / temperature, 2);
    const double bound = temperature / (2 * 3);
    EXPECT_LT((gradient.flatten(2) - bound * (q - p)).abs().max().item<double>(), 1e-15);
    EXPECT_LE(gradient.abs().max().item<double>(), bound);
    ExpectGradientMatchesDifferences(*loss, inputs);
  }
}

TEST(CwdLossTest, EveryDivergenceAndReductionHasTheGradientOfItsValue) {
  for (const char* divergence : {"kl_t_s", "ce", "kl_s_t", "js", "mse"}) {
    for (const char* reduction : {"mean", "sum_over_channels", "sum"}) {
      SCOPED_TRACE(testing::Message() << divergence << " " << reduction);
      const auto loss = Build("cwd", {{"temperature", 2.0}, {"divergence", divergence}, {"reduction", reduction}});
      ExpectGradientMatchesDifferences(*loss, RandomMaps({2, 2, 2, 3}, 6));
    }
  }
}

TEST(CwdLossTest, ReductionsDifferByTheirCounts) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, 7);
  const double mean = Value(*Build("cwd"), inputs);
  EXPECT_NEAR(Value(*Build("cwd", {{"reduction", "sum_over_channels"}}), inputs), 3 * mean, 1e-12 * mean);
  EXPECT_NEAR(Value(*Build("cwd", {{"reduction", "sum"}}), inputs), 6 * mean, 1e-12 * mean);
  EXPECT_NEAR(Value(*Build("cwd", {{"scale_t2", false}}), inputs), mean / 16, 1e-12 * mean);
}

TEST(CwdLossTest, JensenShannonIsSymmetricAndBelowLogTwo) {
  const auto loss = Build("cwd", {{"temperature", 1.0}, {"divergence", "js"}});
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, 8);
  const double value = Value(*loss, inputs);
  EXPECT_NEAR(Value(*loss, {inputs.teacher, inputs.student, {}}), value, 1e-13);
  EXPECT_GT(value, 0);
  EXPECT_LT(value, std::log(2.0));
}

TEST(CwdLossTest, ReverseDivergenceIsTheForwardOneWithTheMapsSwapped) {
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, 9);
  EXPECT_NEAR(Value(*Build("cwd", {{"divergence", "kl_s_t"}}), inputs),
              Value(*Build("cwd"), {inputs.teacher, inputs.student, {}}), 1e-12);
}

// What its schema says of row offsets, for the knobs that could matter.
TEST(CwdLossTest, ATeachersRowOffsetsChangeNothingWhereItIsSaid) {
  const LossSchema& schema = *FindLossSchema("cwd");
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, 19);
  const torch::Tensor offsets = torch::randn({2, 3, 1, 1}, torch::kFloat64) * 10;
  for (const char* axis : {"spatial", "channel", "channel_mean"}) {
    Knobs given = {{"norm_axis", axis}};
    if (std::string_view(axis) == "channel_mean") given["divergence"] = "mse";
    EXPECT_EQ(schema.ignores_row_offsets(*CompleteKnobs(schema, given)), std::string_view(axis) == "spatial") << axis;
  }
  for (const char* divergence : {"kl_t_s", "ce", "kl_s_t", "js", "mse"}) {
    for (const auto& [mismatch, side] : {std::pair{"error", 4}, {"pool_larger", 8}, {"teacher_to_student", 7}}) {
      SCOPED_TRACE(testing::Message() << divergence << " " << mismatch);
      const auto loss = Build("cwd", {{"divergence", divergence}, {"spatial_mismatch", mismatch}});
      inputs.teacher = torch::randn({2, 3, side, side}, torch::kFloat64) * 3;
      const auto wanted = Differentiate(*loss, inputs);
      inputs.teacher = inputs.teacher + offsets;
      const auto got = Differentiate(*loss, inputs);
      EXPECT_NEAR(got.loss, wanted.loss, 1e-10 * std::max(1.0, wanted.loss));
      EXPECT_TRUE(torch::allclose(got.gradient, wanted.gradient, 1e-8, 1e-12));
    }
  }
}

TEST(CwdLossTest, TemperatureIsHomogeneous) {  // T8
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, 10);
  const double at_four = Value(*Build("cwd", {{"temperature", 4.0}}), inputs);
  EXPECT_NEAR(at_four, 16 * Value(*Build("cwd", {{"temperature", 1.0}}), {inputs.student / 4, inputs.teacher / 4, {}}),
              1e-12);
  EXPECT_NEAR(Value(*Build("cwd", {{"temperature", 12.0}}), {inputs.student * 3, inputs.teacher * 3, {}}), 9 * at_four,
              1e-11);
}

TEST(CwdLossTest, LimitsOfTheTemperature) {  // T9
  const LossInputs inputs = RandomMaps({2, 3, 5, 5}, 11);
  const auto centred = [](const torch::Tensor& map) { return map.flatten(2) - map.flatten(2).mean(2, true); };
  const double large = 0.5 * (centred(inputs.student) - centred(inputs.teacher)).square().mean().item<double>();
  EXPECT_NEAR(Value(*Build("cwd", {{"temperature", 1e4}}), inputs), large, 1e-3 * large);
  const torch::Tensor s = inputs.student.flatten(2);
  const torch::Tensor at_peak = s.gather(2, inputs.teacher.flatten(2).argmax(2, true)).squeeze(2);
  const double small = 1e-3 * (s.amax(2) - at_peak).mean().item<double>();
  EXPECT_NEAR(Value(*Build("cwd", {{"temperature", 1e-3}}), inputs), small, 1e-6 * small);
}

TEST(CwdLossTest, ValueLiesBetweenZeroAndTheRangeBound) {  // T10
  for (double temperature : {0.5, 1.0, 4.0, 50.0}) {
    const LossInputs inputs = RandomMaps({1, 1, 6, 6}, 12);
    const double value = Value(*Build("cwd", {{"temperature", temperature}}), inputs);
    const torch::Tensor difference = inputs.teacher - inputs.student;
    const double range = (difference.max() - difference.min()).item<double>();
    EXPECT_GE(value, 0) << "T " << temperature;
    EXPECT_LE(value, range * range / 8) << "T " << temperature;
  }
}

TEST(CwdLossTest, CrossEntropyFormHasTheSameGradient) {  // T11
  const LossInputs inputs = RandomMaps({2, 3, 4, 4}, 13);
  const auto kl = Differentiate(*Build("cwd"), inputs);
  const auto ce = Differentiate(*Build("cwd", {{"divergence", "ce"}}), inputs);
  EXPECT_TRUE(torch::equal(kl.gradient, ce.gradient));
  const torch::Tensor log_p = torch::log_softmax(inputs.teacher.flatten(2) / 4, 2);
  const double entropy = -16 * (log_p.exp() * log_p).sum(2).mean().item<double>();
  EXPECT_NEAR(ce.loss, kl.loss + entropy, 1e-11);
}

TEST(CwdLossTest, LayoutAndBatchSplitChangeNothing) {  // T13
  const auto loss = Build("cwd");
  const LossInputs inputs = RandomMaps({4, 3, 5, 4}, 14);
  const auto [value, gradient] = Differentiate(*loss, inputs);
  const auto nhwc = Differentiate(*loss, {inputs.student.contiguous(torch::MemoryFormat::ChannelsLast),
                                          inputs.teacher.contiguous(torch::MemoryFormat::ChannelsLast),
                                          {}});
  EXPECT_EQ(nhwc.loss, value);
  EXPECT_TRUE(torch::equal(nhwc.gradient, gradient));
  double sum = 0;
  for (int64_t n = 0; n < 4; ++n)
    sum += Value(*loss, {inputs.student.slice(0, n, n + 1), inputs.teacher.slice(0, n, n + 1), {}});
  EXPECT_NEAR(sum / 4, value, 1e-13);
}

TEST(CwdLossTest, HalfPrecisionInputsMatchDoubleOnTheSameRoundedValues) {  // T15
  const LossInputs inputs = RandomMaps({2, 8, 14, 14}, 15);
  for (auto dtype : {torch::kBFloat16, torch::kFloat16}) {
    const torch::Tensor s = inputs.student.to(dtype), t = inputs.teacher.to(dtype);
    const double reference = Value(*Build("cwd"), {s.to(torch::kFloat64), t.to(torch::kFloat64), {}});
    EXPECT_NEAR(Value(*Build("cwd"), {s, t, {}}), reference, 1e-5 * reference);
  }
}

TEST(CwdLossTest, LargeConstantsAndSmallTemperaturesStayFinite) {
  const LossInputs inputs = RandomMaps({2, 3, 8, 8}, 16);
  const double reference = Value(*Build("cwd", {{"temperature", 0.1}}), inputs);
  // 2^14: float32 keeps the maps to about 1e-3 next to it.
  const auto [value, gradient] =
      Differentiate(*Build("cwd", {{"temperature", 0.1}}),
                    {(inputs.student + 16384).to(torch::kFloat32), (inputs.teacher - 16384).to(torch::kFloat32), {}});
  EXPECT_NEAR(value, reference, 2e-2 * reference);
  EXPECT_TRUE(gradient.isfinite().all().item<bool>());
}

TEST(CwdLossTest, OnePositionGivesZero) {
  const auto [value, gradient] = Differentiate(*Build("cwd"), RandomMaps({2, 3, 1, 1}, 17));
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(gradient.abs().max().item<double>(), 0.0);
}

TEST(CwdLossTest, EmptyBatchGivesZeroAndKeepsTheGraph) {
  const auto [value, gradient] =
      Differentiate(*Build("cwd"), {torch::zeros({0, 3, 4, 4}), torch::zeros({0, 3, 4, 4}), {}});
  EXPECT_EQ(value, 0.0);
  EXPECT_EQ(gradient.sizes(), (std::vector<int64_t>{0, 3, 4, 4}));
}

TEST(CwdLossTest, TeacherGetsNoGradient) {
  LossInputs inputs = RandomMaps({1, 2, 3, 3}, 18);
  inputs.student.requires_grad_(true);
  inputs.teacher.requires_grad_(true);
  for (const char* divergence : {"kl_t_s", "kl_s_t"}) {
    auto loss = Build("cwd", {{"divergence", divergence}})->Compute(inputs);
    ASSERT_TRUE(loss.ok()) << loss.status();
    loss->backward();
    EXPECT_FALSE(inputs.teacher.grad().defined());
  }
}

TEST(CwdLossTest, ShapesThatDifferAreRefusedWithBothNamed) {
  const auto loss = Build("cwd");
  auto channels = loss->Compute({torch::zeros({2, 16, 7, 7}), torch::zeros({2, 32, 7, 7}), {}});
  EXPECT_EQ(channels.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(channels.status().ToString(), HasSubstr("[2, 16, 7, 7]"));
  EXPECT_THAT(channels.status().ToString(), HasSubstr("[2, 32, 7, 7]"));
  EXPECT_THAT(channels.status().ToString(), HasSubstr("conv1x1"));
  EXPECT_EQ(loss->Compute({torch::zeros({2, 16}), torch::zeros({2, 16}), {}}).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(loss->Compute({torch::zeros({2, 16, 7, 7}), {}, {}}).status().code(), StatusCode::kInvalidArgument);
}

TEST(CwdLossTest, TheFusedKernelIsTheDenseFormForAnyRowLength) {  // T4
  for (int64_t length : {1, 2, 7, 64, 65, 1000, 4099}) {
    SCOPED_TRACE(length);
    LossInputs inputs = RandomMaps({2, 3, 1, length}, 4);
    inputs.student = inputs.student.to(torch::kFloat32);
    inputs.teacher = inputs.teacher.to(torch::kFloat32);
    const torch::Tensor log_p = torch::log_softmax(inputs.teacher.to(torch::kFloat64).flatten(2) / 4, 2);
    const torch::Tensor log_q = torch::log_softmax(inputs.student.to(torch::kFloat64).flatten(2) / 4, 2);
    const double expected = 16.0 / 6 * (log_p.exp() * (log_p - log_q)).sum().item<double>();
    const torch::Tensor slope = 4.0 / 6 * (log_q.exp() - log_p.exp());
    const auto [value, gradient] = Differentiate(*Build("cwd"), inputs);
    EXPECT_NEAR(value, expected, 2e-6 * expected);
    EXPECT_LE((gradient.flatten(2) - slope).norm().item<double>(), 1e-6 * slope.norm().item<double>());
  }
}

TEST(CwdLossTest, ImplDenseIsTheFusedKernelsLoss) {
  LossInputs inputs = RandomMaps({2, 3, 5, 7}, 12);
  inputs.student = inputs.student.to(torch::kFloat32);
  inputs.teacher = inputs.teacher.to(torch::kFloat32);
  for (const char* divergence : {"kl_t_s", "ce"}) {
    const auto fused = Differentiate(*Build("cwd", {{"divergence", divergence}}), inputs);
    const auto dense = Differentiate(*Build("cwd", {{"divergence", divergence}, {"impl", "dense"}}), inputs);
    EXPECT_NEAR(fused.loss, dense.loss, 1e-5 * dense.loss) << divergence;
    EXPECT_TRUE(torch::allclose(fused.gradient, dense.gradient, 1e-4, 1e-7)) << divergence;
    EXPECT_FALSE(torch::equal(fused.gradient, dense.gradient)) << divergence << ": the knob is not read";
  }
}

TEST(CwdLossTest, IsConvexInTheStudent) {  // T7
  const auto loss = Build("cwd", {{"temperature", 1.0}});
  const LossInputs inputs = RandomMaps({1, 1, 2, 3}, 19);
  // The Hessian of the one row is diag(q) - q q^T.
  const torch::Tensor q = torch::softmax(inputs.student.flatten(), 0);
  const torch::Tensor hessian = torch::diag(q) - torch::outer(q, q);
  for (int64_t i = 0; i < 6; ++i) {
    LossInputs up = inputs, down = inputs;
    up.student = inputs.student.clone();
    down.student = inputs.student.clone();
    up.student.flatten()[i] += 1e-5;
    down.student.flatten()[i] -= 1e-5;
    const torch::Tensor row = (Differentiate(*loss, up).gradient - Differentiate(*loss, down).gradient) / 2e-5;
    EXPECT_LT((row.flatten() - hessian[i]).abs().max().item<double>(), 1e-8) << "row " << i;
  }
  const LossInputs other = RandomMaps({1, 1, 2, 3}, 20);
  const double middle = Value(*loss, {(inputs.student + other.student) / 2, inputs.teacher, {}});
  EXPECT_LE(middle, (Value(*loss, inputs) + Value(*loss, {other.student, inputs.teacher, {}})) / 2);
}

TEST(CwdLossTest, NormAxisChannelIsPixelWiseDistillation) {  // T12
  const LossInputs inputs = RandomMaps({2, 3, 4, 5}, 21);
  const auto exchanged = [](const torch::Tensor& map) { return map.flatten(2).transpose(1, 2).unsqueeze(3); };
  const LossInputs swapped{exchanged(inputs.student), exchanged(inputs.teacher), {}};
  for (double temperature : {1.0, 4.0}) {
    const Knobs knobs = {{"temperature", temperature}};
    const auto pixel = Differentiate(*Build("pixel_kd", knobs), inputs);
    EXPECT_NEAR(pixel.loss, Value(*Build("cwd", knobs), swapped), 1e-12);
    const auto channel = Differentiate(*Build("cwd", {{"temperature", temperature}, {"norm_axis", "channel"}}), inputs);
    EXPECT_NEAR(channel.loss, pixel.loss, 1e-12);
    EXPECT_TRUE(torch::allclose(channel.gradient, pixel.gradient, 1e-12, 1e-14));
  }
  for (const char* divergence : {"kl_t_s", "ce", "kl_s_t", "js", "mse"}) {
    const Knobs knobs = {{"norm_axis", "channel"}, {"divergence", divergence}};
    ExpectGradientMatchesDifferences(*Build("cwd", knobs), inputs);
    EXPECT_NEAR(Value(*Build("cwd", knobs), inputs), Value(*Build("cwd", {{"divergence", divergence}}), swapped),
                1e-11);
  }
}

TEST(CwdLossTest, NormAxisChannelMeanComparesTheMeansOfChannels) {
  const Knobs knobs = {{"norm_axis", "channel_mean"}};
  const LossInputs inputs = RandomMaps({2, 3, 4, 5}, 22);
  const torch::Tensor squares = (inputs.student.mean({2, 3}) - inputs.teacher.mean({2, 3})).square();
  EXPECT_NEAR(Value(*Build("cwd", knobs), inputs), squares.mean().item<double>(), 1e-13);
  EXPECT_NEAR(Value(*Build("cwd", {{"norm_axis", "channel_mean"}, {"reduction", "sum"}}), inputs),
              squares.sum().item<double>(), 1e-12);
  EXPECT_NEAR(Value(*Build("cwd", {{"norm_axis", "channel_mean"}, {"reduction", "sum_over_channels"}}), inputs),
              squares.sum().item<double>() / 2, 1e-12);
  ExpectGradientMatchesDifferences(*Build("cwd", knobs), inputs);
}

TEST(CwdLossTest, TheTemperatureMovesOverTheStage) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, 23);
  const auto at = [&](const Knobs& knobs, double progress) {
    inputs.progress = progress;
    return Value(*Build("cwd", knobs), inputs);
  };
  const auto fixed = [&](double temperature) { return at({{"temperature", temperature}}, 0.3); };
  const Knobs linear = {{"temperature", 8.0}, {"temperature_end", 2.0}};
  EXPECT_NEAR(at(linear, 0), fixed(8), 1e-12);
  EXPECT_NEAR(at(linear, 0.5), fixed(5), 1e-12);
  EXPECT_NEAR(at(linear, 0.75), fixed(3.5), 1e-12);
  Knobs cosine = linear;
  cosine["temperature_schedule"] = std::string("cosine");
  EXPECT_NEAR(at(cosine, 0.5), fixed(5), 1e-12);
  EXPECT_NEAR(at(cosine, 1.0 / 3), fixed(8 - 6 * 0.25), 1e-12);  // (1 - cos 60 degrees) / 2
  Knobs constant = linear;
  constant["temperature_schedule"] = std::string("constant");
  EXPECT_NEAR(at(constant, 0.5), fixed(8), 1e-12);
}

TEST(CwdLossTest, MapsOfDifferentSizeFollowTheirKnob) {
  LossInputs inputs = RandomMaps({2, 3, 4, 4}, 24);
  const torch::Tensor small = inputs.student;
  inputs.teacher = RandomMaps({2, 3, 8, 8}, 25).teacher;
  const auto loss = [&](const char* how, bool corners = false) {
    return Build("cwd", {{"spatial_mismatch", how}, {"align_corners", corners}});
  };
  const auto bilinear = [](const torch::Tensor& map, int64_t side, bool corners) {
    return torch::upsample_bilinear2d(map, {side, side}, corners);
  };
  for (bool corners : {false, true}) {
    EXPECT_NEAR(Value(*loss("teacher_to_student", corners), inputs),
                Value(*Build("cwd"), {small, bilinear(inputs.teacher, 4, corners), {}}), 1e-12);
    EXPECT_NEAR(Value(*loss("student_to_teacher", corners), inputs),
                Value(*Build("cwd"), {bilinear(small, 8, corners), inputs.teacher, {}}), 1e-12);
  }
  EXPECT_NEAR(Value(*Build("cwd"), inputs), Value(*loss("teacher_to_student"), inputs), 1e-12);  // the default
  EXPECT_NEAR(Value(*loss("pool_larger"), inputs),
              Value(*Build("cwd"), {small, torch::avg_pool2d(inputs.teacher, 2), {}}), 1e-12);
  ExpectGradientMatchesDifferences(*loss("student_to_teacher"), inputs);
  const std::string refusal = Refusal(*loss("error"), inputs);
  EXPECT_THAT(refusal, HasSubstr("[2, 3, 4, 4]"));
  EXPECT_THAT(refusal, HasSubstr("[2, 3, 8, 8]"));
}

TEST(CwdLossTest, HalfPrecisionGradientsMatchDoubleInBothLayouts) {  // T13, T15
  const LossInputs inputs = RandomMaps({2, 8, 14, 13}, 26);
  // The gradient comes back in the input's dtype: half a unit in the last place of each element.
  for (const auto& [dtype, epsilon] :
       {std::pair{torch::kBFloat16, 1.0 / 256}, std::pair{torch::kFloat16, 1.0 / 2048}}) {
    const torch::Tensor s = inputs.student.to(dtype), t = inputs.teacher.to(dtype);
    const auto expected = Differentiate(*Build("cwd"), {s.to(torch::kFloat64), t.to(torch::kFloat64), {}});
    const auto plain = Differentiate(*Build("cwd"), {s, t, {}});
    const auto nhwc = Differentiate(
        *Build("cwd"),
        {s.contiguous(torch::MemoryFormat::ChannelsLast), t.contiguous(torch::MemoryFormat::ChannelsLast), {}});
    const auto mixed = Differentiate(*Build("cwd"), {s.contiguous(torch::MemoryFormat::ChannelsLast), t, {}});
    for (const LossAndGradient* result : {&plain, &nhwc, &mixed}) {
      EXPECT_NEAR(result->loss, expected.loss, 1e-5 * expected.loss);
      EXPECT_EQ(result->gradient.scalar_type(), dtype);
      const double gap = (result->gradient.to(torch::kFloat64) - expected.gradient).norm().item<double>();
      // float16 gradients of some 1e-6 are subnormal; they carry next to none of the norm.
      EXPECT_LE(gap, (epsilon + 1e-4) * expected.gradient.norm().item<double>());
    }
  }
}

TEST(CwdLossTest, ADeadTeacherChannelPullsTheStudentToAConstant) {
  LossInputs inputs = RandomMaps({1, 1, 3, 3}, 27);
  inputs.teacher.fill_(7);
  const torch::Tensor q = torch::softmax(inputs.student.flatten() / 4, 0);
  EXPECT_LT((Differentiate(*Build("cwd"), inputs).gradient.flatten() - 4 * (q - 1.0 / 9)).abs().max().item<double>(),
            1e-14);
  EXPECT_NEAR(Value(*Build("cwd"), {torch::full_like(inputs.teacher, -3), inputs.teacher, {}}), 0, 1e-15);
}

TEST(CwdLossTest, NaNAndInfinityShowInTheLoss) {
  for (auto dtype : {torch::kFloat64, torch::kFloat32, torch::kBFloat16}) {
    for (double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      LossInputs inputs = RandomMaps({2, 3, 4, 4}, 28);
      inputs.student = inputs.student.to(dtype);
      inputs.teacher = inputs.teacher.to(dtype);
      inputs.teacher[1][2][3][0] = bad;
      EXPECT_FALSE(std::isfinite(Value(*Build("cwd"), inputs))) << dtype << " " << bad;
    }
  }
}

TEST(CwdLossTest, ATemperatureThatIsNoPositiveNumberIsRefused) {
  for (double bad : {0.0, -1.0, std::nan(""), std::numeric_limits<double>::infinity()}) {
    EXPECT_THROW(Build("cwd", {{"temperature", bad}}), std::runtime_error) << bad;
  }
}

TEST(CwdLossTest, EmptyBatchesGiveZeroForEveryKnob) {
  for (const char* axis : {"spatial", "channel", "channel_mean"}) {
    for (const char* divergence : {"kl_t_s", "js"}) {
      for (int64_t teacher : {4, 8}) {
        const auto loss = Build("cwd", {{"norm_axis", axis}, {"divergence", divergence}});
        const auto [value, gradient] =
            Differentiate(*loss, {torch::zeros({0, 3, 4, 4}), torch::zeros({0, 3, teacher, teacher}), {}});
        EXPECT_EQ(value, 0.0) << axis << " " << divergence;
        EXPECT_EQ(gradient.numel(), 0) << axis << " " << divergence;
      }
    }
  }
}

}  // namespace
}  // namespace distill
