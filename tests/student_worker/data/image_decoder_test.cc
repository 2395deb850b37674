#include "student_worker/data/image_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using testing::EncodeJpeg;
using testing::EncodePalettePng;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::Picture;

TEST(ImageDecoderTest, PngKindsBecomeEightBitPixelsWithoutAlpha) {
  auto decode = [](const std::string& file) {
    auto info = ReadImageInfo(file);
    EXPECT_TRUE(info.ok()) << info.status();
    std::vector<uint8_t> out(info->channels * info->height * info->width);
    EXPECT_TRUE(DecodeImage(file, *info, out.data()).ok());
    return out;
  };
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_RGB_ALPHA, 8, {1, 2, 3, 0, 4, 5, 6, 128})),
            (std::vector<uint8_t>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY_ALPHA, 8, {7, 0, 9, 255})), (std::vector<uint8_t>{7, 9}));
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY, 16, {7, 200, 9, 1})), (std::vector<uint8_t>{7, 9}));
  EXPECT_EQ(decode(EncodePalettePng(1, 2, {1, 0}, {10, 20, 30, 40, 50, 60})),
            (std::vector<uint8_t>{40, 10, 50, 20, 60, 30}));
}

TEST(ImageDecoderTest, EveryTruncationIsAnErrorAndNoByteFlipCrashes) {
  for (const std::string& file :
       {EncodeJpeg(8, 8, 3, Picture(1, 3)), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(1, 3))}) {
    std::vector<uint8_t> out(3 * 8 * 8);
    ASSERT_TRUE(DecodeImage(file, {3, 8, 8}, out.data()).ok());
    // The end marks themselves (JPEG: 2 bytes; PNG: IEND with 12) may be the only thing missing.
    for (size_t size = 0; size + 12 < file.size(); ++size) {
      EXPECT_FALSE(DecodeImage(file.substr(0, size), {3, 8, 8}, out.data()).ok())
          << size << " of " << file.size() << " bytes";
    }
    for (size_t i = 0; i < file.size(); ++i) {
      std::string flipped = file;
      flipped[i] ^= 0x55;
      (void)DecodeImage(flipped, {3, 8, 8}, out.data());
    }
  }
  std::vector<uint8_t> out(3 * 8 * 8);
  EXPECT_FALSE(DecodeImage(EncodeJpeg(8, 8, 3, Picture(1, 3)), {1, 8, 8}, out.data()).ok());  // colour into grey
  EXPECT_FALSE(DecodeImage(EncodeJpeg(8, 8, 3, Picture(1, 3)), {3, 8, 7}, out.data()).ok());
}

std::vector<uint8_t> ClassIds(const std::string& file, uint32_t height, uint32_t width) {
  std::vector<uint8_t> ids(height * width, 0xEE);
  const Status status = DecodeClassIds(file, height, width, ids.data());
  EXPECT_TRUE(status.ok()) << status;
  return ids;
}

