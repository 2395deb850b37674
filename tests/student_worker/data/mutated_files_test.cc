// Thousands of damaged archives and headers of pictures: each is read or refused.
#include <gtest/gtest.h>
#include <png.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "student_worker/data/image_decoder.h"
#include "student_worker/data/tar_reader.h"
#include "tests/harness/mutation.h"
#include "tests/student_worker/data/image_files.h"

namespace distill::testing {
namespace {

std::vector<std::string> Pictures() {
  const std::vector<uint8_t> pixels = Noise(24 * 20 * 3);
  const std::string jpeg = EncodeJpeg(24, 20, 3, pixels);
  const std::string png = EncodePng(24, 20, PNG_COLOR_TYPE_RGB, 8, pixels);
  return {jpeg,
          WithExif(jpeg, ExifOrientation(6, true)),
          EncodeProgressiveJpeg(24, 20, 3, pixels),
          png,
          WithExif(png, ExifOrientation(8, false)),
          EncodePng(24, 20, PNG_COLOR_TYPE_GRAY, 16, Noise(24 * 20 * 2)),
          EncodePalettePng(8, 8, std::vector<uint8_t>(64, 1), {0, 0, 0, 255, 255, 255}),
          EncodeWebp(24, 20, pixels, false),
          EncodeWebp(24, 20, pixels, true),
          WithExif(EncodeWebp(24, 20, pixels, false), ExifOrientation(5, true))};
}

// Pixels that are damaged are decoded or refused; nothing crashes or reads beyond the file.
TEST(MutatedFilesTest, APictureIsDecodedOrRefused) {
  Mutator mutator(3);
  const std::vector<std::string> pictures = Pictures();
  int decoded = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::string file = mutator.Mutate(pictures[mutator.Below(pictures.size())]);
    const StatusOr<ImageInfo> info = ReadImageInfo(file);
    if (!info.ok() || uint64_t{info->height} * info->width > 1 << 20) continue;
    distill::Picture picture;
    const Status status = DecodeImage(file, 3, &picture);
    if (!status.ok()) {
      ASSERT_TRUE(status.code() == StatusCode::kDataLoss || status.code() == StatusCode::kFailedPrecondition)
          << "round " << round << ": " << status;
      continue;
    }
    ++decoded;
    ASSERT_EQ(picture.pixels.size(), 3 * picture.plane()) << "round " << round;
  }
  EXPECT_GT(decoded, 0) << "no damage was harmless: the test tries too little";
}

TEST(MutatedFilesTest, APicturesHeaderIsReadOrRefused) {
  Mutator mutator(1);
  const std::vector<std::string> pictures = Pictures();
  int read = 0;
  for (int round = 0; round < 5000; ++round) {
    const StatusOr<ImageInfo> info = ReadImageInfo(mutator.Mutate(pictures[mutator.Below(pictures.size())]));
    if (!info.ok()) {
      ASSERT_EQ(info.status().code(), StatusCode::kDataLoss) << "round " << round << ": " << info.status();
      continue;
    }
    ++read;
    ASSERT_TRUE(info->channels == 1 || info->channels == 3) << "round " << round;
    ASSERT_TRUE(info->height >= 1 && info->height <= 16384 && info->width >= 1 && info->width <= 16384)
        << "round " << round << ": " << info->height << "x" << info->width;
    ASSERT_TRUE(info->orientation >= 1 && info->orientation <= 8) << "round " << round << ": " << info->orientation;
  }
  EXPECT_GT(read, 0) << "no damage was harmless: the test tries too little";
}

TEST(MutatedFilesTest, AnArchiveIsReadToItsEndOrRefused) {
  const std::string content = "some bytes of a picture";
  const std::string plain = TarMember("train/a/0.png", content) + TarMember("train/a", "", '5') +
                            TarMember("train/b/1.png", "", '1', "train/a/0.png") +
                            TarMember("train/b/2.png", "", '2', "../a/0.png") + TarMember("long", "n/a/me", 'L') +
                            TarMember("x", "28 path=train/c/renamed.png\n", 'x') + TarMember("y", content) + TarEnd();
  const std::vector<std::string> archives = {plain, Gzip(plain)};
  const std::string path = ::testing::TempDir() + "mutated_files_test.tar";
  Mutator mutator(2);
  int whole = 0;
  for (int round = 0; round < 1000; ++round) {
    std::ofstream(path, std::ios::binary) << mutator.Mutate(archives[mutator.Below(archives.size())]);
    const StatusOr<std::unique_ptr<GzipFile>> file = GzipFile::Open(path);
    if (!file.ok()) continue;
    TarReader reader(file->get());
    TarEntry entry;
    Status end = OkStatus();
    for (int entries = 0;; ++entries) {
      ASSERT_LT(entries, 1000) << "round " << round << ": more entries than the file has blocks";
      const StatusOr<bool> more = reader.Next(&entry);
      if (!more.ok() || !*more) {
        end = more.status();
        whole += more.ok() ? 1 : 0;
        break;
      }
      const StatusOr<std::string> bytes = reader.Read(4096);
      if (!bytes.ok()) {
        end = bytes.status();
        break;
      }
      EXPECT_LE(bytes->size(), entry.size) << "round " << round;
    }
    ASSERT_TRUE(end.ok() || end.code() == StatusCode::kDataLoss) << "round " << round << ": " << end;
  }
  EXPECT_GT(whole, 0) << "no damage was harmless: the test tries too little";
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace distill::testing
