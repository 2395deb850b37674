// Pictures made smaller by a whole factor f (DataPlan.shrink), each side divided by it.
//
// Output pixel (y, x) stands for the box of f x f input pixels from (f * y, f * x) on. Whole-number arithmetic: the
// same pixels on every machine.
#ifndef DISTILL_STUDENT_WORKER_DATA_SHRINK_H_
#define DISTILL_STUDENT_WORKER_DATA_SHRINK_H_

#include <cstdint>

namespace distill {

// The box's mean, rounded to the nearest value (a half up). `in` is [C, height, width], `out` [C, height / f, width /
// f]; they do not overlap. Stateless; any thread. REQUIRES: factor >= 1 divides height and width.
void ShrinkImage(uint32_t channels, uint32_t height, uint32_t width, uint32_t factor, const uint8_t* in, uint8_t* out);

// The value of the box's middle pixel, (f / 2, f / 2) in it: class ids have no mean. `in` is [height, width], `out`
// [height / f, width / f]; otherwise as ShrinkImage.
void ShrinkLabelMap(uint32_t height, uint32_t width, uint32_t factor, const uint8_t* in, uint8_t* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_SHRINK_H_
