#include "student_worker/data/image_decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <cstdlib>

#include "tests/student_worker/data/data_root.h"
#include "tests/student_worker/data/image_files.h"

namespace distill {
namespace {

using testing::EncodeJpeg;
using testing::EncodePalettePng;
using testing::EncodePng;
using ::testing::HasSubstr;
using testing::Picture;

// Decodes what has the size of `want`.
Status DecodeInto(const std::string& file, const ImageInfo& want, uint8_t* out, DecodeNotes* notes = nullptr) {
  distill::Picture picture;
  DISTILL_RETURN_IF_ERROR(DecodeImage(file, want.channels, &picture, notes));
  EXPECT_EQ(picture.channels, want.channels);
  if (picture.height != want.height || picture.width != want.width) return absl::OutOfRangeError("another size");
  std::copy(picture.pixels.begin(), picture.pixels.end(), out);
  return OkStatus();
}

TEST(ImageDecoderTest, PngKindsBecomeEightBitPixelsWithoutAlpha) {
  auto decode = [](const std::string& file) {
    auto info = ReadImageInfo(file);
    EXPECT_TRUE(info.ok()) << info.status();
    std::vector<uint8_t> out(info->channels * info->height * info->width);
    EXPECT_TRUE(DecodeInto(file, *info, out.data()).ok());
    return out;
  };
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_RGB_ALPHA, 8, {1, 2, 3, 0, 4, 5, 6, 128})),
            (std::vector<uint8_t>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY_ALPHA, 8, {7, 0, 9, 255})), (std::vector<uint8_t>{7, 9}));
  EXPECT_EQ(decode(EncodePng(1, 2, PNG_COLOR_TYPE_GRAY, 16, {7, 200, 9, 1})), (std::vector<uint8_t>{8, 9}));
  EXPECT_EQ(decode(EncodePalettePng(1, 2, {1, 0}, {10, 20, 30, 40, 50, 60})),
            (std::vector<uint8_t>{40, 10, 50, 20, 60, 30}));
}

TEST(ImageDecoderTest, EveryTruncationIsAnErrorAndNoByteFlipCrashes) {
  for (const std::string& file :
       {EncodeJpeg(8, 8, 3, Picture(1, 3)), EncodePng(8, 8, PNG_COLOR_TYPE_RGB, 8, Picture(1, 3))}) {
    std::vector<uint8_t> out(3 * 8 * 8);
    ASSERT_TRUE(DecodeInto(file, {3, 8, 8}, out.data()).ok());
    // The end marks themselves (JPEG: 2 bytes; PNG: IEND with 12) may be the only thing missing.
    for (size_t size = 0; size + 12 < file.size(); ++size) {
      EXPECT_FALSE(DecodeInto(file.substr(0, size), {3, 8, 8}, out.data()).ok())
          << size << " of " << file.size() << " bytes";
    }
    for (size_t i = 0; i < file.size(); ++i) {
      std::string flipped = file;
      flipped[i] ^= 0x55;
      (void)DecodeInto(flipped, {3, 8, 8}, out.data());
    }
  }
  std::vector<uint8_t> out(3 * 8 * 8);
  EXPECT_FALSE(DecodeInto(EncodeJpeg(8, 8, 3, Picture(1, 3)), {1, 8, 8}, out.data()).ok());  // colour into grey
}

