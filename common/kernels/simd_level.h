// Which vector instructions a kernel may use. The program is built for the oldest x86-64; a kernel brings one source
// file per level (channel_kl_avx512.cc, ..., each with its own compiler flags) and chooses when it runs.
#ifndef DISTILL_COMMON_KERNELS_SIMD_LEVEL_H_
#define DISTILL_COMMON_KERNELS_SIMD_LEVEL_H_

#include <vector>

namespace distill {

enum class SimdLevel {
  kPortable,  // whatever the compiler makes of 16-byte vectors
  kAvx2,      // AVX2, FMA, F16C
  kAvx512,    // AVX-512 F, BW, DQ, VL
};

const char* Name(SimdLevel level);
// Levels that this build has and this processor runs, worst first; never empty.
const std::vector<SimdLevel>& AvailableSimdLevels();
inline SimdLevel BestSimdLevel() { return AvailableSimdLevels().back(); }

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_SIMD_LEVEL_H_
