// Losses of networks that answer for every pixel: a row of logits for each pixel, and pixels without a label.
#include "common/plan/loss_schema.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;

// [2, 5, 4, 6] logits of both networks and [2, 4, 6] labels, of which about a third are ignored.
LossInputs Pixels(torch::Dtype dtype = torch::kFloat64) {
  torch::manual_seed(31);
  LossInputs inputs;
  inputs.student = torch::randn({2, 5, 4, 6}, torch::kFloat64).to(dtype);
  inputs.teacher = torch::randn({2, 5, 4, 6}, torch::kFloat64).to(dtype);
  inputs.labels = torch::randint(5, {2, 4, 6}, torch::kInt64);
  inputs.labels.masked_fill_(torch::rand({2, 4, 6}).lt(0.3), kIgnoredLabel);
  return inputs;
}

// The same logits as a batch of samples, one for each pixel that `keep` (bool [2, 4, 6]) holds.
LossInputs AsSamples(const LossInputs& pixels, const torch::Tensor& keep) {
  const auto rows = [&](const torch::Tensor& logits) {
    return logits.permute({0, 2, 3, 1}).reshape({-1, logits.size(1)}).index({keep.flatten()});
  };
  return {rows(pixels.student), rows(pixels.teacher), pixels.labels.flatten().index({keep.flatten()})};
}

class PixelLogitsTest : public testing::TestWithParam<std::string> {};

TEST_P(PixelLogitsTest, EqualsTheLossOfItsPixelsAsSamples) {
  const auto loss = Build(GetParam());
  const bool labelled_only = FindLossSchema(GetParam())->uses_labels;
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    const LossInputs pixels = Pixels(dtype);
    const torch::Tensor labelled = pixels.labels.ne(kIgnoredLabel);
    const torch::Tensor keep = labelled_only ? labelled : torch::ones_like(labelled);
    const LossAndGradient got = Differentiate(*loss, pixels);
    const LossAndGradient expected = Differentiate(*loss, AsSamples(pixels, keep));
    const double tolerance = dtype == torch::kFloat64 ? 1e-12 : 1e-5;
    EXPECT_NEAR(got.loss, expected.loss, tolerance * expected.loss);
    EXPECT_GT(got.loss, 0.01);
    const torch::Tensor rows = got.gradient.permute({0, 2, 3, 1}).reshape({-1, 5});
    EXPECT_LT((rows.index({keep.flatten()}) - expected.gradient).abs().max().item<double>(), tolerance);
    if (labelled_only) {
      EXPECT_EQ(rows.index({keep.flatten().logical_not()}).abs().max().item<double>(), 0);
    }
  }
}

TEST_P(PixelLogitsTest, GradientMatchesDifferences) { ExpectGradientMatchesDifferences(*Build(GetParam()), Pixels()); }

TEST_P(PixelLogitsTest, RefusesShapesThatDoNotFit) {
  const auto loss = Build(GetParam());
  LossInputs inputs = Pixels();
  inputs.student = inputs.student.select(3, 0);
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("[2, 5, 4]"));
  if (!FindLossSchema(GetParam())->uses_labels) return;
  inputs = Pixels();
  inputs.labels = inputs.labels.slice(2, 0, 5);
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("needs int64 labels, one for each of its logits [2, 5, 4, 6]"));
  inputs.labels = torch::zeros({2}, torch::kInt64);
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("got [2]"));
}

INSTANTIATE_TEST_SUITE_P(Losses, PixelLogitsTest, testing::Values("cross_entropy", "kd", "dkd"));

TEST(PixelLabelsTest, CrossEntropyIsTorchsWithItsIgnoreIndex) {
  const LossInputs inputs = Pixels();
  for (const double smoothing : {0.0, 0.1}) {
    const auto loss = Build("cross_entropy", {{"label_smoothing", smoothing}});
    const double expected =
        torch::cross_entropy_loss(inputs.student, inputs.labels, {}, at::Reduction::Mean, kIgnoredLabel, smoothing)
            .item<double>();
    EXPECT_NEAR(Value(*loss, inputs), expected, 1e-12);
  }
}

TEST(PixelLabelsTest, WithoutALabelledPixelLossAndGradientAreZero) {
  for (const std::string type : {"cross_entropy", "dkd"}) {
    LossInputs inputs = Pixels();
    inputs.labels.fill_(kIgnoredLabel);
    const LossAndGradient got = Differentiate(*Build(type), inputs);
    EXPECT_EQ(got.loss, 0) << type;
    EXPECT_EQ(got.gradient.abs().max().item<double>(), 0) << type;
  }
}

}  // namespace
}  // namespace distill