// A picture of 2x3 pixels with one value each, turned by all eight orientations; PNG keeps values.
TEST(ImageDecoderTest, PicturesAreTurnedUpright) {
  const std::vector<uint8_t> stored = {1, 2, 3,  //
                                       4, 5, 6};
  const std::vector<uint8_t> upright[8] = {
      {1, 2, 3, 4, 5, 6}, {3, 2, 1, 6, 5, 4},   // mirrored in x
      {6, 5, 4, 3, 2, 1}, {4, 5, 6, 1, 2, 3},   // turned by 180; mirrored in y
      {1, 4, 2, 5, 3, 6},                       // transposed, now 3x2
      {4, 1, 5, 2, 6, 3},                       // clockwise
      {6, 3, 5, 2, 4, 1}, {3, 6, 2, 5, 1, 4}};  // other diagonal; counter-clockwise
  const std::string png = EncodePng(2, 3, PNG_COLOR_TYPE_GRAY, 8, stored);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool little_endian : {false, true}) {
      const std::string exif = testing::ExifOrientation(orientation, little_endian);
      const std::string file = testing::WithExif(png, exif);
      const auto info = ReadImageInfo(file);
      ASSERT_TRUE(info.ok()) << info.status();
      EXPECT_EQ(info->orientation, orientation);
      EXPECT_EQ(info->height, orientation < 5 ? 2 : 3) << orientation;
      EXPECT_EQ(info->width, orientation < 5 ? 3 : 2) << orientation;
      std::vector<uint8_t> out(6);
      ASSERT_TRUE(DecodeInto(file, *info, out.data()).ok()) << orientation;
      EXPECT_EQ(out, upright[orientation - 1]) << orientation;
      // Behind the pixels it comes too late to announce other sides.
      const Status late = DecodeInto(testing::WithExif(png, exif, true), {1, 2, 3}, out.data());
      EXPECT_EQ(late.ok(), orientation < 5) << late;
      if (late.ok()) {
        EXPECT_EQ(out, upright[orientation - 1]) << orientation;
      }
    }
  }
  for (const int none : {0, 9, 77}) {
    EXPECT_EQ(ReadImageInfo(testing::WithExif(png, testing::ExifOrientation(none, true)))->orientation, 1) << none;
  }
  // Damaged advice is none.
  const std::string exif = testing::ExifOrientation(6, true);
  for (size_t size = 0; size + 6 < exif.size(); ++size) {
    EXPECT_TRUE(ReadImageInfo(testing::WithExif(EncodeJpeg(8, 8, 3, Picture(1, 3)), exif.substr(0, size))).ok())
        << size;
  }
}

TEST(ImageDecoderTest, JpegAndColourAreTurnedTheSameWay) {
  std::vector<uint8_t> pixels(16 * 8 * 3);  // upper half bright, left half red: every corner has its own colour
  for (int y = 0; y < 16; ++y) {
    for (int x = 0; x < 8; ++x) {
      pixels[(y * 8 + x) * 3] = x < 4 ? 200 : 40;
      pixels[(y * 8 + x) * 3 + 1] = y < 8 ? 200 : 40;
      pixels[(y * 8 + x) * 3 + 2] = 120;
    }
  }
  const std::string png = EncodePng(16, 8, PNG_COLOR_TYPE_RGB, 8, pixels), jpeg = EncodeJpeg(16, 8, 3, pixels, 100);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    const std::string exif = testing::ExifOrientation(orientation, orientation % 2 == 0);
    const ImageInfo want{3, orientation < 5 ? 16u : 8u, orientation < 5 ? 8u : 16u};
    std::vector<uint8_t> from_png(3 * 16 * 8), from_jpeg(3 * 16 * 8);
    ASSERT_TRUE(DecodeInto(testing::WithExif(png, exif), want, from_png.data()).ok()) << orientation;
    ASSERT_TRUE(DecodeInto(testing::WithExif(jpeg, exif), want, from_jpeg.data()).ok()) << orientation;
    int worst = 0;
    for (size_t i = 0; i < from_png.size(); ++i) worst = std::max(worst, std::abs(from_png[i] - from_jpeg[i]));
    EXPECT_LE(worst, 8) << orientation;
  }
}

// What is left of white paper, 255: worked by hand.
TEST(ImageDecoderTest, FourInksBecomeColour) {
  std::vector<uint8_t> stored;
  for (int i = 0; i < 64; ++i) stored.insert(stored.end(), {250, 128, 0, 200});
  for (const bool ycck : {false, true}) {
    const std::string file = testing::EncodeInkJpeg(8, 8, stored, ycck);
    const auto info = ReadImageInfo(file);
    ASSERT_TRUE(info.ok()) << info.status();
    EXPECT_EQ(info->channels, 3);
    std::vector<uint8_t> out(3 * 64);
    ASSERT_TRUE(DecodeInto(file, *info, out.data()).ok());
    // Adobe stores what is left: 250 * 200 / 255 and so on.
    EXPECT_NEAR(out[0], 196, 2) << ycck;
    EXPECT_NEAR(out[64], 100, 2) << ycck;
    EXPECT_NEAR(out[128], 0, 2) << ycck;
    EXPECT_EQ(DecodeInto(file, {1, 8, 8}, out.data()).code(), StatusCode::kDataLoss);
    for (size_t size = 0; size + 12 < file.size(); size += 7) {
      EXPECT_FALSE(DecodeInto(file.substr(0, size), *info, out.data()).ok()) << size;
    }
  }
  // Without Adobe's marker (14 bytes of content, with their length 2 + 14) they are inks: 5 * (255 - 200) / 255.
  std::string plain = testing::EncodeInkJpeg(8, 8, stored, false);
  const size_t marker = plain.find("\xFF\xEE");
  ASSERT_NE(marker, std::string::npos);
  plain.erase(marker, 16);
  std::vector<uint8_t> out(3 * 64);
  ASSERT_TRUE(DecodeInto(plain, {3, 8, 8}, out.data()).ok());
  EXPECT_NEAR(out[0], 1, 1);
  EXPECT_NEAR(out[64], 27, 2);
  EXPECT_NEAR(out[128], 55, 2);
}

