#include "student_worker/losses/kernel_view.h"

#include <ATen/Parallel.h>
#include <torch/torch.h>

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

void ParallelForOfTorch(int64_t begin, int64_t end, int64_t grain, const ParallelBody& body) {
  at::parallel_for(begin, end, grain, body);
}

}  // namespace distill::loss_internal
