// Element types of tensors on the wire. Values equal those of distill.v1.WireDtype.
#ifndef DISTILL_COMMON_WIRE_DTYPE_H_
#define DISTILL_COMMON_WIRE_DTYPE_H_

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/status.h"

namespace distill {

enum class WireDtype : uint8_t { kF32 = 1, kF16 = 2, kBf16 = 3, kU8 = 4 };

// Bytes per element.
constexpr size_t SizeOf(WireDtype dtype) {
  switch (dtype) {
    case WireDtype::kF32:
      return 4;
    case WireDtype::kF16:
      return 2;
    case WireDtype::kBf16:
      return 2;
    case WireDtype::kU8:
      return 1;
  }
  return 0;
}
std::string_view Name(WireDtype dtype);                // "f32", "f16", "bf16", "u8"
StatusOr<WireDtype> ParseWireDtype(std::string_view);  // kInvalidArgument for anything else

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_DTYPE_H_
