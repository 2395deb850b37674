#include "student_worker/data/augment.h"

#include <algorithm>
#include <cstring>

#include "student_worker/data/counter_rng.h"
#include "student_worker/data/dataset.h"

namespace distill {
namespace {

// Where an output shows its input: moved by (dy, dx), then mirrored.
struct View {
  int64_t dy, dx;
  bool flip;
};

View DrawView(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t sample_id) {
  CounterRng rng(seed, RngPurpose::kAugment, epoch, sample_id);
  // Always three draws, so that switching one augmentation off leaves the other as it was.
  const int64_t padding = options.crop_padding;
  const int64_t dy = static_cast<int64_t>(rng.Below(2 * padding + 1)) - padding;
  const int64_t dx = static_cast<int64_t>(rng.Below(2 * padding + 1)) - padding;
  const bool flip = rng.Below(2) == 1 && options.horizontal_flip;
  return {dy, dx, flip};
}

VisibleRect Render(const View& view, uint8_t padding, uint32_t channels, uint32_t height, uint32_t width,
                   const uint8_t* in, uint8_t* out) {
  // Columns [begin, end) of the unflipped crop lie inside the image.
  const int64_t begin = std::clamp<int64_t>(-view.dx, 0, width);
  const int64_t end = std::clamp<int64_t>(int64_t{width} - view.dx, begin, width);
  for (uint32_t c = 0; c < channels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      uint8_t* row = out + (uint64_t{c} * height + y) * width;
      std::memset(row, padding, width);
      const int64_t source_y = y + view.dy;
      if (source_y < 0 || source_y >= height || begin == end) continue;
      std::memcpy(row + begin, in + (uint64_t{c} * height + source_y) * width + begin + view.dx, end - begin);
      if (view.flip) std::reverse(row, row + width);
    }
  }
  const int64_t top = std::clamp<int64_t>(-view.dy, 0, height);
  const int64_t bottom = std::clamp<int64_t>(int64_t{height} - view.dy, top, height);
  if (top == bottom || begin == end) return {};
  const int64_t left = view.flip ? int64_t{width} - end : begin;
  return {static_cast<uint32_t>(top), static_cast<uint32_t>(left), static_cast<uint32_t>(bottom),
          static_cast<uint32_t>(left + end - begin)};
}

}  // namespace

VisibleRect AugmentImage(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t sample_id,
                         uint32_t channels, uint32_t height, uint32_t width, const uint8_t* in, uint8_t* out) {
  return Render(DrawView(options, seed, epoch, sample_id), 0, channels, height, width, in, out);
}

void AugmentLabelMap(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t sample_id, uint32_t height,
                     uint32_t width, const uint8_t* in, uint8_t* out) {
  Render(DrawView(options, seed, epoch, sample_id), kIgnoredPixel, 1, height, width, in, out);
}

}  // namespace distill
