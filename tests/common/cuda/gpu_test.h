// For tests that need a GPU: without one they skip themselves, unless the run is one that must have one.
#ifndef DISTILL_TESTS_COMMON_CUDA_GPU_TEST_H_
#define DISTILL_TESTS_COMMON_CUDA_GPU_TEST_H_

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "common/cuda/cuda_runtime.h"

namespace distill {

inline bool GpuIsRequired() {
  const char* required = std::getenv("DISTILL_REQUIRE_GPU");
  return required != nullptr && std::string_view(required) == "1";
}

}  // namespace distill

// In SetUp(), or at the start of a test. Loads the CUDA runtime. Where that cannot be, leaves the test as skipped, or,
// with DISTILL_REQUIRE_GPU=1 in the environment, as failed; the reason is said.
#define DISTILL_NEED_GPU()                                                                                 \
  do {                                                                                                     \
    const ::distill::Status distill_gpu = ::distill::LoadCudaRuntime();                                    \
    if (!distill_gpu.ok() && ::distill::GpuIsRequired()) FAIL() << "DISTILL_REQUIRE_GPU: " << distill_gpu; \
    if (!distill_gpu.ok()) GTEST_SKIP() << "no GPU to run on: " << distill_gpu;                            \
  } while (false)

#endif  // DISTILL_TESTS_COMMON_CUDA_GPU_TEST_H_