TEST(ImageDecoderTest, SixteenBitsBecomeTheNearestOfEight) {
  std::vector<uint8_t> stored;
  for (int v = 0; v < 65536; ++v) {
    stored.push_back(static_cast<uint8_t>(v >> 8));
    stored.push_back(static_cast<uint8_t>(v));
  }
  const std::string file = EncodePng(256, 256, PNG_COLOR_TYPE_GRAY, 16, stored);
  EXPECT_EQ(ReadImageInfo(file)->bits, 16);
  std::vector<uint8_t> out(65536);
  ASSERT_TRUE(DecodeInto(file, {1, 256, 256}, out.data()).ok());
  for (int v = 0; v < 65536; ++v) ASSERT_EQ(out[v], (v + 128) / 257) << v;
}

TEST(ImageDecoderTest, JpegDamageThatLeavesThePixelsWholeIsLetThrough) {
  const std::string good = EncodeJpeg(32, 32, 3, std::vector<uint8_t>(32 * 32 * 3, 77));
  std::vector<uint8_t> whole(3 * 32 * 32), out(3 * 32 * 32);
  ASSERT_TRUE(DecodeInto(good, {3, 32, 32}, whole.data()).ok());
  const auto decode = [&](const std::string& file, DecodeNotes* notes) {
    const Status status = DecodeInto(file, {3, 32, 32}, out.data(), notes);
    if (status.ok()) {
      EXPECT_EQ(out, whole);
    }
    return status.ok();
  };
  DecodeNotes notes;
  std::string file = good;
  file.insert(file.find("\xFF\xDB"), "\x01\x11\x22");  // in the header
  EXPECT_TRUE(decode(file, &notes));
  EXPECT_FALSE(notes.stray_bytes) << "its pixels had not begun";
  file = good;
  file.insert(file.size() - 2, std::string(100, '\x11'));  // before the end mark
  EXPECT_TRUE(decode(file, &notes));
  EXPECT_TRUE(notes.stray_bytes);
  EXPECT_TRUE(decode(good + "garbage", &notes));
  EXPECT_TRUE(decode(good.substr(0, good.size() - 2), &notes));
  EXPECT_TRUE(notes.no_end_mark);
  EXPECT_TRUE(decode(good.substr(0, good.size() - 1), &notes));
  EXPECT_FALSE(decode(good.substr(0, good.size() - 10) + "\xFF\xD9", &notes)) << "pixels are missing";
  // Several scans: the last ones may be missing without a trace.
  const std::string progressive = testing::EncodeProgressiveJpeg(32, 32, 3, testing::Noise(32 * 32 * 3));
  ASSERT_TRUE(DecodeInto(progressive, {3, 32, 32}, out.data()).ok());
  for (size_t size = 0; size < progressive.size(); ++size) {
    EXPECT_FALSE(DecodeInto(progressive.substr(0, size), {3, 32, 32}, out.data()).ok()) << size;
  }
  EXPECT_TRUE(DecodeInto(progressive + "garbage", {3, 32, 32}, out.data()).ok());
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

TEST(ImageDecoderTest, WebpIsReadByItsContent) {
  const std::vector<uint8_t> pixels = Picture(1, 3);
  std::vector<uint8_t> planes(pixels.size());
  for (size_t i = 0; i < planes.size(); ++i) planes[i] = pixels[i % 64 * 3 + i / 64];
  const std::string lossless = testing::EncodeWebp(8, 8, pixels, true);
  const std::string lossy = testing::EncodeWebp(8, 8, pixels, false);
  std::vector<uint8_t> out(planes.size());
  const ImageInfo want{3, 8, 8};
  EXPECT_EQ(*ReadImageInfo(lossless), want);
  EXPECT_EQ(*ReadImageInfo(lossy), want);
  ASSERT_TRUE(DecodeInto(lossless, want, out.data()).ok());
  EXPECT_EQ(out, planes);
  ASSERT_TRUE(DecodeInto(lossy, want, out.data()).ok());
  for (size_t i = 0; i < planes.size(); ++i) EXPECT_NEAR(int{out[i]}, int{planes[i]}, 12) << "value " << i;
  EXPECT_EQ(DecodeInto(lossy, {1, 8, 8}, out.data()).message(), "3 channels, expected 1");
  // Parts are taken from the whole.
  distill::Picture part;
  DecodedPart at;
  const PartChooser chooser = [](uint32_t, uint32_t) { return WantedPart{{2, 3, 4, 4}, 4, 4}; };
  ASSERT_TRUE(DecodePart(lossless, 3, chooser, &part, &at).ok());
  EXPECT_EQ(part.pixels, planes);
  EXPECT_EQ(at.box, (PictureBox{2, 3, 4, 4}));
}

TEST(ImageDecoderTest, WebpIsTurnedAsTheExifAtItsEndSays) {
  std::vector<uint8_t> stored, expected;  // 2x3, values from 1; clockwise it is 3x2
  for (int i = 1; i <= 6; ++i) stored.insert(stored.end(), 3, static_cast<uint8_t>(i));
  for (int c = 0; c < 3; ++c) {
    for (const int i : {4, 1, 5, 2, 6, 3}) expected.push_back(static_cast<uint8_t>(i));
  }
  const std::string file =
      testing::WithExif(testing::EncodeWebp(2, 3, stored, true), testing::ExifOrientation(6, false));
  const auto info = ReadImageInfo(file);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->orientation, 6);
  std::vector<uint8_t> out(expected.size());
  ASSERT_TRUE(DecodeInto(file, {3, 3, 2}, out.data()).ok());
  EXPECT_EQ(out, expected);
  // What is cut off before the EXIF does not say which way is up.
  EXPECT_EQ(ReadImageInfo(file.substr(0, file.size() - 2)).status().message(), "file ends in its EXIF");
  EXPECT_EQ(ReadImageInfo(file.substr(0, 60)).status().code(), StatusCode::kDataLoss);
  const std::string plain = testing::EncodeWebp(2, 3, stored, true);
  EXPECT_TRUE(ReadImageInfo(plain.substr(0, 30)).ok()) << "a header is enough where no EXIF follows";
}

