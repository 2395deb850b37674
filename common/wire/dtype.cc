#include "common/wire/dtype.h"

#include "common/str_cat.h"

namespace distill {

std::string_view Name(WireDtype dtype) {
  switch (dtype) {
    case WireDtype::kF32:
      return "f32";
    case WireDtype::kF16:
      return "f16";
    case WireDtype::kBf16:
      return "bf16";
    case WireDtype::kU8:
      return "u8";
  }
  return "unknown";  // a value cast from the wire without ParseWireDtype
}

StatusOr<WireDtype> ParseWireDtype(std::string_view text) {
  for (WireDtype dtype : {WireDtype::kF32, WireDtype::kF16, WireDtype::kBf16, WireDtype::kU8}) {
    if (text == Name(dtype)) return dtype;
  }
  return absl::InvalidArgumentError(StrCat("unknown dtype '", text, "'; use f32, f16, bf16 or u8"));
}

}  // namespace distill
