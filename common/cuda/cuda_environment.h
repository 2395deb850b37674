// How CUDA's libraries behave in this process: settings that they read from the environment or that torch keeps for the
// whole process. One place, so that teachers and students compute alike.
#ifndef DISTILL_COMMON_CUDA_CUDA_ENVIRONMENT_H_
#define DISTILL_COMMON_CUDA_CUDA_ENVIRONMENT_H_

#include <span>

namespace distill {

struct EnvironmentSetting {
  const char* name;
  const char* value;
  const char* reason;
};
// All of them.
std::span<const EnvironmentSetting> CudaEnvironment();

// Sets those that are not set yet: what an operator gives wins. First thing in main(), before there are threads:
// setenv() beside a getenv() of another thread is a race.
void SetCudaEnvironment();

// How a GPU computes float32, stated and not left to the release of torch: matrix products in full float32;
// convolutions in TF32 (operands rounded to 10 bits of mantissa, sums in float32), as PyTorch does by default. Maps of
// a teacher on a GPU therefore differ from those of a CPU by about 1e-3 of their size, less than a 16-bit wire rounds
// them. Nothing on a CPU changes. Called by teacher and student before the first computation. Thread-compatible.
void SetDeviceNumerics();

}  // namespace distill

#endif  // DISTILL_COMMON_CUDA_CUDA_ENVIRONMENT_H_
