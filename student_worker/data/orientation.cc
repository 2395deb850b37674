#include "student_worker/data/orientation.h"

#include <cstddef>

#include "student_worker/data/pixel_kernels.h"

namespace distill {
namespace {

using std::string_view_literals::operator""sv;

constexpr uint32_t kOrientationTag = 0x0112;
constexpr uint32_t kShort = 3, kLong = 4;  // types of a value

// Numbers of a TIFF structure; 0 where it ends before.
class TiffBytes {
 public:
  TiffBytes(std::string_view bytes, bool little) : bytes_(bytes), little_(little) {}
  uint32_t Number(size_t at, size_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) return 0;
    uint32_t value = 0;
    for (size_t i = 0; i < size; ++i) {
      value = value << 8 | static_cast<unsigned char>(bytes_[at + (little_ ? size - 1 - i : i)]);
    }
    return value;
  }

 private:
  const std::string_view bytes_;
  const bool little_;
};

}  // namespace

int ReadOrientation(std::string_view exif) {
  if (exif.starts_with("Exif\0\0"sv)) exif.remove_prefix(6);
  const bool little = exif.starts_with("II*\0"sv);
  if (!little && !exif.starts_with("MM\0*"sv)) return 1;
  const TiffBytes tiff(exif, little);
  const size_t directory = tiff.Number(4, 4);
  const uint32_t entries = tiff.Number(directory, 2);
  for (uint32_t i = 0; i < entries; ++i) {  // entry: tag 2, type 2, count 4, value 4 bytes
    const size_t entry = directory + 2 + size_t{12} * i;
    if (tiff.Number(entry, 2) != kOrientationTag) continue;
    const uint32_t type = tiff.Number(entry + 2, 2);
    const uint32_t value = type == kShort ? tiff.Number(entry + 8, 2) : type == kLong ? tiff.Number(entry + 8, 4) : 1;
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

void TurnUpright(int orientation, uint32_t channels, uint32_t height, uint32_t width, const uint8_t* stored,
                 uint64_t row_pixels, uint8_t* upright) {
  if (orientation == 1 && channels == 3) {
    const PixelKernels& kernels = BestPixelKernels();
    const size_t plane = size_t{height} * width;
    for (uint32_t y = 0; y < height; ++y, stored += row_pixels * 3, upright += width) {
      kernels.split_colours(stored, width, upright, upright + plane, upright + 2 * plane);
    }
    return;
  }
  // The stored pixel of the upright one at (y, x) is `start` + y * `down` + x * `right`, in pixels.
  const ptrdiff_t row = static_cast<ptrdiff_t>(row_pixels), last_row = static_cast<ptrdiff_t>(height - 1) * row,
                  last = width - 1;
  ptrdiff_t start = 0, down = row, right = 1;
  switch (orientation) {
    case 2:
      start = last, right = -1;
      break;
    case 3:
      start = last_row + last, down = -row, right = -1;
      break;
    case 4:
      start = last_row, down = -row;
      break;
    case 5:
      down = 1, right = row;
      break;
    case 6:
      start = last_row, down = 1, right = -row;
      break;
    case 7:
      start = last_row + last, down = -1, right = -row;
      break;
    case 8:
      start = last, down = -1, right = row;
      break;
    default:
      break;
  }
  const bool exchanged = ExchangesSides(orientation);
  const uint32_t out_height = exchanged ? width : height, out_width = exchanged ? height : width;
  for (uint32_t c = 0; c < channels; ++c) {
    for (uint32_t y = 0; y < out_height; ++y) {
      ptrdiff_t pixel = start + static_cast<ptrdiff_t>(y) * down;
      for (uint32_t x = 0; x < out_width; ++x, pixel += right) *upright++ = stored[pixel * channels + c];
    }
  }
}

namespace {

bool MirrorsRows(int orientation) {
  return orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
}
bool MirrorsColumns(int orientation) {
  return orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
}
PictureBox ExchangeSides(const PictureBox& box) { return {box.left, box.top, box.width, box.height}; }

// Of a stored picture of [height, width].
PictureBox Mirror(int orientation, PictureBox box, uint32_t height, uint32_t width) {
  if (MirrorsRows(orientation)) box.top = height - box.top - box.height;
  if (MirrorsColumns(orientation)) box.left = width - box.left - box.width;
  return box;
}

}  // namespace

PictureBox StoredBox(int orientation, const PictureBox& upright, uint32_t height, uint32_t width) {
  return Mirror(orientation, ExchangesSides(orientation) ? ExchangeSides(upright) : upright, height, width);
}

PictureBox UprightBox(int orientation, const PictureBox& stored, uint32_t height, uint32_t width) {
  const PictureBox box = Mirror(orientation, stored, height, width);
  return ExchangesSides(orientation) ? ExchangeSides(box) : box;
}

}  // namespace distill
