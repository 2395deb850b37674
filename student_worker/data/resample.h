// Pictures brought to another size. Bilinear with antialiasing, as Pillow's resize does it and with its fixed-point
// arithmetic: equal to it in every bit, on every machine. Label maps take the nearest value, as Pillow's NEAREST.
#ifndef DISTILL_STUDENT_WORKER_DATA_RESAMPLE_H_
#define DISTILL_STUDENT_WORKER_DATA_RESAMPLE_H_

#include <cstdint>

#include "student_worker/data/picture.h"
#include "student_worker/data/picture_part.h"

namespace distill {

// The part `crop` of `in`, brought to [height, width]; its label map likewise. What lies beside the crop has no
// influence. Stateless; any thread. REQUIRES: the crop lies in the picture and is not empty; height, width >= 1; `out`
// is not `in`.
void ResizeCrop(const Picture& in, const CropRect& crop, uint32_t height, uint32_t width, Picture* out);
// The same of a box: pixels that lie partly in it count whole. REQUIRES: a picture with a label map has a box of whole
// pixels.
void ResizeBox(const Picture& in, const PictureBox& box, uint32_t height, uint32_t width, Picture* out);

// The part of [height, width] from (top, left) on, which may lie beside the picture: `fill` there, and kIgnoredPixel.
// Stateless; any thread. REQUIRES: `out` is not `in`.
void CropOrPad(const Picture& in, int64_t top, int64_t left, uint32_t height, uint32_t width, uint8_t fill,
               Picture* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_RESAMPLE_H_
