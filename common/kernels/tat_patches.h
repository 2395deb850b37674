// Between maps and matrices: copies tokens of a map into the kernels' matrices, and gradients back to the pixels.
// Private to tat_attention_cpu.cc and tat_patches.cc.
#ifndef DISTILL_COMMON_KERNELS_TAT_PATCHES_H_
#define DISTILL_COMMON_KERNELS_TAT_PATCHES_H_

#include <cstdint>

#include "common/kernels/tat_attention.h"
#include "common/kernels/tat_attention_simd.h"

namespace distill::tat {

// One of the maps as the kernel meets it: which tokens, and where its gradient goes.
struct Side {
  const FeatureMap* map;
  const TatTokens* tokens;
  float* gradient;  // or null
  const char* name;
};

// Some neighbouring patches of one image of one map.
struct Patches {
  const Side* side;
  int64_t image, first, count;
};

// Copies tokens [begin, begin + count) of each of the patches into `out`, [patch][channel][t], 0 beyond `count`; t is a
// multiple of kPad. Returns whether all of them are finite. `staging` has room for [t][channel] floats.
bool Pack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
          float* staging);

// The gradient of the same tokens, [patch][channel][t], times `factor`, to (or, `add`, onto) the pixels behind them.
void Unpack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, const float* from,
            float factor, bool add, float* staging);

}  // namespace distill::tat

#endif  // DISTILL_COMMON_KERNELS_TAT_PATCHES_H_
