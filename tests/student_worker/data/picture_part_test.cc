// Pictures of which only a part is decoded, or at a reduced size.
#include "student_worker/data/picture_part.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/str_cat.h"
#include "student_worker/data/counter_rng.h"
#include "student_worker/data/image_decoder.h"
#include "student_worker/data/orientation.h"
#include "student_worker/data/resample.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using testing::EncodeJpeg;
using testing::EncodePng;
using testing::EncodeSampledJpeg;

// Gradients, edges and a little noise, [H, W, 3].
std::vector<uint8_t> Scene(int height, int width) {
  std::vector<uint8_t> pixels;
  uint32_t state = 7;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) {
        state = state * 1664525u + 1013904223u;
        const int value = x * (c + 1) * 200 / (3 * width) + y * 90 / height + ((x / 19 + y / 23) % 2) * (30 + 20 * c);
        pixels.push_back(static_cast<uint8_t>(std::min(255, value + static_cast<int>(state >> 29))));
      }
    }
  }
  return pixels;
}

PartChooser Always(const CropRect& crop, uint32_t height, uint32_t width) {
  return [=](uint32_t, uint32_t) { return WantedPart{crop, height, width}; };
}

Picture Cut(const Picture& whole, const CropRect& crop) {
  Picture out;
  CropOrPad(whole, crop.top, crop.left, crop.height, crop.width, 0, &out);
  return out;
}

CropRect RandomCrop(CounterRng* rng, uint32_t height, uint32_t width) {
  CropRect crop;
  crop.height = 1 + static_cast<uint32_t>(rng->Below(height));
  crop.width = 1 + static_cast<uint32_t>(rng->Below(width));
  crop.top = static_cast<uint32_t>(rng->Below(height - crop.height + 1));
  crop.left = static_cast<uint32_t>(rng->Below(width - crop.width + 1));
  return crop;
}

TEST(PicturePartTest, ReductionLeavesAtLeastWhatWillBeMade) {
  const auto reduction = [](uint32_t height, uint32_t width) { return ReductionOf({{0, 0, height, width}, 10, 20}); };
  EXPECT_EQ(reduction(10, 20), 1);
  EXPECT_EQ(reduction(19, 100), 1);
  EXPECT_EQ(reduction(20, 40), 2);
  EXPECT_EQ(reduction(1000, 79), 2);
  EXPECT_EQ(reduction(40, 80), 4);
  EXPECT_EQ(reduction(80, 160), 8);
  EXPECT_EQ(reduction(16000, 16000), 8);
  EXPECT_EQ(reduction(5, 5), 1);
}

TEST(PicturePartTest, BoxesTurnAsPixelsDo) {
  constexpr uint32_t kHeight = 5, kWidth = 7;  // as stored
  std::vector<uint8_t> stored(kHeight * kWidth), upright(kHeight * kWidth);
  for (size_t i = 0; i < stored.size(); ++i) stored[i] = static_cast<uint8_t>(i);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    TurnUpright(orientation, 1, kHeight, kWidth, stored.data(), kWidth, upright.data());
    const uint32_t width = ExchangesSides(orientation) ? kHeight : kWidth;
    const uint32_t height = ExchangesSides(orientation) ? kWidth : kHeight;
    for (uint32_t y = 0; y < height; ++y) {
      for (uint32_t x = 0; x < width; ++x) {
        const PictureBox box{static_cast<double>(y), static_cast<double>(x), 1, 1};
        const PictureBox there = StoredBox(orientation, box, kHeight, kWidth);
        EXPECT_EQ(stored[static_cast<size_t>(there.top * kWidth + there.left)], upright[y * width + x]) << orientation;
        EXPECT_EQ(UprightBox(orientation, there, kHeight, kWidth), box) << orientation;
      }
    }
    const PictureBox part{0.5, 1.25, 2, 3.5};
    EXPECT_EQ(UprightBox(orientation, StoredBox(orientation, part, kHeight, kWidth), kHeight, kWidth), part);
  }
}

// Whatever is decoded of a JPEG has the pixels that it has in the whole picture: at every place, with colour stored in
// every way, turned in every way.
TEST(PicturePartTest, PartsEqualThoseOfTheWholePicture) {
  constexpr int kHeight = 70, kWidth = 90;
  const std::vector<uint8_t> scene = Scene(kHeight, kWidth);
  std::vector<std::string> files = {
      EncodePng(kHeight, kWidth, PNG_COLOR_TYPE_RGB, 8, scene),
      EncodeJpeg(kHeight, kWidth, 1, testing::Noise(kHeight * kWidth)),
      testing::EncodeInkJpeg(kHeight, kWidth, testing::Noise(kHeight * kWidth * 4), true)};
  for (const auto& [across, down] : {std::pair{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}}) {
    for (const bool progressive : {false, true}) {
      files.push_back(EncodeSampledJpeg(kHeight, kWidth, scene, across, down, progressive));
    }
  }
  CounterRng rng(1, RngPurpose::kSubset);
  for (size_t i = 0; i < files.size(); ++i) {
    for (int orientation = 1; orientation <= 8; ++orientation) {
      const std::string file = testing::WithExif(files[i], testing::ExifOrientation(orientation, true));
      for (const uint32_t channels : {1u, 3u}) {
        Picture whole;
        if (!DecodeImage(file, channels, &whole).ok()) continue;  // colour into grey
        for (int n = 0; n < 40; ++n) {
          const CropRect crop = RandomCrop(&rng, whole.height, whole.width);
          Picture out;
          DecodedPart part;
          const Status status = DecodePart(file, channels, Always(crop, crop.height, crop.width), &out, &part);
          ASSERT_TRUE(status.ok()) << status;
          EXPECT_EQ(part.height, whole.height);
          EXPECT_EQ(part.width, whole.width);
          Picture resized;
          ResizeBox(out, part.box, crop.height, crop.width, &resized);
          ASSERT_EQ(resized.pixels, Cut(whole, crop).pixels)
              << "file " << i << ", orientation " << orientation << ": " << crop.top << " " << crop.left << " "
              << crop.height << " " << crop.width;
        }
      }
    }
  }
}

