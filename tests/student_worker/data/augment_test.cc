#include "student_worker/data/augment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "student_worker/data/dataset.h"

namespace distill {
namespace {

std::vector<uint8_t> Augment(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t id, uint32_t c,
                             uint32_t h, uint32_t w, const std::vector<uint8_t>& image) {
  std::vector<uint8_t> out(image.size(), 0xEE);
  AugmentImage(options, seed, epoch, id, c, h, w, image.data(), out.data());
  return out;
}

std::vector<uint8_t> OneTo(size_t n) {
  std::vector<uint8_t> image(n);
  std::iota(image.begin(), image.end(), 1);
  return image;
}

// Golden values: see sampler_test.cc. Shape [2, 3, 4], padding 1, flips on.
TEST(AugmentTest, MatchesGoldenValues) {
  const std::vector<std::vector<uint8_t>> golden = {
      {0, 0, 0, 0, 3, 2, 1, 0, 7, 6, 5, 0, 0, 0, 0, 0, 15, 14, 13, 0, 19, 18, 17, 0},           // dy -1, dx -1, flipped
      {2, 3, 4, 0, 6, 7, 8, 0, 10, 11, 12, 0, 14, 15, 16, 0, 18, 19, 20, 0, 22, 23, 24, 0},     // dy 0, dx 1
      {7, 6, 5, 0, 11, 10, 9, 0, 0, 0, 0, 0, 19, 18, 17, 0, 23, 22, 21, 0, 0, 0, 0, 0},         // dy 1, dx -1, flipped
      {3, 2, 1, 0, 7, 6, 5, 0, 11, 10, 9, 0, 15, 14, 13, 0, 19, 18, 17, 0, 23, 22, 21, 0},      // dy 0, dx -1, flipped
      {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24},  // unchanged
      {0, 0, 0, 0, 2, 3, 4, 0, 6, 7, 8, 0, 0, 0, 0, 0, 14, 15, 16, 0, 18, 19, 20, 0},           // dy -1, dx 1
  };
  for (uint64_t id = 0; id < golden.size(); ++id) {
    EXPECT_EQ(Augment({1, true}, 11, 2, id, 2, 3, 4, OneTo(24)), golden[id]) << "sample " << id;
  }
}

// Padding is 0 and OneTo holds no 0, so the visible part is what is not 0.
TEST(AugmentTest, TheVisibleRectIsWhatIsNotPadding) {
  for (uint64_t id = 0; id < 200; ++id) {
    const std::vector<uint8_t> image = OneTo(24);
    std::vector<uint8_t> out(24);
    const VisibleRect rect = AugmentImage({3, true}, 9, 1, id, 1, 4, 6, image.data(), out.data());
    for (uint32_t y = 0; y < 4; ++y) {
      for (uint32_t x = 0; x < 6; ++x) {
        const bool inside = y >= rect.top && y < rect.bottom && x >= rect.left && x < rect.right;
        ASSERT_EQ(out[y * 6 + x] != 0, inside) << "sample " << id << " at " << y << ", " << x;
      }
    }
  }
  const std::vector<uint8_t> image = OneTo(24);
  std::vector<uint8_t> out(24);
  EXPECT_EQ(AugmentImage({}, 1, 2, 3, 1, 4, 6, image.data(), out.data()), (VisibleRect{0, 0, 4, 6}));
}

// A label map that is the image: its pixels must lie where the image's do, with kIgnoredPixel where the image is
// padded.
TEST(AugmentTest, ALabelMapMovesWithItsImage) {
  for (const AugmentOptions& options : {AugmentOptions{}, AugmentOptions{3, true}, AugmentOptions{2, false},
                                        AugmentOptions{0, true}, AugmentOptions{100, true}}) {
    for (uint64_t id = 0; id < 200; ++id) {
      const std::vector<uint8_t> image = OneTo(24);
      std::vector<uint8_t> expected = Augment(options, 9, 1, id, 1, 4, 6, image), map(24, 0xEE);
      std::replace(expected.begin(), expected.end(), uint8_t{0}, kIgnoredPixel);  // OneTo holds no 0
      AugmentLabelMap(options, 9, 1, id, 4, 6, image.data(), map.data());
      ASSERT_EQ(map, expected) << "sample " << id << " padding " << options.crop_padding;
    }
  }
}

TEST(AugmentTest, HundredImagesMatchGoldenHash) {
  std::vector<uint8_t> image(3 * 32 * 32);
  for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<uint8_t>(i * 31 + 7);
  uint64_t hash = 0xCBF29CE484222325ull;
  for (uint64_t epoch = 0; epoch < 2; ++epoch) {
    for (uint64_t id = 0; id < 50; ++id) {
      for (uint8_t byte : Augment({4, true}, 3, epoch, id, 3, 32, 32, image)) hash = (hash ^ byte) * 0x100000001B3ull;
    }
  }
  EXPECT_EQ(hash, 0x40A6DE282EA007E9ull);
}

TEST(AugmentTest, WithoutOptionsTheImageStaysAsItIs) {
  for (uint64_t id = 0; id < 20; ++id) EXPECT_EQ(Augment({}, 1, 2, id, 1, 4, 6, OneTo(24)), OneTo(24));
}

TEST(AugmentTest, SwitchingTheFlipOffLeavesTheCropAsItWas) {
  for (uint64_t id = 0; id < 50; ++id) {
    const auto plain = Augment({2, false}, 5, 0, id, 1, 4, 6, OneTo(24));
    auto mirrored = plain;
    for (int y = 0; y < 4; ++y) std::reverse(mirrored.begin() + y * 6, mirrored.begin() + (y + 1) * 6);
    EXPECT_THAT(Augment({2, true}, 5, 0, id, 1, 4, 6, OneTo(24)), ::testing::AnyOf(plain, mirrored)) << "sample " << id;
  }
}

TEST(AugmentTest, PaddingLargerThanTheImageMayShowNothing) {
  int empty = 0;
  for (uint64_t id = 0; id < 200; ++id) {
    const auto out = Augment({100, true}, 5, 0, id, 1, 4, 6, OneTo(24));
    empty += out == std::vector<uint8_t>(24, 0);
  }
  EXPECT_GT(empty, 150);  // about 98 % of the crops lie outside
}

}  // namespace
}  // namespace distill
