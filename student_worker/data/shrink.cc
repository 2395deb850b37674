#include "student_worker/data/shrink.h"

#include <algorithm>
#include <vector>

namespace distill {

void ShrinkImage(uint32_t channels, uint32_t height, uint32_t width, uint32_t factor, const uint8_t* in, uint8_t* out) {
  const uint32_t out_width = width / factor;
  const uint64_t box = uint64_t{factor} * factor;
  std::vector<uint64_t> sums(out_width);
  // All channels' rows lie one after another, and a box never crosses from one channel into the next.
  const uint64_t out_rows = uint64_t{channels} * (height / factor);
  for (uint64_t y = 0; y < out_rows; ++y) {
    std::fill(sums.begin(), sums.end(), 0);
    for (uint32_t dy = 0; dy < factor; ++dy) {
      for (uint64_t& sum : sums) {
        for (uint32_t dx = 0; dx < factor; ++dx) sum += *in++;
      }
    }
    for (const uint64_t sum : sums) *out++ = static_cast<uint8_t>((sum + box / 2) / box);
  }
}

void ShrinkLabelMap(uint32_t height, uint32_t width, uint32_t factor, const uint8_t* in, uint8_t* out) {
  for (uint64_t y = factor / 2; y < height; y += factor) {
    for (uint64_t x = factor / 2; x < width; x += factor) *out++ = in[y * width + x];
  }
}

}  // namespace distill
