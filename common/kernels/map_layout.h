// How a batch of maps lies in memory.
#ifndef DISTILL_COMMON_KERNELS_MAP_LAYOUT_H_
#define DISTILL_COMMON_KERNELS_MAP_LAYOUT_H_

#include <cstdint>

namespace distill {

enum class MapLayout : uint8_t {
  kChannelsFirst,  // [N, C, H*W]: torch's contiguous
  kChannelsLast,   // [N, H*W, C]: torch's channels_last
};

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_MAP_LAYOUT_H_
