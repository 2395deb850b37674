#include "student_worker/data/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "student_worker/data/pixel_kernels.h"

namespace distill {
namespace {

// The pixels of a line that a stretch of it touches, and where in the first of them it begins.
struct Stretch {
  uint32_t first = 0, count = 0;
  double begin = 0, length = 0;
};

Stretch MakeStretch(double from, double length, uint32_t most) {
  Stretch stretch;
  stretch.first = static_cast<uint32_t>(from);
  stretch.begin = from - stretch.first;
  stretch.length = length;
  const auto end = static_cast<uint32_t>(std::ceil(from + length));
  stretch.count = std::min(end, most) - stretch.first;
  return stretch;
}

// Of each output position: the first input position, how many, and their weights.
class Filter {
 public:
  // The triangle, as wide as an output pixel where pictures become smaller.
  Filter(const Stretch& in, uint32_t out) {  // out 0: none
    if (out == 0) return;
    const double scale = in.length / out;
    const double widened = std::max(scale, 1.0);
    most_ = static_cast<uint32_t>(std::ceil(widened)) * 2 + 1;
    first_.resize(out);
    count_.resize(out);
    weights_.resize(size_t{out} * most_);
    std::vector<double> exact(most_);
    for (uint32_t i = 0; i < out; ++i) {
      const double centre = in.begin + (i + 0.5) * scale;
      const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - widened + 0.5));
      const int64_t end = std::min<int64_t>(in.count, static_cast<int64_t>(centre + widened + 0.5));
      double sum = 0;
      for (int64_t x = first; x < end; ++x) {
        const double distance = std::abs((static_cast<double>(x) - centre + 0.5) * (1.0 / widened));
        exact[x - first] = distance < 1 ? 1 - distance : 0;
        sum += exact[x - first];
      }
      first_[i] = static_cast<uint32_t>(first);
      count_[i] = static_cast<uint32_t>(end - first);
      for (int64_t x = 0; x < end - first; ++x) {
        const double weight = sum == 0 ? exact[x] : exact[x] * (1.0 / sum);
        weights_[size_t{i} * most_ + x] = static_cast<int32_t>(0.5 + weight * (1 << kWeightBits));
      }
    }
  }
  LineFilter line() const {
    return {static_cast<uint32_t>(first_.size()), most_, first_.data(), count_.data(), weights_.data()};
  }

 private:
  uint32_t most_ = 0;  // weights of a position in `weights_`
  std::vector<uint32_t> first_, count_;
  std::vector<int32_t> weights_;  // [out, most]
};

bool IsWhole(const PictureBox& box) {
  const auto whole = [](double value) { return value == std::floor(value); };
  return whole(box.top) && whole(box.left) && whole(box.height) && whole(box.width);
}

void ResizeNearest(const uint8_t* in, uint64_t stride, const CropRect& crop, uint32_t height, uint32_t width,
                   uint8_t* out) {
  std::vector<uint32_t> columns(width);
  const double scale_x = static_cast<double>(crop.width) / width, scale_y = static_cast<double>(crop.height) / height;
  for (uint32_t x = 0; x < width; ++x) {
    columns[x] = std::min<uint32_t>(crop.width - 1, static_cast<uint32_t>((x + 0.5) * scale_x));
  }
  for (uint32_t y = 0; y < height; ++y) {
    const uint32_t from = std::min<uint32_t>(crop.height - 1, static_cast<uint32_t>((y + 0.5) * scale_y));
    const uint8_t* const row = in + (crop.top + uint64_t{from}) * stride + crop.left;
    for (uint32_t x = 0; x < width; ++x) *out++ = row[columns[x]];
  }
}

}  // namespace

void ResizeCrop(const Picture& in, const CropRect& crop, uint32_t height, uint32_t width, Picture* out) {
  ResizeBox(in, BoxOf(crop), height, width, out);
}

void ResizeBox(const Picture& in, const PictureBox& box, uint32_t height, uint32_t width, Picture* out) {
  const bool whole = IsWhole(box);
  const Stretch across = MakeStretch(box.left, box.width, in.width), down = MakeStretch(box.top, box.height, in.height);
  if (whole && down.count == height && across.count == width) {
    return CropOrPad(in, down.first, across.first, height, width, 0, out);
  }
  out->channels = in.channels;
  out->height = height;
  out->width = width;
  out->pixels.resize(out->channels * out->plane());
  // A line of whole pixels that keeps its length stays as it is.
  const bool rows = !whole || across.count != width, columns = !whole || down.count != height;
  const Filter narrower(across, rows ? width : 0), lower(down, columns ? height : 0);
  std::vector<uint8_t> narrowed(rows && columns ? uint64_t{down.count} * width : 0);
  std::vector<uint8_t> scratch(rows ? uint64_t{kRowsAtOnce} * across.count : 0);
  const PixelKernels& kernels = BestPixelKernels();
  for (uint32_t c = 0; c < in.channels; ++c) {
    const uint8_t* from = in.pixels.data() + c * in.plane() + uint64_t{down.first} * in.width + across.first;
    uint64_t stride = in.width;
    uint8_t* const to = out->pixels.data() + c * out->plane();
    if (rows) {
      uint8_t* const narrow = columns ? narrowed.data() : to;
      kernels.resize_rows(from, stride, down.count, across.count, narrower.line(), scratch.data(), narrow);
      from = narrow;
      stride = width;
    }
    if (columns) kernels.resize_columns(from, stride, width, lower.line(), to);
  }
  out->label_map.resize(in.label_map.empty() ? 0 : out->plane());
  if (!in.label_map.empty()) {
    const CropRect crop{down.first, across.first, down.count, across.count};
    ResizeNearest(in.label_map.data(), in.width, crop, height, width, out->label_map.data());
  }
}

void CropOrPad(const Picture& in, int64_t top, int64_t left, uint32_t height, uint32_t width, uint8_t fill,
               Picture* out) {
  out->channels = in.channels;
  out->height = height;
  out->width = width;
  out->pixels.resize(out->channels * out->plane());
  out->label_map.resize(in.label_map.empty() ? 0 : out->plane());
  // Columns [begin, end) of the result lie in the picture.
  const int64_t begin = std::clamp<int64_t>(-left, 0, width);
  const int64_t end = std::clamp<int64_t>(int64_t{in.width} - left, begin, width);
  const auto copy = [&](const uint8_t* from, uint8_t value, uint8_t* to) {
    for (int64_t y = 0; y < height; ++y, to += width) {
      const int64_t source = y + top;
      const bool inside = source >= 0 && source < in.height && begin < end;
      if (!inside || begin > 0 || end < width) std::memset(to, value, width);
      if (inside) std::memcpy(to + begin, from + source * in.width + begin + left, end - begin);
    }
  };
  for (uint32_t c = 0; c < in.channels; ++c) {
    copy(in.pixels.data() + c * in.plane(), fill, out->pixels.data() + c * out->plane());
  }
  if (!in.label_map.empty()) copy(in.label_map.data(), kIgnoredPixel, out->label_map.data());
}

}  // namespace distill
