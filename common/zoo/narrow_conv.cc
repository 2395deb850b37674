#include "common/zoo/narrow_conv.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/torch.h>

#include <array>
#include <vector>

namespace distill {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class StridedPointwise : public torch::autograd::Function<StridedPointwise> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& x, const torch::Tensor& weight,
                               int64_t stride) {
    context->save_for_backward({x, weight});
    context->saved_data["stride"] = stride;
    return torch::conv2d(x, weight, {}, stride);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const variable_list saved = context->get_saved_variables();
    const torch::Tensor &x = saved[0], &weight = saved[1];  // (N, C, H, W), (K, C, 1, 1)
    const int64_t stride = context->saved_data["stride"].toInt();
    const auto gradients = [&](const torch::Tensor& input, int64_t step, std::array<bool, 3> wanted) {
      return at::convolution_backward(grads[0], input, weight, /*bias_sizes=*/std::nullopt, {step, step},
                                      /*padding=*/{0, 0}, /*dilation=*/{1, 1}, /*transposed=*/false,
                                      /*output_padding=*/{0, 0}, /*groups=*/1, wanted);
    };
    torch::Tensor by_x, by_weight;
    if (context->needs_input_grad(0)) by_x = std::get<0>(gradients(x, stride, {true, false, false}));
    if (context->needs_input_grad(1)) {
      const torch::Tensor read =  // (N, C, H', W')
          x.slice(2, 0, std::nullopt, stride).slice(3, 0, std::nullopt, stride).contiguous(x.suggest_memory_format());
      by_weight = std::get<1>(gradients(read, 1, {false, true, false}));
    }
    return {by_x, by_weight, {}};
  }
};

}  // namespace

torch::Tensor StridedPointwiseConv(const torch::Tensor& x, const torch::Tensor& weight, int64_t stride) {
  // What backward keeps must be what forward computed with.
  if (const auto device = x.device().type(); at::autocast::is_autocast_enabled(device)) {
    const auto dtype = at::autocast::get_autocast_dtype(device);
    return StridedPointwise::apply(x.to(dtype), weight.to(dtype), stride);
  }
  return StridedPointwise::apply(x, weight, stride);
}

}  // namespace distill
