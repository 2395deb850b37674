// Makes the small files that the data tests read: JPEG, PNG, IDX, gzip, tar.
#ifndef DISTILL_TESTS_STUDENT_WORKER_DATA_IMAGE_FILES_H_
#define DISTILL_TESTS_STUDENT_WORKER_DATA_IMAGE_FILES_H_

#include <cstdint>
#include <string>
#include <vector>

namespace distill::testing {

// Pixels are [H, W, C] with C = 1 or 3.
std::string EncodeJpeg(int height, int width, int channels, const std::vector<uint8_t>& pixels, int quality = 95);
// Of cyan, magenta, yellow and black, [H, W, 4], stored as they are or as YCCK, with Adobe's marker.
std::string EncodeInkJpeg(int height, int width, const std::vector<uint8_t>& pixels, bool ycck);
std::string EncodeProgressiveJpeg(int height, int width, int channels, const std::vector<uint8_t>& pixels);
// In colour that is stored once for `across` x `down` pixels: 2 x 2 is 4:2:0, as cameras write.
std::string EncodeSampledJpeg(int height, int width, const std::vector<uint8_t>& pixels, int across, int down,
                              bool progressive = false);
std::vector<uint8_t> Noise(size_t size);
// WebP of RGB pixels [H, W, 3].
std::string EncodeWebp(int height, int width, const std::vector<uint8_t>& pixels, bool lossless);
// color_type is one of libpng's; `depth` 1 to 16; pixels as the file stores them: small depths packed.
std::string EncodePng(int height, int width, int color_type, int depth, const std::vector<uint8_t>& pixels);
// A palette image: indices, as the file stores them, and RGB entries.
std::string EncodePalettePng(int height, int width, const std::vector<uint8_t>& indices,
                             const std::vector<uint8_t>& palette, int depth = 8);

// A block of EXIF that holds nothing but the orientation, and another entry before it.
std::string ExifOrientation(int orientation, bool little_endian);
// A JPEG with the block in a segment APP1 after its first marker, a PNG with a chunk eXIf: before its pixels, or at
// its end; or an extended WebP with a chunk EXIF, at its end.
std::string WithExif(const std::string& picture, const std::string& exif, bool behind_pixels = false);

std::string Gzip(const std::string& bytes);
// One ustar member, padded to 512 bytes; `target` of links.
std::string TarMember(const std::string& name, const std::string& content, char type = '0',
                      const std::string& target = "");
std::string TarEnd();
// Magic, sizes (big-endian), data.
std::string Idx(uint32_t magic, const std::vector<uint32_t>& sizes, const std::string& data);

void WriteWithFolders(const std::string& path, const std::string& bytes);  // makes missing folders

}  // namespace distill::testing

#endif  // DISTILL_TESTS_STUDENT_WORKER_DATA_IMAGE_FILES_H_
