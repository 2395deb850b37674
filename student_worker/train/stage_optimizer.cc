#include "student_worker/train/stage_optimizer.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "student_worker/train/lamb.h"

namespace distill {

namespace {

using torch::optim::AdamOptions;
using torch::optim::AdamParamState;
using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;
using torch::optim::SGDOptions;

Status CheckNumbers(const OptimizerPlan& plan) {
  for (const auto& [name, value] : {std::pair{"lr", plan.lr},
                                    {"momentum", plan.momentum},
                                    {"weight_decay", plan.weight_decay},
                                    {"clip_norm", plan.clip_norm},
                                    {"eps", plan.eps}}) {
    if (!(std::isfinite(value) && value >= 0)) {
      return absl::InvalidArgumentError(
          StrCat("optimizer ", name, " is ", value, "; it must be a number of at least 0"));
    }
  }
  for (const auto& [name, value] :
       {std::pair{"beta1", plan.beta1}, {"beta2", plan.beta2}, {"ema_decay", plan.ema_decay}}) {
    if (!(value >= 0 && value < 1)) {
      return absl::InvalidArgumentError(StrCat("optimizer ", name, " is ", value, "; it must be in [0, 1)"));
    }
  }
  return OkStatus();
}

// What torch (or Lamb) takes for the parameters of one group.
std::unique_ptr<torch::optim::OptimizerOptions> OptionsFor(const OptimizerPlan& plan, double decay, bool adapt) {
  if (plan.type == "adam") {
    return std::make_unique<AdamOptions>(
        AdamOptions(plan.lr).betas(std::make_tuple(plan.beta1, plan.beta2)).eps(plan.eps).weight_decay(decay));
  }
  if (plan.type == "adamw") {
    return std::make_unique<AdamWOptions>(
        AdamWOptions(plan.lr).betas(std::make_tuple(plan.beta1, plan.beta2)).eps(plan.eps).weight_decay(decay));
  }
  if (plan.type == "lamb") {
    LambOptions options;
    options.lr = plan.lr;
    options.beta1 = plan.beta1;
    options.beta2 = plan.beta2;
    options.eps = plan.eps;
    options.weight_decay = decay;
    options.adapt = adapt;
    return std::make_unique<LambOptions>(options);
  }
  return std::make_unique<SGDOptions>(
      SGDOptions(plan.lr).momentum(plan.momentum).weight_decay(decay).nesterov(plan.nesterov));
}

std::unique_ptr<torch::optim::Optimizer> OptimizerOf(const OptimizerPlan& plan,
                                                     const std::vector<torch::optim::OptimizerParamGroup>& groups) {
  if (plan.type == "adam") return std::make_unique<torch::optim::Adam>(groups, AdamOptions(plan.lr));
  if (plan.type == "adamw") return std::make_unique<torch::optim::AdamW>(groups, AdamWOptions(plan.lr));
  if (plan.type == "lamb") return std::make_unique<Lamb>(groups);
  return std::make_unique<torch::optim::SGD>(groups, SGDOptions(plan.lr));
}

torch::Tensor ZerosLike(const torch::Tensor& parameter) {
  return torch::zeros_like(parameter, torch::TensorOptions().requires_grad(false)).detach();
}

// torch's clip_grad_norm_, which in C++ waits for the device to tell the norm.
void ClipGradients(const std::vector<torch::Tensor>& parameters, double largest) {
  const torch::NoGradGuard no_grad;
  std::vector<torch::Tensor> gradients, norms;
  for (const torch::Tensor& parameter : parameters) {
    if (!parameter.grad().defined()) continue;
    gradients.push_back(parameter.grad());
    norms.push_back(torch::linalg_vector_norm(gradients.back(), 2));
  }
  if (gradients.empty()) return;
  const torch::Tensor factor = (largest / (torch::linalg_vector_norm(torch::stack(norms), 2) + 1e-6)).clamp_max(1);
  for (torch::Tensor& gradient : gradients) gradient.mul_(factor);
}

}  // namespace

StatusOr<std::unique_ptr<StageOptimizer>> StageOptimizer::Create(const OptimizerPlan& plan,
                                                                 std::vector<ParameterGroup> groups) {
  const std::vector<std::string> types = {"adam", "adamw", "lamb", "sgd"};
  if (std::find(types.begin(), types.end(), plan.type) == types.end()) {
    return absl::InvalidArgumentError(StrCat("unknown optimizer type '", plan.type, "'", DidYouMean(plan.type, types),
                                             "; this student knows adam, adamw, lamb and sgd"));
  }
  DISTILL_RETURN_IF_ERROR(CheckNumbers(plan));
  if (plan.type == "sgd" && plan.nesterov && plan.momentum == 0) {
    return absl::InvalidArgumentError("optimizer sgd with nesterov needs a momentum above 0");
  }

  std::unique_ptr<StageOptimizer> result(new StageOptimizer);
  result->plan_ = plan;
  std::vector<torch::optim::OptimizerParamGroup> torch_groups;
  const auto add = [&](size_t group_index, const ParameterGroup& group, double decay, bool adapt,
                       const std::function<bool(const torch::Tensor&)>& wanted) {
    std::vector<torch::Tensor> tensors;
    for (const NamedTensor& parameter : group.parameters) {
      if (!wanted(parameter.tensor)) continue;
      tensors.push_back(parameter.tensor);
      result->parameters_.push_back(parameter);
    }
    if (tensors.empty()) return;
    result->rates_.push_back({group_index, group.lr_mult, group.constant_lr, decay});
    torch_groups.emplace_back(std::move(tensors), OptionsFor(plan, decay, adapt));
  };
  for (size_t i = 0; i < groups.size(); ++i) {
    const double decay = groups[i].weight_decay.value_or(plan.weight_decay);
    if (plan.decay_norms_and_biases) {
      add(i, groups[i], decay, /*adapt=*/true, [](const torch::Tensor&) { return true; });
    } else {
      add(i, groups[i], decay, /*adapt=*/true, [](const torch::Tensor& tensor) { return tensor.dim() > 1; });
      add(i, groups[i], 0, /*adapt=*/false, [](const torch::Tensor& tensor) { return tensor.dim() <= 1; });
    }
  }
  if (result->parameters_.empty())
    return absl::InvalidArgumentError("the stage trains no parameter; name modules with weights in `trainable`");
  result->optimizer_ = OptimizerOf(plan, torch_groups);
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
    if (plan_.type == "adam") {
      static_cast<AdamOptions&>(options).weight_decay(decay);
    } else if (plan_.type == "sgd") {
      static_cast<SGDOptions&>(options).weight_decay(decay);
    }  // adamw and lamb multiply decay by the rate
  }
}

