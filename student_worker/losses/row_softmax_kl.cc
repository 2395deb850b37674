#include "student_worker/losses/row_softmax_kl.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/torch.h>

namespace distill {
namespace {

class RowSoftmaxKlFunction : public torch::autograd::Function<RowSoftmaxKlFunction> {
 public:
  static torch::Tensor forward(torch::autograd::AutogradContext* context, const torch::Tensor& student,
                               const torch::Tensor& teacher, double temperature, double scale, bool cross_entropy) {
    const torch::Tensor log_p = LogSoftmaxAtTemperature(teacher, temperature);  // (R, L)
    const torch::Tensor log_q = LogSoftmaxAtTemperature(student, temperature);  // (R, L)
    const torch::Tensor p = log_p.exp();                                        // (R, L)
    // p underflows to 0 where log p is very negative but finite, so 0 * log p is 0, never NaN.
    const torch::Tensor total = cross_entropy ? -(p * log_q).sum() : (p * (log_p - log_q)).sum();
    context->save_for_backward({(log_q.exp() - p).mul_(scale / temperature)});
    return total * scale;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list grads) {
    return {context->get_saved_variables()[0] * grads[0], torch::Tensor(), torch::Tensor(), torch::Tensor(),
            torch::Tensor()};
  }
};

}  // namespace

torch::Tensor LogSoftmaxAtTemperature(const torch::Tensor& rows, double temperature) {
  if (rows.numel() == 0) return rows;  // amax refuses empty rows
  return torch::log_softmax((rows - rows.amax(-1, /*keepdim=*/true)) / temperature, -1);
}

torch::Tensor RowSoftmaxKl(const torch::Tensor& student, const torch::Tensor& teacher, double temperature, double scale,
                           bool cross_entropy) {
  return RowSoftmaxKlFunction::apply(student, teacher.detach(), temperature, scale, cross_entropy);
}

}  // namespace distill
