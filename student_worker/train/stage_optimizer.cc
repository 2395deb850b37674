#include "student_worker/train/stage_optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<std::unique_ptr<StageOptimizer>> StageOptimizer::Create(const OptimizerPlan& plan,
                                                                 std::vector<ParameterGroup> groups) {
  const std::vector<std::string> types = {"adam", "sgd"};
  if (std::find(types.begin(), types.end(), plan.type) == types.end()) {
    return absl::InvalidArgumentError(StrCat("unknown optimizer type '", plan.type, "'", DidYouMean(plan.type, types),
                                             "; this student knows adam and sgd"));
  }
  for (const auto& [name, value] : {std::pair{"lr", plan.lr},
                                    {"momentum", plan.momentum},
                                    {"weight_decay", plan.weight_decay},
                                    {"clip_norm", plan.clip_norm}}) {
    if (!(std::isfinite(value) && value >= 0)) {
      return absl::InvalidArgumentError(
          StrCat("optimizer ", name, " is ", value, "; it must be a number of at least 0"));
    }
  }
  if (plan.type == "sgd" && plan.nesterov && plan.momentum == 0) {
    return absl::InvalidArgumentError("optimizer sgd with nesterov needs a momentum above 0");
  }

  std::unique_ptr<StageOptimizer> result(new StageOptimizer);
  result->adam_ = plan.type == "adam";
  result->plan_ = plan;
  std::vector<torch::optim::OptimizerParamGroup> torch_groups;
  for (size_t i = 0; i < groups.size(); ++i) {
    const ParameterGroup& group = groups[i];
    if (group.parameters.empty()) continue;
    std::vector<torch::Tensor> tensors;
    for (const NamedTensor& parameter : group.parameters) tensors.push_back(parameter.tensor);
    result->parameters_.insert(result->parameters_.end(), group.parameters.begin(), group.parameters.end());
    const double decay = group.weight_decay.value_or(plan.weight_decay);
    result->rates_.push_back({i, group.lr_mult, group.constant_lr, decay});
    std::unique_ptr<torch::optim::OptimizerOptions> options;
    if (result->adam_) {
      options = std::make_unique<torch::optim::AdamOptions>(torch::optim::AdamOptions(plan.lr).weight_decay(decay));
    } else {
      options = std::make_unique<torch::optim::SGDOptions>(
          torch::optim::SGDOptions(plan.lr).momentum(plan.momentum).weight_decay(decay).nesterov(plan.nesterov));
    }
    torch_groups.emplace_back(std::move(tensors), std::move(options));
  }
  if (result->parameters_.empty())
    return absl::InvalidArgumentError("the stage trains no parameter; name modules with weights in `trainable`");
  if (result->adam_) {
    result->optimizer_ = std::make_unique<torch::optim::Adam>(torch_groups, torch::optim::AdamOptions(plan.lr));
  } else {
    result->optimizer_ = std::make_unique<torch::optim::SGD>(torch_groups, torch::optim::SGDOptions(plan.lr));
  }
  result->SetScheduleFactor(1);
  return result;
}

void StageOptimizer::SetScheduleFactor(double factor, const std::vector<size_t>& asleep) {
  for (size_t i = 0; i < rates_.size(); ++i) {
    const GroupRates& rates = rates_[i];
    const bool awake = std::find(asleep.begin(), asleep.end(), rates.group) == asleep.end();
    torch::optim::OptimizerOptions& options = optimizer_->param_groups()[i].options();
    options.set_lr(awake ? plan_.lr * rates.lr_mult * (rates.constant_lr ? 1 : factor) : 0);
    const double decay = awake ? rates.weight_decay : 0;  // else it would gather in the momentum
    if (adam_) {
      static_cast<torch::optim::AdamOptions&>(options).weight_decay(decay);
    } else {
      static_cast<torch::optim::SGDOptions&>(options).weight_decay(decay);
    }
  }
}

void StageOptimizer::ZeroGrad() { optimizer_->zero_grad(/*set_to_none=*/true); }

void StageOptimizer::Step() {
  if (plan_.clip_norm > 0) {
    std::vector<torch::Tensor> tensors;
    for (const NamedTensor& parameter : parameters_) tensors.push_back(parameter.tensor);
    torch::nn::utils::clip_grad_norm_(tensors, plan_.clip_norm);
  }
  optimizer_->step();
}

std::vector<NamedTensor> StageOptimizer::StateTensors() {
  std::vector<NamedTensor> tensors;
  if (!adam_ && plan_.momentum == 0) return tensors;
  for (const NamedTensor& parameter : parameters_) {
    auto& slot = optimizer_->state()[parameter.tensor.unsafeGetTensorImpl()];
    const std::string prefix = StrCat("optimizer.", parameter.name, ".");
    const auto zeros = [&] {
      return torch::zeros_like(parameter.tensor, torch::TensorOptions().requires_grad(false)).detach();
    };
    if (adam_) {
      if (slot == nullptr) {
        auto fresh = std::make_unique<torch::optim::AdamParamState>();
        fresh->step(0);
        fresh->exp_avg(zeros());
        fresh->exp_avg_sq(zeros());
        slot = std::move(fresh);
      }
      auto& state = static_cast<torch::optim::AdamParamState&>(*slot);
      tensors.push_back({prefix + "exp_avg", state.exp_avg()});
      tensors.push_back({prefix + "exp_avg_sq", state.exp_avg_sq()});
    } else {
      if (slot == nullptr) {
        auto fresh = std::make_unique<torch::optim::SGDParamState>();
        fresh->momentum_buffer(zeros());
        slot = std::move(fresh);
      }
      tensors.push_back(
          {prefix + "momentum_buffer", static_cast<torch::optim::SGDParamState&>(*slot).momentum_buffer()});
    }
  }
  return tensors;
}

int64_t StageOptimizer::StepCount() {
  int64_t count = 0;
  if (!adam_) return count;
  for (auto& [key, state] : optimizer_->state()) {
    count = std::max(count, static_cast<torch::optim::AdamParamState&>(*state).step());
  }
  return count;
}

void StageOptimizer::SetStepCount(int64_t count) {
  if (!adam_) return;
  StateTensors();
  for (auto& [key, state] : optimizer_->state()) static_cast<torch::optim::AdamParamState&>(*state).step(count);
}

}  // namespace distill
