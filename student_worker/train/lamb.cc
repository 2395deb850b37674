#include "student_worker/train/lamb.h"

#include <torch/torch.h>

#include <cmath>

namespace distill {

torch::Tensor Lamb::step(LossClosure /*closure*/) {
  const torch::NoGradGuard no_grad;
  for (torch::optim::OptimizerParamGroup& group : param_groups()) {
    const auto& options = static_cast<const LambOptions&>(group.options());
    for (torch::Tensor& x : group.params()) {
      if (!x.grad().defined()) continue;
      auto& slot = state()[x.unsafeGetTensorImpl()];
      if (slot == nullptr) {
        auto fresh = std::make_unique<torch::optim::AdamWParamState>();
        fresh->exp_avg(torch::zeros_like(x));
        fresh->exp_avg_sq(torch::zeros_like(x));
        slot = std::move(fresh);
      }
      auto& state = static_cast<torch::optim::AdamWParamState&>(*slot);
      state.step(state.step() + 1);
      const torch::Tensor& g = x.grad();
      torch::Tensor m = state.exp_avg(), v = state.exp_avg_sq();
      m.mul_(options.beta1).add_(g, 1 - options.beta1);
      v.mul_(options.beta2).addcmul_(g, g, 1 - options.beta2);
      const double m_scale = 1 - std::pow(options.beta1, state.step());
      const double v_scale = 1 - std::pow(options.beta2, state.step());
      torch::Tensor r = (v / v_scale).sqrt_().add_(options.eps);
      r = (m / m_scale).div_(r);
      if (options.weight_decay != 0) r.add_(x, options.weight_decay);
      if (options.adapt) {
        const torch::Tensor x_norm = x.norm(), r_norm = r.norm();
        const torch::Tensor both = x_norm.gt(0).logical_and(r_norm.gt(0));
        r.mul_(torch::where(both, x_norm / r_norm, torch::ones_like(x_norm)));
      }
      x.add_(r, -options.lr);
    }
  }
  return {};
}

}  // namespace distill
