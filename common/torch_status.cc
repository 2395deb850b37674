#include "common/torch_status.h"

#include <c10/util/Exception.h>
#include <cxxabi.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>
#include <typeinfo>

#include "common/failure_kind.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// cudaError_t as numbers: this file is compiled without CUDA.
constexpr int32_t kCudaMemoryAllocation = 2;
// Errors of one call; all others leave the context in a state in which every later call fails.
constexpr std::array<int32_t, 12> kCudaErrorsOfOneCall = {
    1,    // invalid value
    2,    // memory allocation
    9,    // invalid configuration
    13,   // invalid symbol
    98,   // invalid device function
    101,  // invalid device ordinal
    209,  // no kernel image for the device
    600,  // not ready
    701,  // launch out of resources
    712,  // host memory already registered
    713,  // host memory not registered
    801,  // not supported
};

bool Contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

std::string TypeName(const std::exception& error) {
  int failed = 0;
  char* name = abi::__cxa_demangle(typeid(error).name(), nullptr, nullptr, &failed);
  const std::string text = failed == 0 ? name : "";
  std::free(name);
  return text;
}

bool IsOutOfMemory(const std::exception& error, std::string_view message) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr) return true;
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr) return true;
  if (const auto* device = dynamic_cast<const c10::AcceleratorError*>(&error)) {
    return device->get_error_code() == kCudaMemoryAllocation;
  }
  // These have no type of their own: torch's CPU allocator, and libraries that allocate by themselves.
  return Contains(message, "DefaultCPUAllocator: ") || Contains(message, "CUBLAS_STATUS_ALLOC_FAILED") ||
         Contains(message, "CUDNN_STATUS_ALLOC_FAILED") ||
         Contains(message, "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED") ||
         Contains(message, "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED");
}

// NCCL has one exception type for all, but names its result codes. Those of a worker whose GPUs cannot be used; the
// others (ncclRemoteError, ncclSystemError, ncclInternalError, time-outs, aborts) come and go with peers and networks.
bool IsOwnNcclError(std::string_view message) {
  return Contains(message, "ncclInvalidUsage") || Contains(message, "ncclInvalidArgument") ||
         Contains(message, "ncclUnhandledCudaError");
}

// Gloo's exception classes are not declared in the wheel's headers: by name. Some of its errors c10d wraps in a plain
// c10::Error: by gloo's source paths and phrases.
bool ComesFromGloo(const std::exception& error, std::string_view message) {
  if (TypeName(error).starts_with("gloo::")) return true;
  for (const char* mark : {"gloo/transport", "Connection closed by peer", "Socket closed", "Timed out waiting"}) {
    if (Contains(message, mark)) return true;
  }
  return false;
}

}  // namespace

std::string TorchMessage(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  if (dynamic_cast<const c10::DistError*>(&error) == nullptr) return text.substr(0, text.find('\n'));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

bool LosesCudaContext(const std::exception& error) {
  const auto* device = dynamic_cast<const c10::AcceleratorError*>(&error);
  return device != nullptr && std::find(kCudaErrorsOfOneCall.begin(), kCudaErrorsOfOneCall.end(),
                                        device->get_error_code()) == kCudaErrorsOfOneCall.end();
}

Status TorchStatus(const std::exception& error, std::string_view what) {
  const std::string message = TorchMessage(error);
  if (IsOutOfMemory(error, message)) {
    return WithKind(absl::ResourceExhaustedError(StrCat(what, ": out of memory: ", message)), FailureKind::kWorker);
  }
  const bool dist = dynamic_cast<const c10::DistError*>(&error) != nullptr;
  if (dist || ComesFromGloo(error, message)) {
    return WithKind(absl::AbortedError(StrCat(what, ": lost contact with the group: ", message)),
                    dist && IsOwnNcclError(message) ? FailureKind::kWorker : FailureKind::kPassing);
  }
  const Status status = absl::InternalError(StrCat(what, ": ", message));
  if (dynamic_cast<const c10::Error*>(&error) == nullptr) return status;
  if (dynamic_cast<const c10::AcceleratorError*>(&error) == nullptr) return WithKind(status, FailureKind::kJob);
  const Status worker = WithKind(status, FailureKind::kWorker);
  return LosesCudaContext(error) ? WithEndOfProcess(worker) : worker;
}

}  // namespace distill
