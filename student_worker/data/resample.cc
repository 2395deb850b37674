#include "student_worker/data/resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace distill {
namespace {

// Weights are whole numbers of 2^-22: with 8 bits of value, a sum stays below 2^31.
constexpr int kPrecision = 32 - 8 - 2;

// Of each output position: the first input position, how many, and their weights.
struct Filter {
  struct Span {
    uint32_t first = 0, count = 0;
  };
  uint32_t most = 0;  // weights of a position in `weights`
  std::vector<Span> spans;
  std::vector<int32_t> weights;  // [out, most]
};

// The triangle, as wide as an output pixel where pictures become smaller.
Filter MakeFilter(uint32_t in, uint32_t out) {
  const double scale = static_cast<double>(in) / out;
  const double widened = std::max(scale, 1.0);
  Filter filter;
  filter.most = static_cast<uint32_t>(std::ceil(widened)) * 2 + 1;
  filter.spans.resize(out);
  filter.weights.resize(size_t{out} * filter.most);
  std::vector<double> exact(filter.most);
  for (uint32_t i = 0; i < out; ++i) {
    const double centre = (i + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - widened + 0.5));
    const int64_t end = std::min<int64_t>(in, static_cast<int64_t>(centre + widened + 0.5));
    double sum = 0;
    for (int64_t x = first; x < end; ++x) {
      const double distance = std::abs((static_cast<double>(x) - centre + 0.5) * (1.0 / widened));
      exact[x - first] = distance < 1 ? 1 - distance : 0;
      sum += exact[x - first];
    }
    filter.spans[i] = {static_cast<uint32_t>(first), static_cast<uint32_t>(end - first)};
    for (int64_t x = 0; x < end - first; ++x) {
      const double weight = sum == 0 ? exact[x] : exact[x] * (1.0 / sum);
      filter.weights[size_t{i} * filter.most + x] = static_cast<int32_t>(0.5 + weight * (1 << kPrecision));
    }
  }
  return filter;
}

uint8_t Clip(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPrecision, 0, 255)); }

// Rows of `in`, `stride` apart, to rows of `width`, one after another.
void ResizeRows(const uint8_t* in, uint64_t stride, uint32_t rows, uint32_t width, const Filter& filter, uint8_t* out) {
  for (uint32_t y = 0; y < rows; ++y) {
    const uint8_t* const row = in + y * stride;
    for (uint32_t x = 0; x < width; ++x) {
      const Filter::Span span = filter.spans[x];
      const int32_t* const weights = filter.weights.data() + size_t{x} * filter.most;
      const uint8_t* const from = row + span.first;
      int32_t sum = 1 << (kPrecision - 1);
      for (uint32_t k = 0; k < span.count; ++k) sum += weights[k] * from[k];
      out[uint64_t{y} * width + x] = Clip(sum);
    }
  }
}

// Columns: whole rows at a time. `first`: the row of the filter's input at which `in` begins.
void ResizeColumns(const uint8_t* in, uint32_t first, uint32_t height, uint32_t width, const Filter& filter,
                   std::vector<int32_t>* sums, uint8_t* out) {
  sums->resize(width);
  int32_t* const sum = sums->data();
  for (uint32_t y = 0; y < height; ++y) {
    const Filter::Span span = filter.spans[y];
    const int32_t* const weights = filter.weights.data() + size_t{y} * filter.most;
    std::fill(sum, sum + width, 1 << (kPrecision - 1));
    for (uint32_t k = 0; k < span.count; ++k) {
      const uint8_t* const row = in + uint64_t{span.first - first + k} * width;
      const int32_t weight = weights[k];
      for (uint32_t x = 0; x < width; ++x) sum[x] += weight * row[x];
    }
    for (uint32_t x = 0; x < width; ++x) out[uint64_t{y} * width + x] = Clip(sum[x]);
  }
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
  out->channels = in.channels;
  out->height = height;
  out->width = width;
  out->pixels.resize(out->channels * out->plane());
  if (crop.height == height && crop.width == width) return CropOrPad(in, crop.top, crop.left, height, width, 0, out);
  const bool rows = crop.width != width, columns = crop.height != height;
  const Filter across = rows ? MakeFilter(crop.width, width) : Filter();
  const Filter down = columns ? MakeFilter(crop.height, height) : Filter();
  std::vector<uint8_t> narrowed(rows && columns ? uint64_t{crop.height} * width : 0);
  std::vector<int32_t> sums;
  for (uint32_t c = 0; c < in.channels; ++c) {
    const uint8_t* plane = in.pixels.data() + c * in.plane() + uint64_t{crop.top} * in.width + crop.left;
    uint8_t* const to = out->pixels.data() + c * out->plane();
    if (!columns) {
      ResizeRows(plane, in.width, crop.height, width, across, to);
    } else if (rows) {
      ResizeRows(plane, in.width, crop.height, width, across, narrowed.data());
      ResizeColumns(narrowed.data(), 0, height, width, down, &sums, to);
    } else {
      narrowed.resize(uint64_t{crop.height} * width);
      for (uint32_t y = 0; y < crop.height; ++y) {
        std::memcpy(narrowed.data() + uint64_t{y} * width, plane + uint64_t{y} * in.width, width);
      }
      ResizeColumns(narrowed.data(), 0, height, width, down, &sums, to);
    }
  }
  out->label_map.resize(in.label_map.empty() ? 0 : out->plane());
  if (!in.label_map.empty()) {
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