TEST(ImageDecoderTest, DamagedWebpIsRefused) {
  std::vector<uint8_t> out(3 * 8 * 8);
  for (const bool lossless : {false, true}) {
    const std::string file = testing::EncodeWebp(8, 8, Picture(1, 3), lossless);
    for (size_t size = 12; size < file.size(); ++size) {
      EXPECT_EQ(DecodeInto(file.substr(0, size), {3, 8, 8}, out.data()).code(), StatusCode::kDataLoss)
          << size << " of " << file.size() << " bytes";
    }
    for (size_t i = 0; i < file.size(); ++i) {
      std::string flipped = file;
      flipped[i] ^= 0x55;
      (void)DecodeInto(flipped, {3, 8, 8}, out.data());
    }
  }
  // A canvas of 100,000 x 100,000, claimed by 42 bytes.
  std::string huge = testing::WithExif(testing::EncodeWebp(8, 8, Picture(1, 3), false), "II");
  const std::string side("\x9F\x86\x01", 3);  // 99,999
  huge.replace(24, 6, side + side);
  EXPECT_EQ(ReadImageInfo(huge).status().code(), StatusCode::kDataLoss);
  EXPECT_EQ(DecodeInto(huge, {3, 8, 8}, out.data()).code(), StatusCode::kDataLoss);
  std::string animated = testing::WithExif(testing::EncodeWebp(8, 8, Picture(1, 3), false), "II");
  animated[20] = 0x02;
  EXPECT_EQ(ReadImageInfo(animated).status().message(), "an animation; store one picture of it");
  uint8_t id = 0;
  const Status ids = DecodeClassIds(testing::EncodeWebp(1, 1, {1, 1, 1}, true), 1, 1, &id);
  EXPECT_EQ(ids.code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(ids.message(), "a WebP file; label maps must be PNG files");
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
  EXPECT_THAT(refusal(EncodePng(2, 1, PNG_COLOR_TYPE_GRAY, 8, {1, 2})),
              HasSubstr("[2, 1] pixels (height, width), but its image has [1, 2]"));
  EXPECT_THAT(refusal("class ids", StatusCode::kDataLoss), HasSubstr("neither JPEG, PNG nor WebP"));
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
