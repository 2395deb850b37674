// The baseline: channel-wise KL as an eager framework computes it, one operator after the other, each reading whole
// tensors and writing a new one. float32, rows contiguous.
#ifndef DISTILL_BENCH_KERNELS_EAGER_CHANNEL_KL_H_
#define DISTILL_BENCH_KERNELS_EAGER_CHANNEL_KL_H_

#include <cstdint>
#include <vector>

#include "common/kernels/parallel_for.h"

namespace distill {

// Tensors that the operators write; kept from call to call, as a caching allocator would.
struct EagerTensors {
  std::vector<std::vector<float>> buffers;
};

// The loss, T^2 / rows * sum KL; the gradient into `gradient` [rows, hw].
double EagerChannelKl(const float* student, const float* teacher, int64_t rows, int64_t hw, float temperature,
                      const ParallelFor& parallel_for, EagerTensors* tensors, float* gradient);

}  // namespace distill

#endif  // DISTILL_BENCH_KERNELS_EAGER_CHANNEL_KL_H_
