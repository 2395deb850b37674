#include "student_worker/data/pixel_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using testing::Noise;

// A filter of `out` positions over `in` values, with weights that also lead below 0 and above 255.
struct SomeFilter {
  std::vector<uint32_t> first, count;
  std::vector<int32_t> weights;
  uint32_t most = 5;
  SomeFilter(uint32_t in, uint32_t out) {
    for (uint32_t i = 0; i < out; ++i) {
      count.push_back(std::min(in, 1 + i % most));
      first.push_back(i * (in - count.back()) / out);
      for (uint32_t k = 0; k < most; ++k) {
        weights.push_back((static_cast<int32_t>((i * 7 + k * 13) % 9) - 2) * (1 << kWeightBits) / 8);
      }
    }
  }
  LineFilter line() const {
    return {static_cast<uint32_t>(first.size()), most, first.data(), count.data(), weights.data()};
  }
  // The definition.
  uint8_t Value(const uint8_t* in, uint64_t step, uint32_t i) const {
    int64_t sum = int64_t{1} << (kWeightBits - 1);
    for (uint32_t k = 0; k < count[i]; ++k) sum += int64_t{weights[i * most + k]} * in[(first[i] + k) * step];
    return static_cast<uint8_t>(std::clamp<int64_t>(sum >> kWeightBits, 0, 255));
  }
};

TEST(PixelKernelsTest, AllLevelsFollowTheDefinition) {
  for (const SimdLevel level : AvailableSimdLevels()) {
    const PixelKernels& kernels = PixelKernelsFor(level);
    for (const uint32_t height : {1u, 7u, 16u, 17u, 33u}) {
      for (const uint32_t width : {1u, 8u, 15u, 16u, 31u, 50u}) {
        const uint64_t stride = width + 3;
        const std::vector<uint8_t> in = Noise(height * stride);
        for (const uint32_t out : {1u, 9u, 40u}) {
          const SomeFilter across(width, out), down(height, out);
          std::vector<uint8_t> scratch(kRowsAtOnce * width), rows(height * out), columns(out * width);
          kernels.resize_rows(in.data(), stride, height, width, across.line(), scratch.data(), rows.data());
          kernels.resize_columns(in.data(), stride, width, down.line(), columns.data());
          for (uint32_t y = 0; y < height; ++y) {
            for (uint32_t x = 0; x < out; ++x) {
              ASSERT_EQ(rows[y * out + x], across.Value(in.data() + y * stride, 1, x))
                  << Name(level) << " " << height << " " << width << " to " << out << ": " << y << " " << x;
            }
          }
          for (uint32_t y = 0; y < out; ++y) {
            for (uint32_t x = 0; x < width; ++x) {
              ASSERT_EQ(columns[y * width + x], down.Value(in.data() + x, stride, y))
                  << Name(level) << " " << height << " to " << out << " " << width << ": " << y << " " << x;
            }
          }
        }
      }
    }
    for (const size_t n : {0u, 1u, 15u, 16u, 33u, 100u}) {
      const std::vector<uint8_t> pixels = Noise(3 * n);
      std::vector<uint8_t> planes(3 * n);
      kernels.split_colours(pixels.data(), n, planes.data(), planes.data() + n, planes.data() + 2 * n);
      for (size_t i = 0; i < 3 * n; ++i) ASSERT_EQ(planes[i % 3 * n + i / 3], pixels[i]) << Name(level) << " " << n;
    }
  }
}

}  // namespace
}  // namespace distill