// A reduced part is the mean over squares where the whole one is resampled at once: the results differ by little.
TEST(PicturePartTest, ReducedPartsAreNearThoseOfTheWholePicture) {
  constexpr int kHeight = 331, kWidth = 402;
  const std::vector<uint8_t> scene = Scene(kHeight, kWidth);
  CounterRng rng(2, RngPurpose::kSubset);
  double worst = 0;
  for (const auto& [across, down] : {std::pair{1, 1}, {2, 2}}) {
    for (const int orientation : {1, 2, 3, 4, 5, 6, 7, 8}) {
      const std::string file = testing::WithExif(EncodeSampledJpeg(kHeight, kWidth, scene, across, down),
                                                 testing::ExifOrientation(orientation, false));
      Picture whole;
      ASSERT_TRUE(DecodeImage(file, 3, &whole).ok());
      for (int n = 0; n < 30; ++n) {
        const CropRect crop = RandomCrop(&rng, whole.height, whole.width);
        const WantedPart wanted{crop, 1 + static_cast<uint32_t>(rng.Below(40)),
                                1 + static_cast<uint32_t>(rng.Below(40))};
        Picture out, reduced, direct;
        DecodedPart part;
        ASSERT_TRUE(DecodePart(file, 3, Always(crop, wanted.height, wanted.width), &out, &part).ok());
        ResizeBox(out, part.box, wanted.height, wanted.width, &reduced);
        ResizeCrop(whole, crop, wanted.height, wanted.width, &direct);
        const uint32_t factor = ReductionOf(wanted);
        EXPECT_LE(out.height, crop.height / factor + 2);
        EXPECT_LE(out.width, crop.width / factor + 2);
        double sum = 0;
        for (size_t i = 0; i < direct.pixels.size(); ++i)
          sum += std::abs(int{reduced.pixels[i]} - int{direct.pixels[i]});
        sum /= static_cast<double>(direct.pixels.size());
        worst = std::max(worst, sum);
        EXPECT_LE(sum, factor == 1 ? 0 : 4)
            << "reduced " << factor << " times, orientation " << orientation << ": " << crop.top << " " << crop.left
            << " " << crop.height << " " << crop.width << " to " << wanted.height << " " << wanted.width;
      }
    }
  }
  std::printf("largest mean difference of a part: %.2f grey levels\n", worst);
}

TEST(PicturePartTest, DamageIsFoundWhereverItIs) {
  constexpr int kSide = 64;
  const std::string file = EncodeSampledJpeg(kSide, kSide, Scene(kSide, kSide), 2, 2);
  const PartChooser top = Always({0, 8, 4, 16}, 4, 16), reduced = Always({0, 0, 32, 32}, 4, 4);
  for (const PartChooser& choose : {top, reduced}) {
    Picture out;
    DecodedPart part;
    ASSERT_TRUE(DecodePart(file, 3, choose, &out, &part).ok());
    for (size_t size = 0; size + 12 < file.size(); ++size) {
      const std::string cut = file.substr(0, size);
      EXPECT_EQ(DecodePart(cut, 3, choose, &out, &part).code(), StatusCode::kDataLoss) << size;
      EXPECT_FALSE(DecodePart(cut + "\xFF\xD9", 3, choose, &out, &part).ok()) << size << ", and an end mark";
    }
    for (size_t i = 0; i < file.size(); ++i) {  // none crashes
      std::string flipped = file;
      flipped[i] ^= 0x55;
      (void)DecodePart(
          flipped, 3,
          [](uint32_t height, uint32_t width) {
            return WantedPart{{height / 2, width / 2, height - height / 2, width - width / 2}, 1, 1};
          },
          &out, &part);
    }
  }
  // Colour into grey is found out before a part is chosen.
  Picture out;
  DecodedPart part;
  const PartChooser never = [](uint32_t, uint32_t) -> WantedPart {
    ADD_FAILURE();
    return {};
  };
  EXPECT_EQ(DecodePart(file, 1, never, &out, &part).code(), StatusCode::kDataLoss);
}

// Of half pixels the weights are worked by hand: the line 0 80 160 240, of which [0.5, 2.5) becomes one value. Pixels
// 0, 1, 2 lie -1, 0, 1 from its middle, and the triangle is 2 wide to each side: weights 1/2, 1, 1/2 of 2.
TEST(PicturePartTest, BoxesMayBeginInsideAPixel) {
  const Picture line{1, 1, 4, {0, 80, 160, 240}, {}};
  Picture out;
  ResizeBox(line, {0, 0.5, 1, 2}, 1, 1, &out);
  EXPECT_EQ(out.pixels, std::vector<uint8_t>{80});
  // The same length, half a pixel further: no copy. Weights 1/2 and 1/2 of the neighbours.
  ResizeBox(line, {0, 0.5, 1, 2}, 1, 2, &out);
  EXPECT_EQ(out.pixels, (std::vector<uint8_t>{40, 120}));
}

}  // namespace
}  // namespace distill
