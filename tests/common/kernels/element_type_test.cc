#include "common/kernels/element_type.h"

#include <gtest/gtest.h>

#include <cmath>

namespace distill {
namespace {

float RoundTripHalf(float x) {
  Float16 half;
  FromFloat(x, &half);
  return ToFloat(half);
}

TEST(ElementTypeTest, EveryFloat16ConvertsThereAndBack) {
  for (int bits = 0; bits < 65536; ++bits) {
    const float f = ToFloat(Float16{static_cast<uint16_t>(bits)});
    Float16 back;
    FromFloat(f, &back);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(ToFloat(back))) << bits;
    } else {
      ASSERT_EQ(back.bits, bits);
    }
    // The definition: (-1)^sign * 2^(e-15) * 1.m, or 2^-14 * 0.m.
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent < 31) {
      const double magnitude = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      ASSERT_EQ(f, (bits & 0x8000) ? -magnitude : magnitude) << bits;
    }
  }
}

TEST(ElementTypeTest, Float16RoundsToNearestEvenAndOverflowsToInfinity) {
  EXPECT_EQ(RoundTripHalf(2049.0f), 2048.0f);  // tie, to even
  EXPECT_EQ(RoundTripHalf(2051.0f), 2052.0f);
  EXPECT_EQ(RoundTripHalf(65519.0f), 65504.0f);
  EXPECT_TRUE(std::isinf(RoundTripHalf(65520.0f)));
  EXPECT_EQ(RoundTripHalf(0x1p-25f), 0.0f);  // tie between 0 and the smallest subnormal
  EXPECT_EQ(RoundTripHalf(0x1.8p-25f), 0x1p-24f);
  EXPECT_EQ(RoundTripHalf(-0x1.8p-24f), -0x1p-23f);  // tie, to even
}

TEST(ElementTypeTest, Bfloat16RoundsToNearestEvenAndKeepsNan) {
  Bfloat16 b;
  FromFloat(0x1.01p0f, &b);  // half way between 1 and 1 + 2^-7
  EXPECT_EQ(ToFloat(b), 1.0f);
  FromFloat(0x1.03p0f, &b);
  EXPECT_EQ(ToFloat(b), 0x1.04p0f);
  FromFloat(-0x1.010002p0f, &b);
  EXPECT_EQ(ToFloat(b), -0x1.02p0f);
  FromFloat(std::nanf(""), &b);
  EXPECT_TRUE(std::isnan(ToFloat(b)));
}

}  // namespace
}  // namespace distill
