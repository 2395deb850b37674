// How a picture's stored pixels must be turned to be seen upright: the tag Orientation of EXIF.
//
// Cameras store pictures as the sensor lies and add one of eight numbers (JEITA CP-3451, tag 0x0112):
// clang-format off
//     1  as stored         3  turned by 180 degrees      5  mirrored along its main diagonal    7  along the other one
//     2  mirrored in x     4  mirrored in y              6  to be turned clockwise by 90        8  counter-clockwise
// clang-format on
// 5 to 8 exchange height and width.
#ifndef DISTILL_STUDENT_WORKER_DATA_ORIENTATION_H_
#define DISTILL_STUDENT_WORKER_DATA_ORIENTATION_H_

#include <cstdint>
#include <string_view>

#include "student_worker/data/picture_part.h"

namespace distill {

// Stateless; any thread.

// The orientation, 1 to 8, that a block of EXIF gives (a TIFF structure, with or without "Exif\0\0" before it); 1 when
// it gives none or is damaged: what it holds is advice, and never a reason to refuse a picture.
int ReadOrientation(std::string_view exif);

inline bool ExchangesSides(int orientation) { return orientation >= 5; }

// Stored pixels [height, width, C], interleaved, rows `row_pixels` pixels apart, to upright ones [C, H, W]; (H, W) is
// (width, height) where the sides are exchanged. They do not overlap. REQUIRES: orientation is 1 to 8.
void TurnUpright(int orientation, uint32_t channels, uint32_t height, uint32_t width, const uint8_t* stored,
                 uint64_t row_pixels, uint8_t* upright);

// Where a box of the upright picture lies in the stored one of [height, width], and the other way round.
PictureBox StoredBox(int orientation, const PictureBox& upright, uint32_t height, uint32_t width);
PictureBox UprightBox(int orientation, const PictureBox& stored, uint32_t height, uint32_t width);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_ORIENTATION_H_
