#include "student_worker/data/rand_augment.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <utility>
#include <vector>

#include "student_worker/data/colour.h"

namespace distill {
namespace {

// Where a pixel of the result comes from, both relative to the picture's middle.
struct Affine {
  double xx = 1, xy = 0, x = 0;  // source x = xx * x + xy * y + x
  double yx = 0, yy = 1, y = 0;
};

void Move(const Affine& from, uint8_t fill, Picture* picture, Picture* scratch) {
  const int64_t height = picture->height, width = picture->width;
  scratch->channels = picture->channels;
  scratch->height = picture->height;
  scratch->width = picture->width;
  scratch->pixels.assign(picture->pixels.size(), fill);
  scratch->label_map.clear();
  const size_t plane = picture->plane();
  for (int64_t row = 0; row < height; ++row) {
    const double y = static_cast<double>(row) + 0.5 - static_cast<double>(height) / 2;
    for (int64_t column = 0; column < width; ++column) {
      const double x = static_cast<double>(column) + 0.5 - static_cast<double>(width) / 2;
      // Halves go to the even number, as in torch.
      const auto place = [](double at, int64_t size) {
        return static_cast<int64_t>(std::nearbyint(at + static_cast<double>(size) / 2 - 0.5));
      };
      const int64_t source_x = place(from.xx * x + from.xy * y + from.x, width);
      const int64_t source_y = place(from.yx * x + from.yy * y + from.y, height);
      if (source_x < 0 || source_x >= width || source_y < 0 || source_y >= height) continue;
      for (uint32_t c = 0; c < picture->channels; ++c) {
        scratch->pixels[c * plane + static_cast<size_t>(row * width + column)] =
            picture->pixels[c * plane + static_cast<size_t>(source_y * width + source_x)];
      }
    }
  }
  std::swap(*picture, *scratch);
}

// v + (1 - factor) (blurred - v), with a mean over 3x3 pixels in which the middle counts five times. Pixels at the edge
// stay.
void Sharpen(double factor, Picture* picture, Picture* scratch) {
  const size_t height = picture->height, width = picture->width;
  if (height <= 2 || width <= 2) return;
  *scratch = *picture;
  const auto rest = static_cast<float>(1 - factor);
  for (uint32_t c = 0; c < picture->channels; ++c) {
    const uint8_t* const in = scratch->pixels.data() + c * picture->plane();
    uint8_t* const out = picture->pixels.data() + c * picture->plane();
    for (size_t row = 1; row + 1 < height; ++row) {
      for (size_t column = 1; column + 1 < width; ++column) {
        const size_t at = row * width + column;
        int sum = 4 * in[at];
        for (size_t r = row - 1; r <= row + 1; ++r) {
          for (size_t k = column - 1; k <= column + 1; ++k) sum += in[r * width + k];
        }
        const float blurred = std::nearbyint(static_cast<float>(sum) / 13);
        const auto value = static_cast<float>(in[at]);
        out[at] = static_cast<uint8_t>(std::clamp(value + rest * (blurred - value), 0.0f, 255.0f));
      }
    }
  }
}

// Each channel's values become table(histogram)[v].
template <typename Function>
void MapChannels(const Function& table_of, Picture* picture) {
  for (uint32_t c = 0; c < picture->channels; ++c) {
    uint8_t* const begin = picture->pixels.data() + c * picture->plane();
    std::array<uint64_t, 256> histogram = {};
    for (size_t i = 0; i < picture->plane(); ++i) ++histogram[begin[i]];
    const std::array<uint8_t, 256> table = table_of(histogram);
    for (size_t i = 0; i < picture->plane(); ++i) begin[i] = table[begin[i]];
  }
}

std::array<uint8_t, 256> Stretch(const std::array<uint64_t, 256>& histogram) {
  size_t lowest = 0, highest = 255;
  while (histogram[lowest] == 0) ++lowest;
  while (histogram[highest] == 0) --highest;
  std::array<uint8_t, 256> table;
  const float scale = static_cast<float>(highest - lowest) * (1.0f / 255);
  for (size_t v = 0; v < table.size(); ++v) {
    const float above = static_cast<float>(v) - static_cast<float>(lowest);
    table[v] =
        lowest == highest ? static_cast<uint8_t>(v) : static_cast<uint8_t>(std::clamp(above / scale, 0.0f, 255.0f));
  }
  return table;
}

// Pillow's rule: a step for each 255th part of the pixels that do not have the highest value.
std::array<uint8_t, 256> Equalizer(const std::array<uint64_t, 256>& histogram) {
  uint64_t all = 0;
  size_t highest = 0;
  for (size_t v = 0; v < histogram.size(); ++v) {
    all += histogram[v];
    if (histogram[v] > 0) highest = v;
  }
  const uint64_t step = (all - histogram[highest]) / 255;
  std::array<uint8_t, 256> table;
  uint64_t before = step / 2;
  for (size_t v = 0; v < table.size(); ++v) {
    table[v] = step == 0 ? static_cast<uint8_t>(v) : static_cast<uint8_t>(std::min<uint64_t>(255, before / step));
    before += histogram[v];
  }
  return table;
}

template <typename Function>
void MapValues(const Function& function, Picture* picture) {
  std::array<uint8_t, 256> table;
  for (int v = 0; v < 256; ++v) table[static_cast<size_t>(v)] = function(static_cast<uint8_t>(v));
  for (uint8_t& value : picture->pixels) value = table[value];
}

bool HasSign(std::string_view op) {
  return op.starts_with("Shear") || op.starts_with("Translate") || op == "Rotate" || op == "Brightness" ||
         op == "Color" || op == "Contrast" || op == "Sharpness";
}

}  // namespace

double AugmentMagnitude(std::string_view op, uint32_t bin, uint32_t bins, uint32_t height, uint32_t width) {
  const double share = static_cast<double>(bin) / (bins - 1);
  if (op.starts_with("Shear")) return 0.3 * share;
  if (op == "TranslateX") return 150.0 / 331 * width * share;
  if (op == "TranslateY") return 150.0 / 331 * height * share;
  if (op == "Rotate") return 30 * share;
  if (op == "Brightness" || op == "Color" || op == "Contrast" || op == "Sharpness") return 0.9 * share;
  if (op == "Posterize") return std::nearbyint(8 - 4 * share);
  if (op == "Solarize") return 1 - share;
  return 0;
}

void ApplyAugment(std::string_view op, double magnitude, uint8_t fill, Picture* picture, Picture* scratch) {
  const double half_height = picture->height / 2.0, half_width = picture->width / 2.0;
  if (op == "ShearX") {  // about the upper left corner, as the next
    Move({.xy = magnitude, .x = magnitude * half_height}, fill, picture, scratch);
  } else if (op == "ShearY") {
    Move({.yx = magnitude, .y = magnitude * half_width}, fill, picture, scratch);
  } else if (op == "TranslateX") {
    Move({.x = -std::trunc(magnitude)}, fill, picture, scratch);
  } else if (op == "TranslateY") {
    Move({.y = -std::trunc(magnitude)}, fill, picture, scratch);
  } else if (op == "Rotate") {  // counter-clockwise
    const double angle = magnitude * std::numbers::pi / 180, c = std::cos(angle), s = std::sin(angle);
    Move({.xx = c, .xy = -s, .yx = s, .yy = c}, fill, picture, scratch);
  } else if (op == "Brightness") {
    AdjustBrightness(1 + magnitude, picture);
  } else if (op == "Color") {
    AdjustSaturation(1 + magnitude, picture);
  } else if (op == "Contrast") {
    AdjustContrast(1 + magnitude, picture);
  } else if (op == "Sharpness") {
    Sharpen(1 + magnitude, picture, scratch);
  } else if (op == "Posterize") {
    const auto mask = static_cast<uint8_t>(0xFF << (8 - static_cast<int>(magnitude)));
    MapValues([mask](uint8_t v) { return static_cast<uint8_t>(v & mask); }, picture);
  } else if (op == "Solarize") {
    const double threshold = 255 * magnitude;
    MapValues([threshold](uint8_t v) { return v >= threshold ? static_cast<uint8_t>(255 - v) : v; }, picture);
  } else if (op == "AutoContrast") {
    MapChannels(Stretch, picture);
  } else if (op == "Equalize") {
    MapChannels(Equalizer, picture);
  }
}

void RandAugment(uint32_t num_ops, uint32_t bin, uint32_t bins, uint8_t fill, CounterRng* rng, Picture* picture,
                 Picture* scratch) {
  for (uint32_t i = 0; i < num_ops; ++i) {
    const std::string_view op = kAugmentOps[rng->Below(kAugmentOps.size())];
    const bool negative = rng->Below(2) == 1;  // drawn always, so that each operation takes two numbers
    const double magnitude = AugmentMagnitude(op, bin, bins, picture->height, picture->width);
    ApplyAugment(op, HasSign(op) && negative ? -magnitude : magnitude, fill, picture, scratch);
  }
}

}  // namespace distill
