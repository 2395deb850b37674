#include "common/cuda/cuda_runtime.h"

#include <dlfcn.h>

#include <atomic>
#include <filesystem>

#include "common/cuda/cuda_plugin.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr std::string_view kPluginFile = "libdistill_cuda.so";

std::atomic<const CudaPlugin*> loaded_plugin{nullptr};  // written once, by LoadOnce

Status LoadOnce() {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  std::filesystem::path file;
  for (const std::filesystem::path& candidate : {folder, folder / "../bin", folder / "../lib"}) {
    if (std::filesystem::exists(candidate / kPluginFile, error)) {
      file = candidate / kPluginFile;
      break;
    }
  }
  if (file.empty()) {
    return absl::FailedPreconditionError(StrCat("this build has no CUDA support (", kPluginFile,
                                                " is not beside the program in '", folder.string(),
                                                "'); use device cpu, or build with nvcc and DISTILL_CUDA=ON"));
  }
  // Loading torch's CUDA libraries takes seconds and gigabytes of address space, so look for the driver first.
  if (::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) {
    return absl::FailedPreconditionError(
        "no CUDA device: the NVIDIA driver (libcuda.so.1) is not visible to this process; install it, in a container "
        "pass the GPU through (docker run --gpus all), or use device cpu");
  }
  // Never closed: torch's CUDA libraries register themselves for the life of the process. Global, as torch's own loader
  // does it.
  void* handle = ::dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) return absl::FailedPreconditionError(StrCat("cannot load the CUDA plugin: ", ::dlerror()));
  const auto entry = reinterpret_cast<const CudaPlugin* (*)()>(::dlsym(handle, kCudaPluginEntry));
  if (entry == nullptr || entry()->version != kCudaPluginVersion) {
    return absl::FailedPreconditionError(StrCat("the CUDA plugin '", file.string(),
                                                "' belongs to another build of this program; install both together"));
  }
  if (entry()->device_count() == 0) {
    return absl::FailedPreconditionError(
        "no CUDA device: no NVIDIA GPU or driver is visible to this process (nvidia-smi shows what is); in a container "
        "pass the GPU through (docker run --gpus all), or use device cpu");
  }
  loaded_plugin = entry();
  return OkStatus();
}

}  // namespace

Status LoadCudaRuntime() {
  static const Status status = LoadOnce();
  return status;
}

const CudaPlugin* LoadedCudaPlugin() { return loaded_plugin; }

StatusOr<std::string> ChooseDevice(const std::string& wanted) {
  if (wanted == "cpu") return wanted;
  if (wanted != "auto" && wanted != "cuda") {
    return absl::InvalidArgumentError(StrCat("unknown device '", wanted, "'; use auto, cpu or cuda"));
  }
  const Status usable = LoadCudaRuntime();
  if (usable.ok()) return std::string("cuda");
  if (wanted == "auto") return std::string("cpu");
  return usable;
}

int CudaDeviceCount() { return LoadedCudaPlugin() == nullptr ? 0 : LoadedCudaPlugin()->device_count(); }

std::string CudaDeviceName(int index) { return LoadedCudaPlugin()->device_name(index); }

std::string CudaDeviceId(int index) { return LoadedCudaPlugin()->device_id(index); }

}  // namespace distill
