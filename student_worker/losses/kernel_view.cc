#include "student_worker/losses/kernel_view.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

#include "common/wire/copy_count.h"

#ifndef _OPENMP
#error "compile this file with OpenMP: at::parallel_for runs on one thread without"
#endif

namespace distill::loss_internal {

std::optional<ElementType> KernelType(const torch::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::kFloat32:
      return ElementType::kFloat32;
    case torch::kBFloat16:
      return ElementType::kBfloat16;
    case torch::kFloat16:
      return ElementType::kFloat16;
    default:
      return std::nullopt;
  }
}

MapLayout LayoutOf(const torch::Tensor& map) {
  const bool last = !map.is_contiguous() && map.is_contiguous(torch::MemoryFormat::ChannelsLast);
  return last ? MapLayout::kChannelsLast : MapLayout::kChannelsFirst;
}

torch::Tensor InLayout(const torch::Tensor& map, torch::MemoryFormat format) {
  if (map.is_contiguous(format)) return map;
  CountFeatureCopy(map.nbytes());
  return map.contiguous(format);
}

torch::Tensor TimesIncoming(const torch::Tensor& gradient, double weight, const torch::Tensor& incoming) {
  if (!gradient.is_cpu()) return gradient * (incoming / weight).to(gradient.scalar_type());
  const double factor = incoming.item<double>();
  // It comes as float32.
  if (factor == weight || factor == static_cast<double>(static_cast<float>(weight))) return gradient;
  return gradient * (factor / weight);
}

void ParallelForOfTorch(int64_t begin, int64_t end, int64_t grain, const ParallelBody& body) {
  at::parallel_for(begin, end, grain, body);
}

}  // namespace distill::loss_internal
