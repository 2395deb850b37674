// Channel-wise distillation (CWD), forward and backward in one go, on a GPU: common/kernels/channel_kl.h, which says
// what is computed, for maps in device memory. Arithmetic and kernels: channel_kl_device.h.
//
// Kernels  One where a row fits into the shared memory of one block or of a cluster of up to 16 (compute capability
//          9.0; about 29000 positions per block): the maps are read once, the gradient is written once. Longer rows:
//          sums of segments, their merging, then the gradient from a second read. A last one adds up the rows.
// Types    student and teacher float32, bfloat16 or float16 each; everything inside is float32, sums across threads are
//          double. The gradient has the student's type.
// Result   the same in every run on the same device: sums have a fixed order, and there are no atomic operations.
// Checked on the host only: the tests run the kernels' code through an emulator of blocks, clusters and barriers
// (tests/common/cuda), and skip the comparison on a GPU where there is none.
#ifndef DISTILL_COMMON_CUDA_CHANNEL_KL_CUDA_H_
#define DISTILL_COMMON_CUDA_CHANNEL_KL_CUDA_H_

#include <cstdint>
#include <string>

#include "common/kernels/channel_kl.h"
#include "common/status.h"

namespace distill {

// Device memory; null: not wanted, except loss.
struct ChannelKlCudaOutput {
  void* gradient = nullptr;           // the student's type, the maps' layout
  float* loss = nullptr;              // [1]; NaN if a row is not finite
  int32_t* nonfinite_rows = nullptr;  // [1]
  void* scratch = nullptr;            // ChannelKlCudaScratchBytes() bytes, 256-byte aligned; free when the call is done
};

// How the work is divided; for the tests.
struct ChannelKlCudaPlan {
  int lanes = 1;  // rows per tile: 1, or a sector of neighbouring channels (channels last)
  int64_t tiles = 0;
  int64_t segment = 0;   // positions per block
  int64_t segments = 1;  // blocks per tile; the cluster's size if fused
  bool fused = true;
  int64_t shared_bytes = 0;  // of a block
  int64_t scratch_bytes = 0;
};
// shared_limit: bytes that a block may use; team_limit: largest cluster, 1 where there are none.
ChannelKlCudaPlan PlanChannelKlCuda(const ChannelKlMaps& maps, int64_t shared_limit, int team_limit);

// Both return "", or what went wrong in CUDA's words.
// On the current device.
std::string ChannelKlCudaScratchBytes(const ChannelKlMaps& maps, int64_t* bytes);
// Enqueues on `stream` (a cudaStream_t) of the current device and returns; the host never waits. All pointers are the
// device's. REQUIRES: ValidateChannelKl() is OK, n, c and hw at least 1.
std::string ChannelKlCuda(const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlCudaOutput& output,
                          void* stream);

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_CHANNEL_KL_CUDA_H_
