// What libdistill_cuda.so offers to the program that loads it: a table of functions. Only for sources that include
// torch.
#ifndef DISTILL_COMMON_CUDA_CUDA_PLUGIN_H_
#define DISTILL_COMMON_CUDA_CUDA_PLUGIN_H_

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

#include "common/cuda/channel_kl_cuda.h"
#include "common/cuda/tat_cuda.h"

namespace distill {

// Raised at every change of the table, so that a plugin left over from another build is refused.
inline constexpr int kCudaPluginVersion = 3;

struct CudaPlugin {
  int version;
  int cuda_version;  // what it was compiled for, as CUDA numbers them: 13000
  // Throws nothing; 0 without a driver.
  int (*device_count)();
  std::string (*device_name)(int index);
  std::string (*device_id)(int index);
  // A ProcessGroupNCCL, not connected yet. Operations are enqueued on the caller's current stream; a failure is cleaned
  // up and reported, the process is not ended. Throws c10::Error.
  void (*make_nccl)(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds timeout,
                    c10::intrusive_ptr<c10d::Backend>* backend);
  // The next three: REQUIRES: made by make_nccl.
  // Connects with all ranks, on the device of that index. Blocks, without limit while a rank is missing. Throws
  // c10::Error.
  void (*connect_nccl)(c10d::Backend& backend, int device);
  // From any thread. Throws nothing. Does not end a connect_nccl() that waits for a missing rank.
  void (*abort_nccl)(c10d::Backend& backend);
  // What went wrong with the operations so far, "" for nothing. From any thread. Throws nothing.
  std::string (*nccl_error)(c10d::Backend& backend);

  // Gives the memory that the allocator keeps for later back to the device, for other processes. Throws nothing.
  void (*release_memory)();

  // ChannelKlCuda() and TatAttentionCuda() on the current stream, with scratch memory of torch's allocator (the
  // outputs' `scratch` is not read). Empty, or what went wrong. Throws c10::Error when device memory is short.
  std::string (*channel_kl)(const ChannelKlMaps& maps, const ChannelKlOptions& options,
                            const ChannelKlCudaOutput& output);
  std::string (*tat_attention)(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
                               const TatCudaOutput& output);
};

// The plugin's one exported function: `extern "C" const CudaPlugin* distill_cuda_plugin()`.
inline constexpr const char* kCudaPluginEntry = "distill_cuda_plugin";

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_CUDA_PLUGIN_H_
