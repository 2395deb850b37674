// CUDA at run time. Programs link the CPU libraries of torch alone; when a job asks for the device "cuda", the plugin
// libdistill_cuda.so, which links torch's CUDA libraries, is loaded into the process. A build without nvcc has no
// plugin.
//
// Thread-safe.
#ifndef DISTILL_COMMON_CUDA_CUDA_RUNTIME_H_
#define DISTILL_COMMON_CUDA_CUDA_RUNTIME_H_

#include <string>

#include "common/status.h"

namespace distill {

struct CudaPlugin;  // common/cuda/cuda_plugin.h

// Loads the plugin beside the program (or in ../bin, ../lib of its folder) once; later calls give the first answer.
// After OK, torch::Device("cuda") works. kFailedPrecondition: built without CUDA, plugin damaged, libraries missing, or
// no CUDA device; the message says which, and that the job can run on "cpu".
Status LoadCudaRuntime();

// Which device a program uses: "cpu" or "cuda". `wanted` is "auto" (CUDA when it can be used, else CPU), "cpu" or
// "cuda". kInvalidArgument: another text. "cuda" that cannot be used: LoadCudaRuntime()'s error.
StatusOr<std::string> ChooseDevice(const std::string& wanted);

// Number of CUDA devices; 0 before LoadCudaRuntime() or when it failed.
int CudaDeviceCount();
// "NVIDIA H200". REQUIRES: 0 <= index < CudaDeviceCount().
std::string CudaDeviceName(int index);
// "GPU-5a1b...": its UUID, the same to every process that sees it, whatever index it has there. REQUIRES: as above.
std::string CudaDeviceId(int index);
// Null before LoadCudaRuntime() or when it failed. Lives until the process ends.
const CudaPlugin* LoadedCudaPlugin();

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_CUDA_RUNTIME_H_
