#include "student_worker/losses/row_softmax_kl.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/torch.h>

#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"
#include "common/kernels/channel_kl.h"
#include "student_worker/losses/kernel_view.h"

namespace distill {
namespace {

using loss_internal::InLayout;
using loss_internal::KernelType;
using loss_internal::LayoutOf;
using loss_internal::ParallelForOfTorch;
using loss_internal::TimesIncoming;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

class RowSoftmaxKlFunction : public torch::autograd::Function<RowSoftmaxKlFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& student, const torch::Tensor& teacher,
                               double temperature, double scale, bool cross_entropy) {
    const torch::Tensor log_p = LogSoftmaxAtTemperature(teacher, temperature);  // (R, L)
    const torch::Tensor log_q = LogSoftmaxAtTemperature(student, temperature);  // (R, L)
    const torch::Tensor p = log_p.exp();                                        // (R, L)
    // p underflows to 0 where log p is very negative but finite, so 0 * log p is 0, never NaN.
    const torch::Tensor total = cross_entropy ? -(p * log_q).sum() : (p * (log_p - log_q)).sum();
    context->save_for_backward({(log_q.exp() - p).mul_(scale / temperature)});
    return total * scale;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    return {context->get_saved_variables()[0] * grads[0], {}, {}, {}, {}};
  }
};

// On maps [N, C, H, W] that both lie in memory as `format` says.
class FusedMapKlFunction : public torch::autograd::Function<FusedMapKlFunction> {
 public:
  static torch::Tensor forward(AutogradContext* context, const torch::Tensor& student, const torch::Tensor& teacher,
                               const RowKlOptions& wanted, const torch::Tensor& mask) {
    ChannelKlMaps maps;
    maps.n = student.size(0);
    maps.c = student.size(1);
    maps.hw = student.size(2) * student.size(3);
    maps.layout = LayoutOf(student);
    maps.student = student.const_data_ptr();
    maps.teacher = teacher.const_data_ptr();
    maps.student_type = *KernelType(student);  // FusedApplies has looked
    maps.teacher_type = *KernelType(teacher);
    if (mask.numel() > 0) maps.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
    ChannelKlOptions options;
    options.temperature = wanted.temperature;
    options.cross_entropy = wanted.cross_entropy;
    options.weight = wanted.scale;
    const torch::Tensor gradient = torch::empty_like(student);
    context->save_for_backward({gradient});
    context->saved_data["weight"] = 1.0;
    if (student.is_cuda()) {
      const torch::Tensor loss = torch::empty({}, gradient.options().dtype(torch::kFloat32));
      ChannelKlCudaOutput output;
      output.gradient = gradient.data_ptr();
      output.loss = loss.data_ptr<float>();
      const std::string error = LoadedCudaPlugin()->channel_kl(maps, options, output);
      TORCH_CHECK(error.empty(), "channel_kl on the GPU: ", error);
      return loss;
    }
    options.weight *= wanted.weight;
    context->saved_data["weight"] = wanted.weight;
    ChannelKlOutput output;
    output.gradient = gradient.data_ptr();
    output.gradient_type = maps.student_type;
    const StatusOr<ChannelKlResult> result = ChannelKl(maps, options, output, ParallelForOfTorch);
    TORCH_CHECK(result.ok(), result.status().ToString());
    return torch::scalar_tensor(result->loss / wanted.weight, torch::kFloat32);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const torch::Tensor gradient = context->get_saved_variables()[0];
    return {TimesIncoming(gradient, context->saved_data["weight"].toDouble(), grads[0]), {}, {}, {}};
  }
};

bool FusedApplies(const torch::Tensor& student, const torch::Tensor& teacher, double temperature) {
  const bool on_cpu = student.is_cpu() && teacher.is_cpu();
  // The GPU's kernels take no empty maps; without the plugin, torch's operators do the work there.
  const bool on_gpu =
      student.is_cuda() && teacher.device() == student.device() && student.numel() > 0 && LoadedCudaPlugin() != nullptr;
  return (on_cpu || on_gpu) && KernelType(student).has_value() && KernelType(teacher).has_value() &&
         temperature >= 1e-6 && temperature <= 1e6;
}

torch::Tensor Single(const torch::Tensor& x) { return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32); }

}  // namespace

torch::Tensor LogSoftmaxAtTemperature(const torch::Tensor& rows, double temperature) {
  if (rows.numel() == 0) return rows;  // amax refuses empty rows
  return torch::log_softmax((rows - rows.amax(-1, /*keepdim=*/true)) / temperature, -1);
}

torch::Tensor RowSoftmaxKl(const torch::Tensor& student, const torch::Tensor& teacher, const RowKlOptions& options) {
  if (options.fused && FusedApplies(student, teacher, options.temperature)) {
    // A row is the map of a sample with one channel.
    return MapSoftmaxKl(student.unsqueeze(1).unsqueeze(1), teacher.unsqueeze(1).unsqueeze(1), options);
  }
  return RowSoftmaxKlFunction::apply(Single(student), teacher.detach().to(Single(student).scalar_type()),
                                     options.temperature, options.scale, options.cross_entropy);
}

torch::Tensor MaskRows(const torch::Tensor& rows, const torch::Tensor& mask) {
  constexpr double kLow = -1e30;  // finite, so that 0 times a difference of two of them is 0
  return rows.masked_fill(mask.logical_not(), kLow);
}

torch::Tensor MapSoftmaxKl(const torch::Tensor& student, const torch::Tensor& teacher, const RowKlOptions& options,
                           const torch::Tensor& mask) {
  if (!options.fused || !FusedApplies(student, teacher, options.temperature)) {
    torch::Tensor s = student.flatten(0, 1).flatten(1), t = teacher.flatten(0, 1).flatten(1);  // (N*C, H*W)
    if (mask.defined()) {
      // A sample without a position keeps its first one, at 0 on both sides: one certain outcome, divergence 0.
      const torch::Tensor empty = mask.flatten(1).any(1, /*keepdim=*/true).logical_not();  // (N, 1)
      torch::Tensor seen = mask.flatten(1).clone();                                        // (N, H*W)
      seen.slice(1, 0, 1).logical_or_(empty);
      const auto per_row = [&](const torch::Tensor& x) {
        return x.unsqueeze(1).expand({student.size(0), student.size(1), x.size(1)}).flatten(0, 1);
      };
      s = MaskRows(s.masked_fill(per_row(empty), 0), per_row(seen));
      t = MaskRows(t.masked_fill(per_row(empty), 0), per_row(seen));
    }
    return RowSoftmaxKl(s, t, options);
  }
  const auto format = LayoutOf(student) == MapLayout::kChannelsLast ? torch::MemoryFormat::ChannelsLast
                                                                    : torch::MemoryFormat::Contiguous;
  // Autograd takes no undefined tensor: an empty one stands for no mask.
  const torch::Tensor bytes =
      mask.defined() ? mask.to(student.device(), torch::kUInt8).contiguous() : torch::empty({0}, torch::kUInt8);
  return FusedMapKlFunction::apply(student.contiguous(format), InLayout(teacher.detach(), format), options, bytes);
}

}  // namespace distill
