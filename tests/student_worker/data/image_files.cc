#include "tests/student_worker/data/image_files.h"

#include <png.h>
#include <webp/decode.h>
#include <webp/encode.h>
#include <zlib.h>

#include <cstdio>  // jpeglib.h needs FILE

#include <jpeglib.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"

namespace distill::testing {

namespace {

std::string WriteJpeg(int height, int width, int channels, const std::vector<uint8_t>& pixels, int quality,
                      bool progressive, bool ycck = false, int across = 1, int down = 1) {
  jpeg_compress_struct jpeg;
  jpeg_error_mgr errors;
  jpeg.err = jpeg_std_error(&errors);
  jpeg_create_compress(&jpeg);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  jpeg_mem_dest(&jpeg, &memory, &size);
  jpeg.image_width = width;
  jpeg.image_height = height;
  jpeg.input_components = channels;
  jpeg.in_color_space = channels == 1 ? JCS_GRAYSCALE : channels == 4 ? JCS_CMYK : JCS_RGB;
  jpeg_set_defaults(&jpeg);
  if (ycck) jpeg_set_colorspace(&jpeg, JCS_YCCK);
  jpeg_set_quality(&jpeg, quality, TRUE);
  if (progressive) jpeg_simple_progression(&jpeg);
  for (int i = 0; i < channels; ++i) jpeg.comp_info[i].h_samp_factor = jpeg.comp_info[i].v_samp_factor = 1;
  jpeg.comp_info[0].h_samp_factor = across;
  jpeg.comp_info[0].v_samp_factor = down;
  jpeg_start_compress(&jpeg, TRUE);
  for (int y = 0; y < height; ++y) {
    JSAMPROW row = const_cast<uint8_t*>(pixels.data()) + static_cast<size_t>(y) * width * channels;
    jpeg_write_scanlines(&jpeg, &row, 1);
  }
  jpeg_finish_compress(&jpeg);
  std::string bytes(reinterpret_cast<char*>(memory), size);
  jpeg_destroy_compress(&jpeg);
  std::free(memory);
  return bytes;
}

void AppendPngBytes(png_structp png, png_bytep bytes, size_t size) {
  static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<char*>(bytes), size);
}

std::string WritePng(int height, int width, int color_type, int depth, const std::vector<uint8_t>& pixels,
                     const std::vector<uint8_t>& palette) {
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, nullptr, nullptr);
  png_infop info = png_create_info_struct(png);
  std::string bytes;
  png_set_write_fn(png, &bytes, AppendPngBytes, nullptr);
  png_set_IHDR(png, info, width, height, depth, color_type, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  if (!palette.empty()) {
    png_set_PLTE(png, info, reinterpret_cast<png_const_colorp>(palette.data()), static_cast<int>(palette.size() / 3));
  }
  png_write_info(png, info);
  const size_t stride = pixels.size() / height;
  for (int y = 0; y < height; ++y) png_write_row(png, pixels.data() + y * stride);
  png_write_end(png, info);
  png_destroy_write_struct(&png, &info);
  return bytes;
}

}  // namespace

std::string EncodeInkJpeg(int height, int width, const std::vector<uint8_t>& pixels, bool ycck) {
  return WriteJpeg(height, width, 4, pixels, 100, false, ycck);
}

std::string EncodeJpeg(int height, int width, int channels, const std::vector<uint8_t>& pixels, int quality) {
  return WriteJpeg(height, width, channels, pixels, quality, /*progressive=*/false);
}

std::string EncodeProgressiveJpeg(int height, int width, int channels, const std::vector<uint8_t>& pixels) {
  return WriteJpeg(height, width, channels, pixels, 95, /*progressive=*/true);
}

std::string EncodeSampledJpeg(int height, int width, const std::vector<uint8_t>& pixels, int across, int down,
                              bool progressive) {
  return WriteJpeg(height, width, 3, pixels, 90, progressive, false, across, down);
}

std::vector<uint8_t> Noise(size_t size) {
  std::vector<uint8_t> noise;
  uint32_t state = 1;
  for (size_t i = 0; i < size; ++i)
    noise.push_back(static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24));
  return noise;
}

std::string EncodeWebp(int height, int width, const std::vector<uint8_t>& pixels, bool lossless) {
  uint8_t* memory = nullptr;
  const size_t size = lossless ? WebPEncodeLosslessRGB(pixels.data(), width, height, width * 3, &memory)
                               : WebPEncodeRGB(pixels.data(), width, height, width * 3, 95, &memory);
  std::string bytes(reinterpret_cast<char*>(memory), size);
  WebPFree(memory);
  return bytes;
}