// Small depths pack several values into a byte, the first in its highest bits; each row begins with a new byte.
TEST(ImageDecoderTest, ClassIdsAreTheStoredValuesOrPaletteIndices) {
  EXPECT_EQ(ClassIds(EncodePng(2, 3, PNG_COLOR_TYPE_GRAY, 8, {0, 1, 2, 11, 254, 255}), 2, 3),
            (std::vector<uint8_t>{0, 1, 2, 11, 254, 255}));
  EXPECT_EQ(ClassIds(EncodePng(2, 3, PNG_COLOR_TYPE_GRAY, 4, {0x12, 0xF0, 0x90, 0x30}), 2, 3),
            (std::vector<uint8_t>{1, 2, 15, 9, 0, 3}));
  EXPECT_EQ(ClassIds(EncodePng(2, 3, PNG_COLOR_TYPE_GRAY, 2, {0b11100100, 0b00011000}), 2, 3),
            (std::vector<uint8_t>{3, 2, 1, 0, 1, 2}));
  EXPECT_EQ(ClassIds(EncodePng(2, 3, PNG_COLOR_TYPE_GRAY, 1, {0b10100000, 0b01000000}), 2, 3),
            (std::vector<uint8_t>{1, 0, 1, 0, 1, 0}));
  const std::vector<uint8_t> palette = {9, 9, 9, 200, 0, 0, 0, 200, 0, 1, 2, 3};
  EXPECT_EQ(ClassIds(EncodePalettePng(2, 2, {3, 0, 1, 2}, palette), 2, 2), (std::vector<uint8_t>{3, 0, 1, 2}));
  EXPECT_EQ(ClassIds(EncodePalettePng(2, 2, {0x30, 0x12}, palette, 4), 2, 2), (std::vector<uint8_t>{3, 0, 1, 2}));
  EXPECT_EQ(ClassIds(EncodePalettePng(2, 2, {0b11000000, 0b01100000}, palette, 2), 2, 2),
            (std::vector<uint8_t>{3, 0, 1, 2}));
  EXPECT_EQ(ClassIds(EncodePalettePng(2, 2, {0b10000000, 0b01000000}, {1, 1, 1, 2, 2, 2}, 1), 2, 2),
            (std::vector<uint8_t>{1, 0, 0, 1}));
}

TEST(ImageDecoderTest, FilesThatHoldNoClassIdsAreRefused) {
  const auto refusal = [](const std::string& file, StatusCode code = StatusCode::kFailedPrecondition) {
    std::vector<uint8_t> ids(2);
    const Status status = DecodeClassIds(file, 1, 2, ids.data());
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_EQ(ids, std::vector<uint8_t>(2)) << "unchanged";
    return std::string(status.message());
  };
  EXPECT_THAT(refusal(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY, 16, {0, 1, 0, 2})), HasSubstr("16-bit grey PNG"));
  EXPECT_THAT(refusal(EncodePng(1, 2, PNG_COLOR_TYPE_RGB, 8, {1, 1, 1, 2, 2, 2})), HasSubstr("8-bit RGB PNG"));
  EXPECT_THAT(refusal(EncodePng(1, 2, PNG_COLOR_TYPE_RGB_ALPHA, 8, std::vector<uint8_t>(8))),
              HasSubstr("8-bit RGB and alpha PNG"));
  EXPECT_THAT(refusal(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY_ALPHA, 8, {1, 255, 2, 255})),
              HasSubstr("8-bit grey and alpha PNG"));
  EXPECT_THAT(refusal(EncodeJpeg(1, 2, 1, {1, 2})), HasSubstr("a JPEG file"));
  EXPECT_THAT(refusal(EncodePng(2, 1, PNG_COLOR_TYPE_GRAY, 8, {1, 2})), HasSubstr("1x2 pixels, but its image has 2x1"));
  EXPECT_THAT(refusal("class ids", StatusCode::kDataLoss), HasSubstr("neither JPEG nor PNG"));
}

TEST(ImageDecoderTest, DamagedClassIdsAreNeverGuessed) {
  const std::string file = EncodePng(8, 8, PNG_COLOR_TYPE_GRAY, 8, Picture(1, 1));
  std::vector<uint8_t> out(64);
  ASSERT_TRUE(DecodeClassIds(file, 8, 8, out.data()).ok());
  for (size_t size = 0; size + 12 < file.size(); ++size) {
    EXPECT_EQ(DecodeClassIds(file.substr(0, size), 8, 8, out.data()).code(), StatusCode::kDataLoss) << size << " bytes";
  }
  for (size_t i = 0; i < file.size(); ++i) {
    std::string flipped = file;
    flipped[i] ^= 0x55;
    const Status status = DecodeClassIds(flipped, 8, 8, out.data());
    if (status.ok()) {
      EXPECT_EQ(out, Picture(1, 1)) << "byte " << i << " is covered by no checksum";
    }
  }
}

}  // namespace
}  // namespace distill
