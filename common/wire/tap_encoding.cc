#include "common/wire/tap_encoding.h"

#include <algorithm>
#include <limits>

namespace distill {

EncodedLayout LayoutOf(std::span<const uint32_t> shape, const TapEncoding& encoding) {
  constexpr uint64_t kMost = std::numeric_limits<uint64_t>::max();
  if (std::find(shape.begin(), shape.end(), 0u) != shape.end()) return {};
  const auto product = [](uint64_t a, uint64_t b) { return a > kMost / b ? kMost : a * b; };
  EncodedLayout layout{.values = 1};
  for (uint32_t side : shape) layout.values = product(layout.values, side);
  layout.bytes = product(layout.values, SizeOf(encoding.dtype));
  return layout;
}

}  // namespace distill
