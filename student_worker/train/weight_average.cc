#include "student_worker/train/weight_average.h"

#include <torch/torch.h>

#include <algorithm>

#include "common/str_cat.h"

namespace distill {

WeightAverage::WeightAverage(const std::vector<NamedTensor>& weights, double decay) : decay_(decay) {
  for (const NamedTensor& item : weights) {
    if (!item.tensor.is_floating_point()) continue;
    weights_.push_back(item.tensor.detach());
    averages_.push_back(item.tensor.detach().clone());
    state_.push_back({StrCat("ema.", item.name), averages_.back()});
  }
}

void WeightAverage::Update() {
  const torch::NoGradGuard no_grad;
  const auto n = static_cast<double>(++updates_);
  at::_foreach_lerp_(averages_, weights_, 1 - std::min(decay_, (1 + n) / (10 + n)));
}

void WeightAverage::Swap() {
  const torch::NoGradGuard no_grad;
  for (size_t i = 0; i < weights_.size(); ++i) {
    const torch::Tensor weight = weights_[i].clone();
    weights_[i].copy_(averages_[i]);
    averages_[i].copy_(weight);
  }
}

}  // namespace distill
