// libdistill_cuda.so: the part of the program that links torch's CUDA libraries. Loaded by cuda_runtime.cc.
#define USE_C10D_NCCL
#include "common/cuda/cuda_plugin.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAFunctions.h>

#include <cstdio>
#include <cstdlib>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

namespace distill {
namespace {

int DeviceCount() { return c10::cuda::device_count(); }

std::string DeviceName(int index) { return at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index))->name; }

// As nvidia-smi prints it.
std::string DeviceId(int index) {
  const cudaUUID_t& uuid = at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index))->uuid;
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    char byte[3];
    std::snprintf(byte, sizeof byte, "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    text += byte;
  }
  return text;
}

void MakeNccl(const c10::intrusive_ptr<c10d::Store>& store, int rank, int size, std::chrono::milliseconds timeout,
              c10::intrusive_ptr<c10d::Backend>* backend) {
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  // Connects now, inside the time-out of forming the group, and not in the first operation, where a missing rank would
  // only hang.
  group->eagerConnectSingleDevice(c10::Device(c10::DeviceType::CUDA, c10::cuda::current_device()));
  *backend = std::move(group);
}

void AbortNccl(c10d::Backend& backend) {
  try {
    static_cast<c10d::ProcessGroupNCCL&>(backend).abort();
  } catch (const std::exception&) {
    // Already broken: what was wanted.
  }
}

// Given back to the allocator before the kernels have run, which is safe: it is used again on the same stream only.
at::Tensor Scratch(int64_t bytes) {
  return at::empty({bytes}, at::TensorOptions().device(c10::DeviceType::CUDA).dtype(at::kByte));
}

std::string RunChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options,
                         const ChannelKlCudaOutput& output) {
  int64_t bytes = 0;
  if (std::string problem = ChannelKlCudaScratchBytes(maps, &bytes); !problem.empty()) return problem;
  const at::Tensor scratch = Scratch(bytes);
  ChannelKlCudaOutput with_scratch = output;
  with_scratch.scratch = scratch.data_ptr();
  return ChannelKlCuda(maps, options, with_scratch, c10::cuda::getCurrentCUDAStream().stream());
}

std::string RunTatAttention(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
                            const TatCudaOutput& output) {
  const at::Tensor scratch = Scratch(TatCudaScratchBytes(maps, options, plan));
  TatCudaOutput with_scratch = output;
  with_scratch.scratch = scratch.data_ptr();
  return TatAttentionCuda(maps, options, plan, with_scratch, c10::cuda::getCurrentCUDAStream().stream());
}

}  // namespace
}  // namespace distill

extern "C" __attribute__((visibility("default"))) const distill::CudaPlugin* distill_cuda_plugin() {
  // c10d reads this when a group is made: 2 = abort the communicator on an error; the default ends the process, but a
  // lost peer is something that a rank survives here.
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", /*overwrite=*/0);
  static const distill::CudaPlugin plugin = {distill::kCudaPluginVersion, distill::DeviceCount, distill::DeviceName,
                                             distill::DeviceId,           distill::MakeNccl,    distill::AbortNccl,
                                             distill::RunChannelKl,       distill::RunTatAttention};
  return &plugin;
}
