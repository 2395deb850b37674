#include "student_worker/data/colour.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace distill {
namespace {

// Of whole values: what is behind the point is cut off, as a cast to uint8 does.
uint8_t Cut(float value) { return static_cast<uint8_t>(std::clamp(value, 0.0f, 255.0f)); }

float Gray(uint8_t red, uint8_t green, uint8_t blue) {
  return std::floor(0.2989f * static_cast<float>(red) + 0.587f * static_cast<float>(green) +
                    0.114f * static_cast<float>(blue));
}

// Each value `v` becomes table[v].
template <typename Function>
void Map(const Function& function, std::vector<uint8_t>* values) {
  std::array<uint8_t, 256> table;
  for (int v = 0; v < 256; ++v) table[v] = function(static_cast<float>(v));
  for (uint8_t& value : *values) value = table[value];
}

// Row-wise and column-wise positions mirrored into [0, size).
int64_t Mirror(int64_t at, int64_t size) {
  if (at < 0) at = -at;
  return at < size ? at : 2 * size - 2 - at;
}

std::vector<float> Kernel(uint32_t size, double sigma) {
  std::vector<float> kernel(size);
  const double half = (size - 1) * 0.5;
  double sum = 0;
  for (uint32_t i = 0; i < size; ++i) sum += std::exp(-0.5 * std::pow((i - half) / sigma, 2));
  for (uint32_t i = 0; i < size; ++i) {
    kernel[i] = static_cast<float>(std::exp(-0.5 * std::pow((i - half) / sigma, 2)) / sum);
  }
  return kernel;
}

}  // namespace

void AdjustBrightness(double factor, Picture* picture) {
  const auto f = static_cast<float>(factor);
  Map([f](float v) { return Cut(v * f); }, &picture->pixels);
}

void AdjustContrast(double factor, Picture* picture) {
  const uint64_t plane = picture->plane();
  const uint8_t* const p = picture->pixels.data();
  double sum = 0;
  for (uint64_t i = 0; i < plane; ++i) {
    sum += picture->channels == 3 ? Gray(p[i], p[plane + i], p[2 * plane + i]) : static_cast<float>(p[i]);
  }
  const auto mean = static_cast<float>(sum / static_cast<double>(plane));
  const auto f = static_cast<float>(factor);
  Map([f, mean](float v) { return Cut(f * v + (1 - f) * mean); }, &picture->pixels);
}

void AdjustSaturation(double factor, Picture* picture) {
  if (picture->channels != 3) return;
  const uint64_t plane = picture->plane();
  uint8_t* const p = picture->pixels.data();
  const auto f = static_cast<float>(factor);
  for (uint64_t i = 0; i < plane; ++i) {
    const float gray = (1 - f) * Gray(p[i], p[plane + i], p[2 * plane + i]);
    for (uint64_t c = 0; c < 3; ++c) p[c * plane + i] = Cut(f * static_cast<float>(p[c * plane + i]) + gray);
  }
}

void AdjustHue(double share, Picture* picture) {
  if (picture->channels != 3 || share == 0) return;
  const uint64_t plane = picture->plane();
  uint8_t* const p = picture->pixels.data();
  for (uint64_t i = 0; i < plane; ++i) {
    const float r = static_cast<float>(p[i]) / 255, g = static_cast<float>(p[plane + i]) / 255,
                b = static_cast<float>(p[2 * plane + i]) / 255;
    const float high = std::max({r, g, b}), low = std::min({r, g, b}), range = high - low;
    if (range == 0) continue;  // grey
    float hue = r == high   ? (g - b) / range
                : g == high ? (b - r) / range + 2
                            : (r - g) / range + 4;  // in sixths of the circle
    hue = hue / 6 + 1 + static_cast<float>(share);
    hue -= std::floor(hue);
    const float saturation = range / high, sixth = hue * 6;
    const auto sector = static_cast<int>(sixth);
    const float rest = sixth - static_cast<float>(sector);
    const float down = high * (1 - saturation), falling = high * (1 - saturation * rest),
                rising = high * (1 - saturation * (1 - rest));
    const std::array<std::array<float, 3>, 6> colours = {{{high, rising, down},
                                                          {falling, high, down},
                                                          {down, high, rising},
                                                          {down, falling, high},
                                                          {rising, down, high},
                                                          {high, down, falling}}};
    for (uint64_t c = 0; c < 3; ++c) p[c * plane + i] = Cut(colours[sector % 6][c] * (255 + 1 - 1e-3f));
  }
}

void MakeGray(Picture* picture) {
  if (picture->channels != 3) return;
  const uint64_t plane = picture->plane();
  uint8_t* const p = picture->pixels.data();
  for (uint64_t i = 0; i < plane; ++i) {
    const auto gray = static_cast<uint8_t>(Gray(p[i], p[plane + i], p[2 * plane + i]));
    p[i] = p[plane + i] = p[2 * plane + i] = gray;
  }
}

void GaussianBlur(uint32_t kernel, double sigma, Picture* picture) {
  const int64_t height = picture->height, width = picture->width;
  const int64_t half = std::min<int64_t>({kernel / 2, height - 1, width - 1});
  if (half <= 0) return;
  const std::vector<float> weights = Kernel(static_cast<uint32_t>(2 * half + 1), sigma);
  std::vector<float> rows(picture->plane()), sums(width), padded(width + 2 * half);
  for (uint32_t c = 0; c < picture->channels; ++c) {
    uint8_t* const plane = picture->pixels.data() + c * picture->plane();
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = -half; x < width + half; ++x) padded[x + half] = plane[y * width + Mirror(x, width)];
      float* const row = rows.data() + y * width;
      std::fill(row, row + width, 0.0f);
      for (int64_t k = 0; k <= 2 * half; ++k) {
        for (int64_t x = 0; x < width; ++x) row[x] += weights[k] * padded[x + k];
      }
    }
    for (int64_t y = 0; y < height; ++y) {
      std::fill(sums.begin(), sums.end(), 0.0f);
      for (int64_t k = 0; k <= 2 * half; ++k) {
        const float* const row = rows.data() + Mirror(y + k - half, height) * width;
        for (int64_t x = 0; x < width; ++x) sums[x] += weights[k] * row[x];
      }
      for (int64_t x = 0; x < width; ++x) plane[y * width + x] = Cut(std::nearbyint(sums[x]));
    }
  }
}

}  // namespace distill
