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

// Before any torch call that asks for the device or runs backward: torch looks its CUDA hooks up once, and a plugin
// loaded later is not found by them. So programs call it first, through ChooseDevice().
//
// Loads the plugin beside the program (or in ../bin, ../lib of its folder) once; later calls give the first answer.
// After OK, torch::Device("cuda") works. kFailedPrecondition: built without CUDA, plugin damaged, libraries missing, or
// no CUDA device; the message says which, and that the job can run on "cpu".
Status LoadCudaRuntime();

inline constexpr char kDeviceChoices[] = "must be auto, cpu, cuda or cuda:N";
// Whether `text` can be `wanted` of ChooseDevice(): "auto", "cpu", "cuda" or "cuda:N".
bool IsDeviceChoice(const std::string& text);
// Which device a program uses: "cpu" or "cuda:N". `wanted`: "auto" is the first GPU where one can be used, else the
// CPU; "cuda" the first GPU; "cuda:N" that of index N among those this process sees (CUDA_VISIBLE_DEVICES chooses and
// numbers them). Neither changes the current device: threads that compute take a c10::DeviceGuard of it.
// kInvalidArgument: another text; kFailedPrecondition: LoadCudaRuntime()'s error, or there are not that many.
StatusOr<std::string> ChooseDevice(const std::string& wanted);
// For people: "cpu", "cuda:1 NVIDIA H200". REQUIRES: `device` came from ChooseDevice().
std::string DescribeDevice(const std::string& device);

// Whether a driver that supports CUDA `driver` can run what was compiled for CUDA `built_for` (both as CUDA numbers
// them: 13020 is 13.2). kFailedPrecondition otherwise, with what to do. 0 for a driver that does not say: OK.
Status CheckDriverVersion(int driver, int built_for);

// Number of CUDA devices; 0 before LoadCudaRuntime() or when it failed.
int CudaDeviceCount();
// "NVIDIA H200". REQUIRES: 0 <= index < CudaDeviceCount().
std::string CudaDeviceName(int index);
// "GPU-5a1b...": its UUID, the same to every process that sees it, whatever index it has there. REQUIRES: as above.
std::string CudaDeviceId(int index);
// Gives device memory that is kept for later jobs back, for other processes. Nothing where CUDA is not loaded.
void ReleaseDeviceMemory();
// Null before LoadCudaRuntime() or when it failed. Lives until the process ends.
const CudaPlugin* LoadedCudaPlugin();

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_CUDA_RUNTIME_H_
