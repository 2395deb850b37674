#include "common/cuda/cuda_runtime.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <filesystem>

#include "common/cuda/cuda_plugin.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr std::string_view kPluginFile = "libdistill_cuda.so";
constexpr std::string_view kCudaPrefix = "cuda:";

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
  void* driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) {
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
  int driver_version = 0;
  if (const auto version = reinterpret_cast<int (*)(int*)>(::dlsym(driver, "cuDriverGetVersion"))) {
    if (version(&driver_version) != 0) driver_version = 0;
  }
  DISTILL_RETURN_IF_ERROR(CheckDriverVersion(driver_version, entry()->cuda_version));
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

Status CheckDriverVersion(int driver, int built_for) {
  if (driver == 0 || driver / 1000 >= built_for / 1000) return OkStatus();
  const auto text = [](int version) { return StrCat(version / 1000, ".", version % 1000 / 10); };
  return absl::FailedPreconditionError(
      StrCat("no CUDA device: the NVIDIA driver supports CUDA ", text(driver), ", this build needs ", text(built_for),
             "; install a newer driver (CUDA 13 needs 580 or newer), or use device cpu"));
}

bool IsDeviceChoice(const std::string& text) {
  if (text == "auto" || text == "cpu" || text == "cuda") return true;
  if (!text.starts_with(kCudaPrefix)) return false;
  const std::string index = text.substr(kCudaPrefix.size());
  // Two digits: no machine has more, and torch's index is a byte.
  return !index.empty() && index.size() <= 2 &&
         std::all_of(index.begin(), index.end(), [](unsigned char c) { return std::isdigit(c); });
}

StatusOr<std::string> ChooseDevice(const std::string& wanted) {
  if (!IsDeviceChoice(wanted)) {
    return absl::InvalidArgumentError(StrCat("unknown device '", wanted, "'; use auto, cpu, cuda or cuda:N"));
  }
  if (wanted == "cpu") return wanted;
  const Status usable = LoadCudaRuntime();
  if (!usable.ok()) return wanted == "auto" ? StatusOr<std::string>("cpu") : usable;
  const int index = wanted.starts_with(kCudaPrefix) ? std::stoi(wanted.substr(kCudaPrefix.size())) : 0;
  if (index >= CudaDeviceCount()) {
    return absl::FailedPreconditionError(StrCat("no device ", wanted, ": this process sees ", CudaDeviceCount(),
                                                " GPUs, from cuda:0 on (CUDA_VISIBLE_DEVICES chooses them)"));
  }
  return StrCat(kCudaPrefix, index);
}

std::string DescribeDevice(const std::string& device) {
  if (device == "cpu") return device;
  return StrCat(device, " ", CudaDeviceName(std::stoi(device.substr(kCudaPrefix.size()))));
}

void ReleaseDeviceMemory() {
  if (LoadedCudaPlugin() != nullptr) LoadedCudaPlugin()->release_memory();
}

int CudaDeviceCount() { return LoadedCudaPlugin() == nullptr ? 0 : LoadedCudaPlugin()->device_count(); }

std::string CudaDeviceName(int index) { return LoadedCudaPlugin()->device_name(index); }

std::string CudaDeviceId(int index) { return LoadedCudaPlugin()->device_id(index); }

}  // namespace distill
