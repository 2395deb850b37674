// libdistill_cuda.so: the part of the program that links torch's CUDA libraries. Loaded by cuda_runtime.cc.
#define USE_C10D_NCCL
#include "common/cuda/cuda_plugin.h"

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <cuda_runtime_api.h>

#include <cstdio>
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
  *backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
}

c10d::ProcessGroupNCCL& AsNccl(c10d::Backend& backend) { return static_cast<c10d::ProcessGroupNCCL&>(backend); }

// NCCL's blocking initialisation: what torch itself uses, since its other one hung in NCCL 2.26.
void ConnectNccl(c10d::Backend& backend, int device) {
  AsNccl(backend).eagerConnectSingleDevice(c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
}

void AbortNccl(c10d::Backend& backend) {
  try {
    AsNccl(backend).abort();
  } catch (const std::exception&) {
    // Already broken: what was wanted.
  }
}

// c10d's watchdog sets this before it aborts the communicator, so before an operation that failed can look finished.
std::string NcclError(c10d::Backend& backend) {
  switch (AsNccl(backend).getError()) {
    case c10d::ErrorType::SUCCESS:
      return "";
    case c10d::ErrorType::TIMEOUT:
      return "an operation of NCCL did not end within its time-out";
    case c10d::ErrorType::REMOTE_ERROR:
      return "another rank's NCCL communicator failed";
    default:
      return "the NCCL communicator failed";
  }
}

void ReleaseMemory() {
  try {
    c10::cuda::CUDACachingAllocator::emptyCache();
  } catch (const std::exception&) {
    // A device that is in no state to give memory back says so at the next real call.
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
  static const distill::CudaPlugin plugin = {
      distill::kCudaPluginVersion, CUDART_VERSION,         distill::DeviceCount,  distill::DeviceName,
      distill::DeviceId,           distill::MakeNccl,      distill::ConnectNccl,  distill::AbortNccl,
      distill::NcclError,          distill::ReleaseMemory, distill::RunChannelKl, distill::RunTatAttention};
  return &plugin;
}
