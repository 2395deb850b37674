#include "common/cuda/tat_cuda.h"

#include <cuda_runtime.h>

#include "common/cuda/cuda_error.h"
#include "common/cuda/device_cuda.h"
// The kernels are written in device_cuda.h, which comes first.
#include "common/cuda/tat_device.h"
#include "common/cuda/tat_steps.h"

namespace distill {
namespace {

using cuda_tat::Args;
using cuda_tat::Kind;
using cuda_tat::kThreads;
using cuda_tat::Reduction;
using cuda_tat::Results;
using cuda_tat::Shared;
using cuda_tat::Side;

template <typename T>
__global__ void __launch_bounds__(kThreads) PackKernel(Side side, int64_t groups, float* out) {
  cuda_tat::Pack<T>(side, groups, out);
}
__global__ void __launch_bounds__(kThreads) StatsKernel(Args args) {
  __shared__ Shared shared;
  cuda_tat::Stats(args, &shared);
}
template <Kind kKind>
__global__ void __launch_bounds__(kThreads) AccumulateKernel(Args args, Side side) {
  __shared__ Shared shared;
  cuda_tat::Accumulate<kKind>(args, side, &shared);
}
__global__ void __launch_bounds__(kThreads)
    FinishKernel(Args args, int64_t n, Reduction reduction, double weight, double elements, double queries,
                 float* factors, Results results) {
  __shared__ double scratch[kThreads];
  cuda_tat::Finish(args, n, reduction, weight, elements, queries, factors, results, scratch);
}

// Enqueues the steps on a stream.
struct StreamDevice {
  cudaStream_t stream;

  void Pack(const Side& side, int64_t groups, float* out, int64_t threads) const {
    const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    switch (side.type) {
      case ElementType::kFloat32:
        PackKernel<float><<<blocks, kThreads, 0, stream>>>(side, groups, out);
        break;
      case ElementType::kBfloat16:
        PackKernel<Bfloat16><<<blocks, kThreads, 0, stream>>>(side, groups, out);
        break;
      case ElementType::kFloat16:
        PackKernel<Float16><<<blocks, kThreads, 0, stream>>>(side, groups, out);
        break;
    }
  }
  void Stats(const Args& args, int64_t blocks) const {
    StatsKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  }
  template <Kind kKind>
  void Accumulate(const Args& args, const Side& side, int64_t blocks) const {
    AccumulateKernel<kKind><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args, side);
  }
  void Finish(const Args& args, int64_t n, Reduction reduction, double weight, double elements, double queries,
              float* factors, Results results) const {
    FinishKernel<<<1, kThreads, 0, stream>>>(args, n, reduction, weight, elements, queries, factors, results);
  }
  void Zero(float* pointer, int64_t floats) const { cudaMemsetAsync(pointer, 0, floats * sizeof(float), stream); }
};

}  // namespace

int64_t TatCudaScratchBytes(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan) {
  return cuda_tat::PlanSteps(maps, options, plan, {}, nullptr).scratch_bytes;
}

std::string TatAttentionCuda(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
                             const TatCudaOutput& output, void* stream) {
  const cuda_tat::Steps steps = cuda_tat::PlanSteps(maps, options, plan, output.gradients, output.scratch);
  cuda_tat::RunSteps(steps, maps, options, plan, output, StreamDevice{static_cast<cudaStream_t>(stream)});
  DISTILL_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  return "";
}

}  // namespace distill
