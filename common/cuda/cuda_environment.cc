#include "common/cuda/cuda_environment.h"

#include <ATen/Context.h>

#include <cstdlib>

namespace distill {
namespace {

// c10d's defaults are made for jobs that end with their first error. Here a lost peer is survived, and its rank has to
// be back within seconds: without these, 60 s pass between a time-out and the abort that it causes, and up to eight
// minutes in the group's destructor.
// clang-format off
constexpr EnvironmentSetting kSettings[] = {
    {"TORCH_NCCL_ASYNC_ERROR_HANDLING", "2", "on an error or time-out abort the communicator; the default ends the process"},
    {"TORCH_NCCL_DUMP_ON_TIMEOUT", "0", "no flight record on a time-out; also ends a question a second to the rendezvous store"},
    {"TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "0", "the watchdog sleeps four times this between time-out and abort (default 15 s)"},
    {"TORCH_NCCL_TRACE_BUFFER_SIZE", "0", "no flight recorder, so nothing that could be dumped"},
    {"TORCH_NCCL_ENABLE_MONITORING", "0", "nothing but the supervisor kills this process"},
    {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "5", "how long the monitor's thread may hold up a group's destructor (default 480 s)"},
    {"TORCH_NCCL_LOG_CPP_STACK_ON_UNCLEAN_SHUTDOWN", "0", "collecting stacks of all threads takes minutes and can hang"},
    {"TORCH_NCCL_PROPAGATE_ERROR", "0", "the coordinator tells the other ranks; no key in the store that nobody clears"},
    {"CUBLAS_WORKSPACE_CONFIG", ":4096:8", "cuBLAS repeats its results bit for bit only with a fixed workspace"},
};
// clang-format on

}  // namespace

std::span<const EnvironmentSetting> CudaEnvironment() { return kSettings; }

void SetCudaEnvironment() {
  for (const EnvironmentSetting& setting : kSettings) ::setenv(setting.name, setting.value, /*overwrite=*/0);
}

void SetDeviceNumerics() {
  at::globalContext().setAllowTF32CuBLAS(false);
  at::globalContext().setAllowTF32CuDNN(true);
}

}  // namespace distill
