#include "common/kernels/simd_level.h"

namespace distill {

const char* Name(SimdLevel level) {
  switch (level) {
    case SimdLevel::kPortable:
      return "portable";
    case SimdLevel::kAvx2:
      return "avx2";
    case SimdLevel::kAvx512:
      return "avx512";
  }
  return "?";
}

const std::vector<SimdLevel>& AvailableSimdLevels() {
  static const std::vector<SimdLevel> levels = [] {
    std::vector<SimdLevel> found{SimdLevel::kPortable};
#ifdef DISTILL_KERNELS_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      found.push_back(SimdLevel::kAvx2);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        found.push_back(SimdLevel::kAvx512);
      }
    }
#endif
    return found;
  }();
  return levels;
}

}  // namespace distill
