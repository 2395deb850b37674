#include "common/wire/largest_value.h"

#include <algorithm>
#include <cstring>

namespace distill {
namespace {

// Signed words: without their sign bit they are in order, and every instruction set has their maximum.
template <typename Word>
uint32_t LargestBits(const uint8_t* bytes, size_t size, Word without_sign) {
  const auto* const words = reinterpret_cast<const Word*>(bytes);
  const size_t count = size / sizeof(Word);
  Word largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<Word>(words[i] & without_sign));
  return static_cast<uint32_t>(largest);
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Of a half-precision number without sign. Exponent and mantissa go where float32 has them; the factor corrects the
// exponent's bias, subnormals included.
float FromHalfBits(uint32_t bits) {
  if (bits >= 0x7C00) return FromBits(bits << 13 | 0x7F800000);
  return FromBits(bits << 13) * 0x1p112f;
}

}  // namespace

void LargestValue::Add(const uint8_t* bytes, size_t size) {
  switch (dtype_) {
    case WireDtype::kF32:
      bits_ = std::max(bits_, LargestBits<int32_t>(bytes, size, 0x7FFFFFFF));
      break;
    case WireDtype::kF16:
    case WireDtype::kBf16:
      bits_ = std::max(bits_, LargestBits<int16_t>(bytes, size, 0x7FFF));
      break;
    case WireDtype::kU8:
      for (size_t i = 0; i < size; ++i) bits_ = std::max<uint32_t>(bits_, bytes[i]);
      break;
  }
}

float LargestValue::value() const {
  switch (dtype_) {
    case WireDtype::kF32:
      return FromBits(bits_);
    case WireDtype::kF16:
      return FromHalfBits(bits_);
    case WireDtype::kBf16:
      return FromBits(bits_ << 16);
    case WireDtype::kU8:
      break;
  }
  return static_cast<float>(bits_);
}

}  // namespace distill
