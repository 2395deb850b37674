// CWD's mask: positions in the padding of a random crop take no part.
#include "common/plan/loss_schema.h"
#include "common/plan/loss_shapes.h"
#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

// The upper half and the left three quarters of an image of 8 x 8 positions are visible.
torch::Tensor Visible(int64_t n) { return torch::tensor({0.0f, 0.0f, 0.5f, 0.75f}).repeat({n, 1}); }

class CwdMaskTest : public testing::TestWithParam<std::string> {};

TEST_P(CwdMaskTest, EqualsTheLossOfTheVisiblePart) {
  torch::manual_seed(3);
  const torch::Tensor s = torch::randn({2, 3, 8, 8}, torch::kFloat64), t = torch::randn({2, 3, 8, 8}, torch::kFloat64);
  const auto part = [](const torch::Tensor& map) { return map.slice(2, 0, 4).slice(3, 0, 6).contiguous(); };
  const auto masked = Build("cwd", {{"mask", std::string("padding")}, {"divergence", GetParam()}});
  const auto whole = Build("cwd", {{"divergence", GetParam()}});
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {  // operators and fused kernel
    LossInputs inputs{s.to(dtype), t.to(dtype), {}};
    inputs.visible = Visible(2);
    const LossAndGradient got = Differentiate(*masked, inputs);
    const LossAndGradient expected = Differentiate(*whole, {part(s), part(t), {}});
    const double tolerance = dtype == torch::kFloat64 ? 1e-12 : 1e-5;
    EXPECT_NEAR(got.loss, expected.loss, tolerance * std::max(1.0, std::abs(expected.loss)));
    EXPECT_LT((part(got.gradient) - expected.gradient).abs().max().item<double>(), tolerance);
    EXPECT_EQ(got.gradient.slice(2, 4).abs().max().item<double>(), 0);
    EXPECT_EQ(got.gradient.slice(3, 6).abs().max().item<double>(), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Divergences, CwdMaskTest, testing::Values("kl_t_s", "ce", "kl_s_t", "js", "mse"));

TEST(CwdMaskEdgeTest, ASampleOfPaddingAloneContributesNothing) {
  torch::manual_seed(4);
  const auto loss = Build("cwd", {{"mask", std::string("padding")}});
  for (const auto dtype : {torch::kFloat64, torch::kFloat32}) {
    LossInputs inputs{torch::randn({2, 3, 4, 4}, dtype), torch::randn({2, 3, 4, 4}, dtype), {}};
    inputs.visible = torch::tensor({0.0f, 0.0f, 1.0f, 1.0f, 0.0f, 0.0f, 0.0f, 0.0f}).view({2, 4});
    const LossAndGradient got = Differentiate(*loss, inputs);
    const LossAndGradient first =
        Differentiate(*Build("cwd"), {inputs.student.slice(0, 0, 1), inputs.teacher.slice(0, 0, 1), {}});
    EXPECT_NEAR(got.loss, first.loss / 2, 1e-5);  // it still counts in the mean
    EXPECT_EQ(got.gradient[1].abs().max().item<double>(), 0);
    EXPECT_TRUE(std::isfinite(got.gradient.sum().item<double>()));
  }
}

TEST(CwdMaskEdgeTest, NeedsTheSpatialAxis) {
  LossPlan plan;
  plan.type = "cwd";
  plan.adapter = "auto";
  plan.knobs =
      *CompleteKnobs(*FindLossSchema("cwd"), {{"mask", std::string("padding")}, {"norm_axis", std::string("channel")}});
  std::vector<std::string> warnings;
  EXPECT_THAT(ResolveLoss({4, {8, 8}}, {4, {8, 8}}, &plan, &warnings).ToString(),
              testing::HasSubstr("needs norm_axis: spatial"));
}

}  // namespace
}  // namespace distill
