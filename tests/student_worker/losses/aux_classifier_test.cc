#include "tests/student_worker/losses/loss_checks.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A map of 8 channels, labels of four times its size, of which some are ignored.
LossInputs MapAndLabels() {
  torch::manual_seed(41);
  LossInputs inputs;
  inputs.student = torch::randn({2, 8, 5, 6}, torch::kFloat64);
  inputs.labels = torch::randint(3, {2, 20, 24}, torch::kInt64);
  inputs.labels.masked_fill_(torch::rand({2, 20, 24}).lt(0.3), kIgnoredLabel);
  return inputs;
}

TEST(AuxClassifierTest, IsTheCrossEntropyOfTorchvisionsHead) {
  const LossInputs inputs = MapAndLabels();
  for (const bool align : {false, true}) {
    const auto loss = InDouble(Build("aux_classifier", {{"align_corners", align}}, 8, 3));
    const auto p = loss->module()->named_parameters();
    EXPECT_THAT(p.keys(), ElementsAre("0.weight", "0.norm_weight", "0.norm_bias", "4.weight", "4.bias"));
    EXPECT_EQ(p["0.weight"].sizes(), (std::vector<int64_t>{2, 8, 3, 3}));
    SetParameter(*loss, "0.norm_bias", torch::tensor({0.3, -0.2}));
    torch::Tensor y = torch::conv2d(inputs.student, p["0.weight"], {}, 1, 1);
    y = torch::batch_norm(y, p["0.norm_weight"], p["0.norm_bias"], {}, {}, true, 0.1, 1e-5, false).relu();
    y = torch::conv2d(y, p["4.weight"], p["4.bias"]);
    y = torch::nn::functional::interpolate(y, torch::nn::functional::InterpolateFuncOptions()
                                                  .size(std::vector<int64_t>{20, 24})
                                                  .mode(torch::kBilinear)
                                                  .align_corners(align));
    const torch::Tensor log_q = torch::log_softmax(y, 1);
    double sum = 0;
    int64_t pixels = 0;
    const auto label = inputs.labels.accessor<int64_t, 3>();
    const auto q = log_q.accessor<double, 4>();
    for (int64_t n = 0; n < 2; ++n) {
      for (int64_t i = 0; i < 20; ++i) {
        for (int64_t j = 0; j < 24; ++j) {
          if (label[n][i][j] == kIgnoredLabel) continue;
          sum -= q[n][label[n][i][j]][i][j];
          ++pixels;
        }
      }
    }
    EXPECT_NEAR(Value(*loss, inputs), sum / static_cast<double>(pixels), 1e-12) << align;
    EXPECT_EQ(loss->Count(inputs), static_cast<double>(pixels));
  }
}

TEST(AuxClassifierTest, RefusesWhatItCannotRead) {
  const auto loss = Build("aux_classifier", {}, 8, 3);
  LossInputs inputs = MapAndLabels();
  inputs.student = torch::zeros({2, 4, 5, 6});
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("takes a map [N, 8, H, W]; got [2, 4, 5, 6]"));
  inputs = MapAndLabels();
  inputs.labels = torch::zeros({2}, torch::kInt64);
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("needs a label for every pixel, int64 [N, H, W]; got [2]"));
  inputs.labels = torch::Tensor();
  EXPECT_THAT(Refusal(*loss, inputs), HasSubstr("got none"));
  LossPlan plan;
  plan.type = plan.name = "aux_classifier";
  EXPECT_THAT(MakeLoss(plan).status().ToString(), HasSubstr("needs the map's channel count"));
}

}  // namespace
}  // namespace distill
