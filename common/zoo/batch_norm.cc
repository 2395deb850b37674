#include "common/zoo/batch_norm.h"

#include <torch/torch.h>

#include <tuple>
#include <utility>

namespace distill {
namespace {

struct Statistics {
  torch::Tensor mean, var;  // [C], float32; var is the biased one
  int64_t values = 0;       // of a channel, on all ranks
};

// Of all ranks' x. Each rank's mean and variance come as they are, so that nothing cancels that would not on one rank,
// and are put together in the order of the ranks.
Statistics StatisticsOf(const torch::Tensor& x, NormRanks* ranks) {
  const int64_t channels = x.size(1), size = ranks->size();
  const auto options = x.options().dtype(torch::kFloat32);
  // Float32 buffers to update make the means float32, whatever x is; what they then hold is of no interest.
  const auto [mean, var] = torch::batch_norm_update_stats(x, torch::zeros({channels}, options),
                                                          torch::zeros({channels}, options), /*momentum=*/0);
  const torch::Tensor all = torch::zeros({size, 2, channels}, options);
  all[ranks->rank()].copy_(torch::stack({mean, var}));
  ranks->Sum(all);  // the others' are 0: nothing is rounded
  const torch::Tensor means = all.select(1, 0).to(torch::kFloat64), vars = all.select(1, 1).to(torch::kFloat64);
  const torch::Tensor whole = means.mean(0);
  return {whole.to(torch::kFloat32), (vars.mean(0) + (means - whole).square().mean(0)).to(torch::kFloat32),
          x.numel() / channels * size};
}

// What the backward pass needs besides tensors.
struct Context : torch::CustomClassHolder {
  Context(NormRanks* of, double small) : ranks(of), eps(small) {}
  NormRanks* const ranks;  // not owned
  const double eps;
};

// With given statistics a batch norm is one in eval mode, for which torch has one fused pass on every device.
struct Normalise : torch::autograd::Function<Normalise> {
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& x,
                               const torch::Tensor& weight, const torch::Tensor& bias, const torch::Tensor& mean,
                               const torch::Tensor& var, int64_t values, const c10::intrusive_ptr<Context>& more) {
    context->save_for_backward({x, weight, mean, var});
    context->saved_data["values"] = values;
    context->saved_data["more"] = c10::IValue::make_capsule(more);
    return std::get<0>(
        torch::native_batch_norm(x, weight, bias, mean, var, /*training=*/false, /*momentum=*/0, more->eps));
  }

  // With n values a channel and g = dy / sqrt(var + eps) * weight:
  //     dx = g - weight / sqrt(var + eps) / n * (sum of dy + (x - mean) / sqrt(var + eps) * sum of dy * x_normalised)
  // whose sums are over all ranks.
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], &weight = saved[1], &mean = saved[2], &var = saved[3];
    const auto values = static_cast<double>(context->saved_data["values"].toInt());
    const auto more = c10::static_intrusive_pointer_cast<Context>(context->saved_data["more"].toCapsule());
    const torch::Tensor dy = gradients[0].contiguous(x.suggest_memory_format());
    torch::Tensor dx, dweight, dbias;
    std::tie(dx, dweight, dbias) =
        torch::native_batch_norm_backward(dy, x, weight, mean, var, /*save_mean=*/{}, /*save_invstd=*/{},
                                          /*train=*/false, more->eps, {true, true, true});
    const torch::Tensor sums = torch::stack({dweight, dbias}).to(torch::kFloat32);
    more->ranks->Sum(sums);
    const torch::Tensor factor = weight * (var + more->eps).rsqrt() / -values;
    dx.add_(std::get<0>(torch::native_batch_norm(x, factor * sums[0], factor * sums[1], mean, var, /*training=*/false,
                                                 /*momentum=*/0, more->eps)));
    return {dx, dweight, dbias, {}, {}, {}, {}};
  }
};

}  // namespace

torch::Tensor BatchNormOverRanks(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                                 const torch::Tensor& running_mean, const torch::Tensor& running_var, double momentum,
                                 double eps, NormRanks* ranks) {
  Statistics whole;
  {
    const torch::NoGradGuard no_grad;
    whole = StatisticsOf(x.detach(), ranks);
    if (running_mean.defined()) {
      const auto values = static_cast<double>(whole.values);
      torch::Tensor(running_mean).mul_(1 - momentum).add_(whole.mean, momentum);
      torch::Tensor(running_var).mul_(1 - momentum).add_(whole.var, momentum * values / (values - 1));
    }
  }
  return Normalise::apply(x, weight, bias, whole.mean, whole.var, whole.values,
                          c10::make_intrusive<Context>(ranks, eps));
}

}  // namespace distill
