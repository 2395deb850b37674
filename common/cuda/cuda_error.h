// CUDA's error codes as texts: the plugin links no Abseil, whose Debian libraries fit into programs only. Only for
// sources that include CUDA.
#ifndef DISTILL_COMMON_CUDA_CUDA_ERROR_H_
#define DISTILL_COMMON_CUDA_CUDA_ERROR_H_

#include <cuda_runtime_api.h>

#include <string>

// Returns what went wrong from the enclosing function, which returns "" for success, if `expression` (a cudaError_t) is
// not cudaSuccess.
#define DISTILL_RETURN_IF_CUDA_ERROR(expression)                                  \
  do {                                                                            \
    const cudaError_t distill_error = (expression);                               \
    if (distill_error != cudaSuccess) {                                           \
      return std::string(#expression) + ": " + cudaGetErrorString(distill_error); \
    }                                                                             \
  } while (false)

#endif  // DISTILL_COMMON_CUDA_CUDA_ERROR_H_
