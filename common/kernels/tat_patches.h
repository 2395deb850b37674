// Between maps and matrices: copies tokens of a map into the kernels' matrices, and gradients back to the pixels; and
// averages maps over windows. Private to tat_attention_cpu.cc and tat_patches.cc.
#ifndef DISTILL_COMMON_KERNELS_TAT_PATCHES_H_
#define DISTILL_COMMON_KERNELS_TAT_PATCHES_H_

#include <cstdint>

#include "common/kernels/tat_attention.h"
#include "common/kernels/tat_attention_simd.h"

namespace distill::tat {

// What an image's anchors add to the gradient of its map: every pixel of a window gets an equal share of the window's.
// Never spread out in memory: it is added where the pixels' gradient is written.
struct AnchorGradient {
  const float* values = nullptr;  // of the averaged map, in the map's layout; null: nothing is added
  int64_t height = 0, width = 0;  // windows
  TatWindow window;
  float share() const { return 1.0f / static_cast<float>(window.count()); }
};

// One of the maps as the kernel meets it: which tokens, each a pixel, and where its gradient goes.
struct Side {
  const FeatureMap* map;
  const TatTokens* tokens;
  float* gradient;  // or null
  AnchorGradient anchor;
};

// Some neighbouring patches of one image of one map: the first of a group and those that follow, whole groups.
struct Patches {
  const Side* side;
  int64_t image, first, count;
  int64_t per_group;

  // Where a channel of a patch lies in the matrices: [group][channel][patch of the group][t]. Which feature is which
  // does not matter to an attention; so, what lies together in the map stays together.
  int64_t Row(int64_t patch, int64_t channel) const {
    return (patch / per_group * side->map->channels + channel) * per_group + patch % per_group;
  }
};

// Copies tokens [begin, begin + count) of each of the patches into `out`, [row][t], 0 beyond `count`; t is a
// multiple of kPad. `staging` has room for [t][channel] floats.
void Pack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, float* out,
          float* staging);

// The gradient of the same tokens, [row][t], times `factor`, and the anchors' to the pixels behind them.
void Unpack(const Kernels& kernels, const Patches& patches, int64_t begin, int64_t count, int64_t t, const float* from,
            float factor, WriteMode mode, float* staging);

// A map falls into this many planes, which several threads may share: channels, or rows if channels are last.
int64_t Planes(const FeatureMap& map);

// Gives the pixels of one image that lie in no patch, those from row `rows` or column `columns` on, what the anchors
// add, or 0; planes [begin, end).
void WriteRest(const Kernels& kernels, const Side& side, int64_t image, int64_t rows, int64_t columns, WriteMode mode,
               int64_t begin, int64_t end);

// Averages one image over windows of `tokens` into `out`, in the map's layout; planes [begin, end) of what comes out.
void Pool(const FeatureMap& map, const TatTokens& tokens, int64_t image, int64_t begin, int64_t end, float* out);

// Whether all of the images' values are.
bool AllFinite(const FeatureMap& map, int64_t images);

}  // namespace distill::tat

#endif  // DISTILL_COMMON_KERNELS_TAT_PATCHES_H_
