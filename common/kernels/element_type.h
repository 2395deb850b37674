// Element types that kernels read and write, and their conversions one value at a time (the reference's; vector code
// has its own).
#ifndef DISTILL_COMMON_KERNELS_ELEMENT_TYPE_H_
#define DISTILL_COMMON_KERNELS_ELEMENT_TYPE_H_

#include <cstdint>
#include <cstring>

// Conversions run on a GPU too.
#if defined(__CUDACC__)
#define DISTILL_HOST_DEVICE __host__ __device__
#else
#define DISTILL_HOST_DEVICE
#endif

namespace distill {

enum class ElementType : uint8_t { kFloat32, kBfloat16, kFloat16 };

// Distinct types, so that a pointer says how its bits are to be read. Same bits as c10::BFloat16 and c10::Half.
struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

constexpr int64_t SizeOf(ElementType type) { return type == ElementType::kFloat32 ? 4 : 2; }
constexpr const char* Name(ElementType type) {
  return type == ElementType::kFloat32 ? "float32" : type == ElementType::kBfloat16 ? "bfloat16" : "float16";
}

DISTILL_HOST_DEVICE inline float ToFloat(float x) { return x; }
DISTILL_HOST_DEVICE inline float ToFloat(Bfloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}
DISTILL_HOST_DEVICE inline float ToFloat(Float16 x) {
  // Places exponent and mantissa where float32 has them; the multiplication by 2^112 corrects the exponent's bias,
  // subnormals included.
  const uint32_t magnitude = (uint32_t{x.bits} & 0x7fffu) << 13;
  uint32_t bits = magnitude;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  if (magnitude >= 0x0f800000u) {  // infinity or NaN
    bits |= 0x7f800000u;
    std::memcpy(&f, &bits, sizeof f);
  } else {
    f *= 0x1p112f;
  }
  return (x.bits & 0x8000u) ? -f : f;
}

// Rounds to nearest, ties to even; what is too large becomes infinity.
DISTILL_HOST_DEVICE inline void FromFloat(float x, float* out) { *out = x; }
DISTILL_HOST_DEVICE inline void FromFloat(float x, Bfloat16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    out->bits = static_cast<uint16_t>((bits >> 16) | 0x40u);  // a NaN stays one
  } else {
    out->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}
DISTILL_HOST_DEVICE inline void FromFloat(float x, Float16* out) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    out->bits = static_cast<uint16_t>(sign | 0x7e00u);
  } else if (bits >= 0x477ff000u) {  // 65520 and above round to infinity
    out->bits = static_cast<uint16_t>(sign | 0x7c00u);
  } else if (bits < 0x38800000u) {  // below 2^-14: subnormal; adding 0.5 lets the adder round at bit 2^-24
    float f;
    std::memcpy(&f, &bits, sizeof f);
    f += 0.5f;
    std::memcpy(&bits, &f, sizeof bits);
    out->bits = static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  } else {
    out->bits = static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13));
  }
}

// Calls f with a null pointer of the type's representation: DispatchElement(type, [&](auto* tag) { using T = ...; }).
template <typename Function>
decltype(auto) DispatchElement(ElementType type, Function&& f) {
  switch (type) {
    case ElementType::kBfloat16:
      return f(static_cast<Bfloat16*>(nullptr));
    case ElementType::kFloat16:
      return f(static_cast<Float16*>(nullptr));
    case ElementType::kFloat32:
      break;
  }
  return f(static_cast<float*>(nullptr));
}

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_ELEMENT_TYPE_H_