std::string EncodePng(int height, int width, int color_type, int depth, const std::vector<uint8_t>& pixels) {
  return WritePng(height, width, color_type, depth, pixels, {});
}

std::string EncodePalettePng(int height, int width, const std::vector<uint8_t>& indices,
                             const std::vector<uint8_t>& palette, int depth) {
  return WritePng(height, width, PNG_COLOR_TYPE_PALETTE, depth, indices, palette);
}

std::string ExifOrientation(int orientation, bool little_endian) {
  const auto number = [&](uint32_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) {
      text.push_back(static_cast<char>(value >> 8 * (little_endian ? i : bytes - 1 - i)));
    }
    return text;
  };
  std::string exif = little_endian ? "II" : "MM";
  exif += number(42, 2) + number(8, 4) + number(2, 2);
  exif += number(0x0100, 2) + number(4, 2) + number(1, 4) + number(640, 4);  // a width, of type long
  exif += number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + number(0, 2);
  return exif + number(0, 4);
}

std::string WithExif(const std::string& picture, const std::string& exif, bool behind_pixels) {
  if (picture.starts_with("\xFF\xD8")) {
    const std::string body = std::string("Exif\0\0", 6) + exif;
    std::string segment = "\xFF\xE1";
    segment.push_back(static_cast<char>((body.size() + 2) >> 8));
    segment.push_back(static_cast<char>(body.size() + 2));
    return picture.substr(0, 2) + segment + body + picture.substr(2);
  }
  if (picture.starts_with("RIFF")) {
    const auto little_endian = [](uint32_t value, int bytes) {
      std::string text;
      for (int i = 0; i < bytes; ++i) text.push_back(static_cast<char>(value >> 8 * i));
      return text;
    };
    int width = 0, height = 0;
    WebPGetInfo(reinterpret_cast<const uint8_t*>(picture.data()), picture.size(), &width, &height);
    std::string body = "WEBPVP8X" + little_endian(10, 4) + little_endian(8, 4) + little_endian(width - 1, 3) +
                       little_endian(height - 1, 3) + picture.substr(12) + "EXIF" + little_endian(exif.size(), 4) +
                       exif;
    if (exif.size() % 2 == 1) body.push_back('\0');
    return "RIFF" + little_endian(body.size(), 4) + body;
  }
  const auto big_endian = [](uint32_t value) {
    std::string text;
    for (int shift = 24; shift >= 0; shift -= 8) text.push_back(static_cast<char>(value >> shift));
    return text;
  };
  const std::string typed = "eXIf" + exif;
  const std::string chunk =
      big_endian(exif.size()) + typed +
      big_endian(crc32(0, reinterpret_cast<const Bytef*>(typed.data()), static_cast<uInt>(typed.size())));
  const size_t at = behind_pixels ? picture.size() - 12 : picture.find("IDAT") - 4;
  return picture.substr(0, at) + chunk + picture.substr(at);
}

std::string Gzip(const std::string& bytes) {
  z_stream stream = {};
  deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, bytes.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = bytes.size();
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = out.size();
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

std::string TarMember(const std::string& name, const std::string& content, char type, const std::string& target) {
  std::string header(512, '\0');
  name.copy(header.data(), 100);
  header.replace(100, 7, "0000644");
  header.replace(124, 11, absl::StrFormat("%011o", content.size()));
  header.replace(148, 8, "        ");
  header[156] = type;
  target.copy(header.data() + 157, 100);
  header.replace(257, 5, "ustar");
  header.replace(263, 2, "00");
  unsigned sum = 0;
  for (char c : header) sum += static_cast<unsigned char>(c);
  header.replace(148, 7, absl::StrFormat("%06o", sum) + std::string(1, '\0'));
  std::string member = header + content;
  member.resize((member.size() + 511) / 512 * 512, '\0');
  return member;
}

std::string TarEnd() { return std::string(1024, '\0'); }

std::string Idx(uint32_t magic, const std::vector<uint32_t>& sizes, const std::string& data) {
  std::string bytes;
  auto append = [&](uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(value >> shift));
  };
  append(magic);
  for (uint32_t size : sizes) append(size);
  return bytes + data;
}

void WriteWithFolders(const std::string& path, const std::string& bytes) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

}  // namespace distill::testing
