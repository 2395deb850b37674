// TaT's attention loss, forward and backward in one go, on a GPU: common/kernels/tat_attention.h, which says what is
// computed, for maps in device memory. Kernels: tat_device.h.
//
// Memory   float32 copies of the four maps' tokens (pooled, for anchors) and a few floats per token; attention weights
//          exist 64 x 64 at a time, in shared memory, and are computed anew where they are needed again.
// Speed    float32 arithmetic without tensor cores; written to be read. A tile holds 64 tokens, so groups of fewer
//          waste the rest of it.
// Result   the same in every run on the same device: sums have a fixed order, and there are no atomic operations.
// Checked on the host only: the tests run the kernels' code through an emulator of blocks and barriers
// (tests/common/cuda), and skip the comparison on a GPU where there is none.
#ifndef DISTILL_COMMON_CUDA_TAT_CUDA_H_
#define DISTILL_COMMON_CUDA_TAT_CUDA_H_

#include <cstdint>
#include <string>

#include "common/kernels/tat_attention.h"

namespace distill {

// Device memory.
struct TatCudaOutput {
  TatGradients gradients;  // as for TatAttention()
  // [1] each. A NaN or an infinity in a map makes the loss one; which map is not said.
  float* loss = nullptr;
  float* mean_entropy = nullptr;
  float* mean_largest_weight = nullptr;
  void* scratch = nullptr;  // TatCudaScratchBytes() bytes, 256-byte aligned; free when the call is done
};

// `plan`: PlanTat(maps, options), which refuses what does not fit together.
int64_t TatCudaScratchBytes(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan);
// Enqueues on `stream` (a cudaStream_t) of the current device and returns; the host never waits. All pointers are the
// device's. Returns "", or what went wrong in CUDA's words. REQUIRES: n at least 1.
std::string TatAttentionCuda(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
                             const TatCudaOutput& output, void* stream);

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_TAT_CUDA_H_
