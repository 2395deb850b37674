// How a tap's tensor is written as bytes: what a student may ask for, how the axes of the answer lie, and where its
// blocks are. The one place where sizes of features are computed: both ends of the stream, credit, and the checks at
// submit ask here.
//
// A tensor of shape [N, C, H, W] or [N, K] is one block, its values, little-endian.
#ifndef DISTILL_COMMON_WIRE_TAP_ENCODING_H_
#define DISTILL_COMMON_WIRE_TAP_ENCODING_H_

#include <cstdint>
#include <span>

#include "common/wire/dtype.h"

namespace distill {

// What a student may ask of a tap.
struct TapEncoding {
  WireDtype dtype = WireDtype::kF32;
  // Every value less the largest of its sample and channel; maps [N, C, H, W] only. Cast to 16 bits, what is left keeps
  // about fifty times more of its precision. For losses that do not see the difference (LossNeeds::row_offsets).
  bool less_row_max = false;
  bool operator==(const TapEncoding&) const = default;
};

// In which order the values of a map [N, C, H, W] follow each other. A tensor keeps the order that its network gave it,
// so the teacher says which one it is. Values equal those of distill.v1.TensorLayout.
enum class TensorLayout : uint8_t {
  kRowMajor = 0,      // N, C, H, W: torch's contiguous; all other shapes too
  kChannelsLast = 1,  // N, H, W, C: torch's channels_last
};

// The blocks of a tensor.
struct EncodedLayout {
  uint64_t values = 0;  // of them
  uint64_t bytes = 0;   // of all blocks
};

// A size beyond 64 bits is UINT64_MAX. Axes of 0 give 0. `shape` may leave out the batch axis: it is then of one image.
EncodedLayout LayoutOf(std::span<const uint32_t> shape, const TapEncoding& encoding);

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_TAP_ENCODING_H_