void StageOptimizer::ZeroGrad() { optimizer_->zero_grad(/*set_to_none=*/true); }

void StageOptimizer::Step() {
  if (plan_.clip_norm > 0) {
    std::vector<torch::Tensor> tensors;
    for (const NamedTensor& parameter : parameters_) tensors.push_back(parameter.tensor);
    ClipGradients(tensors, plan_.clip_norm);
  }
  optimizer_->step();
}

template <typename State>
void StageOptimizer::AddMoments(std::vector<NamedTensor>* tensors) {
  for (const NamedTensor& parameter : parameters_) {
    auto& slot = optimizer_->state()[parameter.tensor.unsafeGetTensorImpl()];
    if (slot == nullptr) {
      auto fresh = std::make_unique<State>();
      fresh->step(0);
      fresh->exp_avg(ZerosLike(parameter.tensor));
      fresh->exp_avg_sq(ZerosLike(parameter.tensor));
      slot = std::move(fresh);
    }
    auto& state = static_cast<State&>(*slot);
    tensors->push_back({StrCat("optimizer.", parameter.name, ".exp_avg"), state.exp_avg()});
    tensors->push_back({StrCat("optimizer.", parameter.name, ".exp_avg_sq"), state.exp_avg_sq()});
  }
}

std::vector<NamedTensor> StageOptimizer::StateTensors() {
  std::vector<NamedTensor> tensors;
  if (plan_.type == "adam") {
    AddMoments<AdamParamState>(&tensors);
  } else if (plan_.type != "sgd") {
    AddMoments<AdamWParamState>(&tensors);
  } else if (plan_.momentum > 0) {
    for (const NamedTensor& parameter : parameters_) {
      auto& slot = optimizer_->state()[parameter.tensor.unsafeGetTensorImpl()];
      if (slot == nullptr) {
        auto fresh = std::make_unique<torch::optim::SGDParamState>();
        fresh->momentum_buffer(ZerosLike(parameter.tensor));
        slot = std::move(fresh);
      }
      tensors.push_back({StrCat("optimizer.", parameter.name, ".momentum_buffer"),
                         static_cast<torch::optim::SGDParamState&>(*slot).momentum_buffer()});
    }
  }
  return tensors;
}

int64_t StageOptimizer::StepCount() {
  int64_t count = 0;
  for (auto& [key, state] : optimizer_->state()) {
    if (plan_.type == "adam") {
      count = std::max(count, static_cast<AdamParamState&>(*state).step());
    } else if (plan_.type != "sgd") {
      count = std::max(count, static_cast<AdamWParamState&>(*state).step());
    }
  }
  return count;
}

void StageOptimizer::SetStepCount(int64_t count) {
  StateTensors();  // makes what was never stepped
  for (auto& [key, state] : optimizer_->state()) {
    if (plan_.type == "adam") {
      static_cast<AdamParamState&>(*state).step(count);
    } else if (plan_.type != "sgd") {
      static_cast<AdamWParamState&>(*state).step(count);
    }
  }
}

}  // namespace distill
