#include "student_worker/train/weight_average.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace distill {
namespace {

std::vector<NamedTensor> WeightsOf(const torch::nn::Module& net) {
  std::vector<NamedTensor> weights;
  for (const auto& item : net.named_parameters()) weights.push_back({item.key(), item.value()});
  for (const auto& item : net.named_buffers()) weights.push_back({item.key(), item.value()});
  return weights;
}

double First(const torch::Tensor& tensor) { return tensor.detach().view(-1)[0].item<double>(); }

TEST(WeightAverageTest, FollowsItsFormulaWithAWarmUp) {
  torch::nn::Linear net(1, 1);
  const torch::NoGradGuard no_grad;
  net->weight.fill_(1);
  WeightAverage average(WeightsOf(*net), 0.5);
  double expected = 1;
  for (int n = 1; n <= 12; ++n) {
    net->weight.fill_(n * n);
    average.Update();
    const double d = std::min(0.5, (1.0 + n) / (10.0 + n));  // 2/11, 3/12, ... and 1/2 from the eighth on
    expected = d * expected + (1 - d) * n * n;
    EXPECT_NEAR(First(average.State()[0].tensor), expected, 1e-5 * expected) << n;
  }
  EXPECT_EQ(average.updates(), 12u);
}

TEST(WeightAverageTest, TakesInStatisticsButNoCounters) {
  torch::nn::BatchNorm1d net(2);
  WeightAverage average(WeightsOf(*net), 0.9);
  std::vector<std::string> names;
  for (const NamedTensor& item : average.State()) names.push_back(item.name);
  EXPECT_THAT(names, testing::UnorderedElementsAre("ema.weight", "ema.bias", "ema.running_mean", "ema.running_var"));
}

TEST(WeightAverageTest, SwapsInPlaceAndBack) {
  torch::nn::Linear net(1, 1);
  const torch::NoGradGuard no_grad;
  net->weight.fill_(1);
  WeightAverage average(WeightsOf(*net), 0.5);
  net->weight.fill_(12);
  average.Update();
  const torch::Tensor weight = net->weight;
  {
    const AveragedWeightsGuard guard(&average);
    EXPECT_FLOAT_EQ(First(weight), 10);  // 2/11 * 1 + 9/11 * 12
    EXPECT_FLOAT_EQ(First(average.State()[0].tensor), 12);
  }
  EXPECT_EQ(First(weight), 12);
  EXPECT_FLOAT_EQ(First(average.State()[0].tensor), 10);
  const AveragedWeightsGuard nothing(nullptr);
}

}  // namespace
}  // namespace distill
