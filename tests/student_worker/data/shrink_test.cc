#include "student_worker/data/shrink.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

namespace distill {
namespace {

std::vector<uint8_t> Shrink(uint32_t channels, uint32_t height, uint32_t width, uint32_t factor,
                            const std::vector<uint8_t>& image) {
  std::vector<uint8_t> out(channels * (height / factor) * (width / factor));
  ShrinkImage(channels, height, width, factor, image.data(), out.data());
  return out;
}

std::vector<uint8_t> ShrinkIds(uint32_t height, uint32_t width, uint32_t factor, const std::vector<uint8_t>& ids) {
  std::vector<uint8_t> out((height / factor) * (width / factor));
  ShrinkLabelMap(height, width, factor, ids.data(), out.data());
  return out;
}

TEST(ShrinkTest, AnOutputPixelIsTheRoundedMeanOfItsBox) {
  // Two channels of 2x4: boxes 1 2 5 6 -> 3.5, 3 4 7 8 -> 5.5; 0 0 0 1 -> 0.25, 255 255 255 254 -> 254.75.
  EXPECT_EQ(Shrink(2, 2, 4, 2, {1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 255, 255, 0, 1, 255, 254}),
            (std::vector<uint8_t>{4, 6, 0, 255}));
  // 3x3: 9 values of sum 13 are 1.44, of sum 14 are 1.56.
  EXPECT_EQ(Shrink(1, 3, 6, 3, {1, 1, 1, 1, 1, 1, 1, 5, 1, 1, 6, 1, 1, 1, 1, 1, 1, 1}), (std::vector<uint8_t>{1, 2}));
  EXPECT_EQ(Shrink(1, 2, 2, 1, {1, 2, 3, 4}), (std::vector<uint8_t>{1, 2, 3, 4}));
}

TEST(ShrinkTest, MatchesTheMeanInDoubleForManyShapes) {
  for (const uint32_t factor : {1u, 2u, 3u, 4u, 7u, 64u}) {
    const uint32_t channels = 3, rows = 3, columns = 5, height = rows * factor, width = columns * factor;
    std::vector<uint8_t> image(channels * height * width);
    uint32_t state = factor;
    for (uint8_t& pixel : image) pixel = (state = state * 1664525 + 1013904223) >> 24;
    const std::vector<uint8_t> out = Shrink(channels, height, width, factor, image);
    for (uint32_t c = 0; c < channels; ++c) {
      for (uint32_t y = 0; y < rows; ++y) {
        for (uint32_t x = 0; x < columns; ++x) {
          double sum = 0;
          for (uint32_t i = 0; i < factor * factor; ++i) {
            sum += image[(c * height + y * factor + i / factor) * width + x * factor + i % factor];
          }
          ASSERT_EQ(out[(c * rows + y) * columns + x], std::floor(sum / (factor * factor) + 0.5))
              << "factor " << factor << " at " << c << ", " << y << ", " << x;
        }
      }
    }
  }
}

TEST(ShrinkTest, AWhiteImageStaysWhiteHoweverLargeTheBox) {
  const uint32_t side = 8192;  // sums of 2^26 pixels do not fit into 32 bits
  EXPECT_EQ(Shrink(1, side, side, side, std::vector<uint8_t>(uint64_t{side} * side, 255)), std::vector<uint8_t>{255});
}

TEST(ShrinkTest, ALabelMapKeepsTheMiddlePixelOfEachBox) {
  std::vector<uint8_t> ids(6 * 12);
  std::iota(ids.begin(), ids.end(), 0);
  EXPECT_EQ(ShrinkIds(6, 12, 1, ids), ids);
  EXPECT_EQ(ShrinkIds(6, 12, 2, ids),
            (std::vector<uint8_t>{13, 15, 17, 19, 21, 23, 37, 39, 41, 43, 45, 47, 61, 63, 65, 67, 69, 71}));
  EXPECT_EQ(ShrinkIds(6, 12, 3, ids), (std::vector<uint8_t>{13, 16, 19, 22, 49, 52, 55, 58}));
  EXPECT_EQ(ShrinkIds(6, 12, 6, ids), (std::vector<uint8_t>{39, 45}));
}

}  // namespace
}  // namespace distill
