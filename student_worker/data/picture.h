// One picture as it travels from its file through the transforms.
#ifndef DISTILL_STUDENT_WORKER_DATA_PICTURE_H_
#define DISTILL_STUDENT_WORKER_DATA_PICTURE_H_

#include <cstdint>
#include <vector>

namespace distill {

inline constexpr uint8_t kIgnoredPixel = 255;  // in a label map: the pixel has no label

// Value type, thread-compatible.
struct Picture {
  uint32_t channels = 0, height = 0, width = 0;
  std::vector<uint8_t> pixels;     // [C, H, W]
  std::vector<uint8_t> label_map;  // [H, W], class ids or kIgnoredPixel; empty: it has none

  uint64_t plane() const { return uint64_t{height} * width; }
  uint64_t bytes() const { return pixels.size() + label_map.size(); }
};

// The part of a transformed picture that shows the picture and no padding: rows [top, bottom), columns [left, right).
// Empty when all of it is padding.
struct VisibleRect {
  uint32_t top = 0, left = 0, bottom = 0, right = 0;
  bool operator==(const VisibleRect&) const = default;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PICTURE_H_
