// CWD's masks: positions in the padding of a random crop, or without a label, take no part.
#include "common/plan/loss_schema.h"
#include "common/plan/loss_shapes.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::HasSubstr;

Knobs Masked(const std::string& mask, Knobs more = {}) {
  more["mask"] = mask;
  return more;
}

// What either mask leaves of maps of 8 x 8 positions: the upper half and the left three quarters.
torch::Tensor Part(const torch::Tensor& map) { return map.slice(2, 0, 4).slice(3, 0, 6).contiguous(); }

LossInputs WithPart(const std::string& mask, const torch::Tensor& student, const torch::Tensor& teacher) {
  LossInputs inputs{student, teacher, {}};
  const int64_t n = student.size(0);
  if (mask == "padding") {
    inputs.visible = torch::tensor({0.0f, 0.0f, 0.5f, 0.75f}).repeat({n, 1});
  } else {  // labels of images of 16 x 16 pixels
    inputs.labels = torch::full({n, 16, 16}, kIgnoredLabel, torch::kInt64);
    inputs.labels.slice(1, 0, 8).slice(2, 0, 12).fill_(3);
  }
  return inputs;
}

using MaskAndDivergence = std::tuple<std::string, std::string>;
class CwdMaskTest : public testing::TestWithParam<MaskAndDivergence> {};

TEST_P(CwdMaskTest, EqualsTheLossOfThePartThatIsLeft) {
  const auto& [mask, divergence] = GetParam();
  torch::manual_seed(3);
  const torch::Tensor s = torch::randn({2, 3, 8, 8}, torch::kFloat64), t = torch::randn({2, 3, 8, 8}, torch::kFloat64);
  const auto masked = Build("cwd", Masked(mask, {{"divergence", divergence}}));
  const auto whole = Build("cwd", {{"divergence", divergence}});
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {  // operators and fused kernel
    const LossAndGradient got = Differentiate(*masked, WithPart(mask, s.to(dtype), t.to(dtype)));
    const LossAndGradient expected = Differentiate(*whole, {Part(s), Part(t), {}});
    const double tolerance = dtype == torch::kFloat64 ? 1e-12 : 1e-5;
    EXPECT_NEAR(got.loss, expected.loss, tolerance * std::max(1.0, std::abs(expected.loss)));
    EXPECT_LT((Part(got.gradient) - expected.gradient).abs().max().item<double>(), tolerance);
    EXPECT_EQ(got.gradient.slice(2, 4).abs().max().item<double>(), 0);
    EXPECT_EQ(got.gradient.slice(3, 6).abs().max().item<double>(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Masks, CwdMaskTest,
                         testing::Combine(testing::Values("padding", "valid_labels"),
                                          testing::Values("kl_t_s", "ce", "kl_s_t", "js", "mse")));

class CwdMaskEdgeTest : public testing::TestWithParam<std::string> {};

TEST_P(CwdMaskEdgeTest, ASampleOfWhichNothingIsLeftContributesNothing) {
  torch::manual_seed(4);
  const auto loss = Build("cwd", Masked(GetParam()));
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    LossInputs inputs{torch::randn({2, 3, 4, 4}, dtype), torch::randn({2, 3, 4, 4}, dtype), {}};
    inputs.visible = torch::tensor({0.0f, 0.0f, 1.0f, 1.0f, 0.0f, 0.0f, 0.0f, 0.0f}).view({2, 4});
    inputs.labels = torch::zeros({2, 8, 8}, torch::kInt64);
    inputs.labels[1].fill_(kIgnoredLabel);
    const LossAndGradient got = Differentiate(*loss, inputs);
    const LossAndGradient first =
        Differentiate(*Build("cwd"), {inputs.student.slice(0, 0, 1), inputs.teacher.slice(0, 0, 1), {}});
    EXPECT_NEAR(got.loss, first.loss / 2, 1e-5);  // it still counts in the mean
    EXPECT_EQ(got.gradient[1].abs().max().item<double>(), 0);
    EXPECT_TRUE(std::isfinite(got.gradient.sum().item<double>()));
  }
}

TEST_P(CwdMaskEdgeTest, NeedsTheSpatialAxis) {
  LossPlan plan;
  plan.type = "cwd";
  plan.adapter = "auto";
  plan.knobs = *CompleteKnobs(*FindLossSchema("cwd"), Masked(GetParam(), {{"norm_axis", std::string("channel")}}));
  std::vector<std::string> warnings;
  EXPECT_THAT(ResolveLoss({4, {8, 8}}, {4, {8, 8}}, &plan, &warnings).ToString(),
              HasSubstr("needs norm_axis: spatial"));
}

INSTANTIATE_TEST_SUITE_P(Masks, CwdMaskEdgeTest, testing::Values("padding", "valid_labels"));

TEST(CwdValidLabelsTest, ThePixelAtAPositionsCentreDecides) {
  torch::manual_seed(6);
  const torch::Tensor s = torch::randn({1, 2, 2, 3}, torch::kFloat64), t = torch::randn({1, 2, 2, 3}, torch::kFloat64);
  // 5 x 7 pixels: the rows' centres are at pixels 1 and 3, the columns' at 1, 3 and 5.
  const torch::Tensor labels = torch::zeros({1, 5, 7}, torch::kInt64);
  for (const auto& [y, x] : {std::pair{1, 3}, {3, 5}}) labels[0][y][x] = kIgnoredLabel;
  const LossAndGradient got = Differentiate(*Build("cwd", Masked("valid_labels")), {s, t, labels});
  torch::Tensor seen = torch::ones({2, 3}, torch::kBool);
  seen[0][1] = false;
  seen[1][2] = false;
  const auto kept = [&](const torch::Tensor& map) {
    return map.flatten(2).index({"...", seen.flatten()}).unsqueeze(2);
  };
  EXPECT_NEAR(got.loss, Value(*Build("cwd"), {kept(s), kept(t), {}}), 1e-12);
  EXPECT_TRUE(got.gradient[0][0].eq(0).equal(seen.logical_not()));
}

TEST(CwdValidLabelsTest, NeedsALabelForEveryPixel) {
  const auto loss = Build("cwd", Masked("valid_labels"));
  const torch::Tensor map = torch::randn({2, 3, 4, 4});
  EXPECT_THAT(Refusal(*loss, {map, map, {}}), HasSubstr("got none"));
  EXPECT_THAT(Refusal(*loss, {map, map, torch::zeros({2}, torch::kInt64)}),
              HasSubstr("mask: valid_labels needs int64 labels [N, H, W]"));
  LossPlan plan;
  plan.type = "cwd";
  for (const std::string mask : {"none", "padding", "valid_labels"}) {
    plan.knobs = *CompleteKnobs(*FindLossSchema("cwd"), Masked(mask));
    EXPECT_EQ(ReadsLabels(plan), mask == "valid_labels") << mask;
    EXPECT_EQ(ReadsLabelMaps(plan), mask == "valid_labels") << mask;
  }
}

}  // namespace
}  // namespace distill
