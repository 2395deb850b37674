#include "common/wire/largest_value.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace distill {
namespace {

template <typename Word>
float Largest(WireDtype dtype, const std::vector<Word>& words) {
  LargestValue largest(dtype);
  largest.Add(reinterpret_cast<const uint8_t*>(words.data()), words.size() * sizeof(Word));
  return largest.value();
}

uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

TEST(LargestValueTest, IsThatOfTheLargestMagnitude) {
  EXPECT_EQ(Largest<float>(WireDtype::kF32, {}), 0);
  EXPECT_EQ(Largest<float>(WireDtype::kF32, {1, -3.5f, 2, 0}), 3.5f);
  EXPECT_EQ(Largest<float>(WireDtype::kF32, {-0.0f, 0}), 0);
  EXPECT_EQ(Largest<float>(WireDtype::kF32, {-1e-42f}), 1e-42f);  // subnormal
  EXPECT_EQ(Largest<float>(WireDtype::kF32, {3e38f, -1}), 3e38f);
  EXPECT_EQ(Largest<uint16_t>(WireDtype::kBf16, {0x3F80, 0xC060}), 3.5f);
  EXPECT_EQ(Largest<uint16_t>(WireDtype::kF16, {0x3C00, 0xC300}), 3.5f);
  EXPECT_EQ(Largest<uint16_t>(WireDtype::kF16, {0x8001}), 0x1p-24f);  // subnormal
  EXPECT_EQ(Largest<uint16_t>(WireDtype::kF16, {0x7BFF}), 65504);
}

// At every place of vectors, their remainders, and of several calls.
TEST(LargestValueTest, NothingThatIsNotFiniteHides) {
  for (size_t count : {1, 7, 8, 33, 100}) {
    for (size_t place = 0; place < count; ++place) {
      for (float bad : {std::nanf(""), -std::nanf(""), std::numeric_limits<float>::infinity(),
                        -std::numeric_limits<float>::infinity()}) {
        std::vector<float> values(count, 3e38f);
        values[place] = bad;
        EXPECT_FALSE(std::isfinite(Largest(WireDtype::kF32, values))) << count << " " << place;
        std::vector<uint16_t> narrow(count, 0x7F7F);
        narrow[place] = static_cast<uint16_t>(Bits(bad) >> 16);
        EXPECT_FALSE(std::isfinite(Largest(WireDtype::kBf16, narrow))) << count << " " << place;
        std::vector<uint16_t> half(count, 0xFBFF);
        EXPECT_EQ(Largest(WireDtype::kF16, half), 65504);
        half[place] = std::isnan(bad) ? 0x7E00 : 0xFC00;
        EXPECT_FALSE(std::isfinite(Largest(WireDtype::kF16, half))) << count << " " << place;
        LargestValue largest(WireDtype::kF32);
        const auto* bytes = reinterpret_cast<const uint8_t*>(values.data());
        largest.Add(bytes, 4 * place);
        largest.Add(bytes + 4 * place, 4 * (count - place));
        EXPECT_FALSE(std::isfinite(largest.value()));
      }
    }
  }
}

}  // namespace
}  // namespace distill
