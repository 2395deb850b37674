// Parts of pictures: which one a transform will take, so that no more than it needs to be decoded.
#ifndef DISTILL_STUDENT_WORKER_DATA_PICTURE_PART_H_
#define DISTILL_STUDENT_WORKER_DATA_PICTURE_PART_H_

#include <cstdint>
#include <functional>

namespace distill {

// Rows [top, top + height), columns [left, left + width) of a picture.
struct CropRect {
  uint32_t top = 0, left = 0, height = 0, width = 0;
  bool operator==(const CropRect&) const = default;
};

// The same, whose borders may lie inside pixels: 0 is the upper or left border of the first pixel.
struct PictureBox {
  double top = 0, left = 0, height = 0, width = 0;
  bool operator==(const PictureBox&) const = default;
};
inline PictureBox BoxOf(const CropRect& crop) {
  return {static_cast<double>(crop.top), static_cast<double>(crop.left), static_cast<double>(crop.height),
          static_cast<double>(crop.width)};
}

// The part `crop` of a picture, of which [height, width] will be made.
struct WantedPart {
  CropRect crop;
  uint32_t height = 0, width = 0;
  bool operator==(const WantedPart&) const = default;
};

// The part of a picture of [height, width]. REQUIRES of it: it lies in the picture and is not empty.
using PartChooser = std::function<WantedPart(uint32_t height, uint32_t width)>;

// By which factor, 1, 2, 4 or 8, a picture may be made smaller when it is decoded: the largest that leaves the part at
// least as large as what will be made of it.
inline uint32_t ReductionOf(const WantedPart& part) {
  uint32_t factor = 8;
  while (factor > 1 && (part.crop.height < uint64_t{factor} * part.height ||  //
                        part.crop.width < uint64_t{factor} * part.width)) {
    factor /= 2;
  }
  return factor;
}

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PICTURE_PART_H_
