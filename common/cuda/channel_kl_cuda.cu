#include <cuda_runtime.h>

#include <string>

#include "common/cuda/channel_kl_cuda.h"
#include "common/cuda/cuda_error.h"
#include "common/cuda/device_cuda.h"
// The kernels are written in device_cuda.h, which comes first.
#include "common/cuda/channel_kl_device.h"

namespace distill {
namespace {

using cuda_channel_kl::Args;
using cuda_channel_kl::Far;
using cuda_channel_kl::kThreads;
using cuda_channel_kl::Near;

template <int kLanes, typename S, typename T>
__global__ void __launch_bounds__(kThreads) FusedTileKernel(Args args) {
  extern __shared__ __align__(16) char shared[];
  cuda_channel_kl::FusedTile<kLanes, S, T, S, device::Team>(args, shared);
}
template <int kLanes, typename S, typename T>
__global__ void __launch_bounds__(kThreads) SegmentSumsKernel(Args args, Near* near, Far* far) {
  extern __shared__ __align__(16) char shared[];
  cuda_channel_kl::SegmentSums<kLanes, S, T>(args, near, far, shared);
}
template <int kLanes>
__global__ void __launch_bounds__(kThreads) MergeSegmentsKernel(Args args, int64_t tiles, Near* near, Far* far) {
  cuda_channel_kl::MergeSegments<kLanes>(args, tiles, near, far);
}
template <int kLanes, typename S, typename T>
__global__ void __launch_bounds__(kThreads) SegmentGradientKernel(Args args, const Near* near, const Far* far) {
  cuda_channel_kl::SegmentGradient<kLanes, S, T, S>(args, near, far);
}
__global__ void __launch_bounds__(kThreads)
    SumRowsKernel(const double* divergence, int64_t rows, double scale, float* loss, int32_t* nonfinite_rows) {
  __shared__ double scratch[kThreads];
  cuda_channel_kl::SumRows(divergence, rows, scale, loss, nonfinite_rows, scratch);
}

struct Launch {
  Args args;
  ChannelKlCudaPlan plan;
  Near* near;
  Far* far;
  cudaStream_t stream;
};

template <int kLanes, typename S, typename T>
std::string Run(const Launch& launch) {
  const int shared = static_cast<int>(launch.plan.shared_bytes);
  const unsigned blocks = static_cast<unsigned>(launch.plan.tiles * launch.plan.segments);
  if (launch.plan.fused) {
    const auto kernel = FusedTileKernel<kLanes, S, T>;
    DISTILL_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = shared;
    config.stream = launch.stream;
    cudaLaunchAttribute cluster = {};
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = static_cast<unsigned>(launch.plan.segments);
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    if (launch.plan.segments > 1) {
      config.attrs = &cluster;
      config.numAttrs = 1;
    }
    if (launch.plan.segments > 8) {
      DISTILL_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    DISTILL_RETURN_IF_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, launch.args));
    return "";
  }
  const auto sums = SegmentSumsKernel<kLanes, S, T>;
  DISTILL_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(sums, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  sums<<<blocks, kThreads, shared, launch.stream>>>(launch.args, launch.near, launch.far);
  const unsigned merging = static_cast<unsigned>((launch.plan.tiles * kLanes + kThreads - 1) / kThreads);
  MergeSegmentsKernel<kLanes>
      <<<merging, kThreads, 0, launch.stream>>>(launch.args, launch.plan.tiles, launch.near, launch.far);
  if (launch.args.gradient != nullptr) {
    SegmentGradientKernel<kLanes, S, T><<<blocks, kThreads, 0, launch.stream>>>(launch.args, launch.near, launch.far);
  }
  DISTILL_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  return "";
}

template <typename S, typename T>
std::string RunLanes(const Launch& launch) {
  if (launch.plan.lanes == 1) return Run<1, S, T>(launch);
  constexpr int kLanes = sizeof(S) == 4 ? 8 : 16;
  return Run<kLanes, S, T>(launch);
}

template <typename S>
std::string RunTeacher(ElementType teacher, const Launch& launch) {
  switch (teacher) {
    case ElementType::kBfloat16:
      return RunLanes<S, Bfloat16>(launch);
    case ElementType::kFloat16:
      return RunLanes<S, Float16>(launch);
    case ElementType::kFloat32:
      break;
  }
  return RunLanes<S, float>(launch);
}

// How the current device can divide the work. A cluster of 16 is more than CUDA promises: it is used where the device
// can hold one.
std::string PlanForDevice(const ChannelKlMaps& maps, ChannelKlCudaPlan* plan) {
  int device = 0, shared_limit = 0, major = 0;
  DISTILL_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  DISTILL_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  DISTILL_RETURN_IF_CUDA_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  *plan = PlanChannelKlCuda(maps, shared_limit, major < 9 ? 1 : 16);
  if (!plan->fused || plan->segments <= 8) return "";
  const auto kernel = FusedTileKernel<1, float, float>;  // all of them use the same memory and threads
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 16;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(16);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = plan->shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  DISTILL_RETURN_IF_CUDA_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan->shared_bytes)));
  DISTILL_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess || clusters == 0) {
    cudaGetLastError();  // not an error of this call
    *plan = PlanChannelKlCuda(maps, shared_limit, 8);
  }
  return "";
}

}  // namespace

std::string ChannelKlCudaScratchBytes(const ChannelKlMaps& maps, int64_t* bytes) {
  ChannelKlCudaPlan plan;
  const std::string problem = PlanForDevice(maps, &plan);
  *bytes = plan.scratch_bytes;
  return problem;
}

std::string ChannelKlCuda(const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlCudaOutput& output,
                          void* stream) {
  ChannelKlCudaPlan plan;
  if (std::string problem = PlanForDevice(maps, &plan); !problem.empty()) return problem;
  const double scale = options.weight;
  double* const divergence = static_cast<double*>(output.scratch);
  Launch launch;
  launch.plan = plan;
  launch.near = reinterpret_cast<Near*>(divergence + maps.n * maps.c);
  launch.far = reinterpret_cast<Far*>(launch.near + plan.tiles * plan.segments * plan.lanes);
  launch.stream = static_cast<cudaStream_t>(stream);
  launch.args = {maps.student,
                 maps.teacher,
                 maps.mask,
                 output.gradient,
                 divergence,
                 maps.n,
                 maps.c,
                 maps.hw,
                 maps.layout == MapLayout::kChannelsLast,
                 options.cross_entropy,
                 options.temperature,
                 scale / options.temperature,
                 plan.segment,
                 plan.segments};
  const auto run = [&] {
    switch (maps.student_type) {
      case ElementType::kBfloat16:
        return RunTeacher<Bfloat16>(maps.teacher_type, launch);
      case ElementType::kFloat16:
        return RunTeacher<Float16>(maps.teacher_type, launch);
      case ElementType::kFloat32:
        break;
    }
    return RunTeacher<float>(maps.teacher_type, launch);
  };
  if (std::string problem = run(); !problem.empty()) return problem;
  SumRowsKernel<<<1, kThreads, 0, launch.stream>>>(divergence, maps.n * maps.c, scale, output.loss,
                                                   output.nonfinite_rows);
  DISTILL_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  return "";
}

}  // namespace distill
