// RandAugment (Cubuk et al., 2020, arXiv:1909.13719) with the operations and magnitudes of torchvision's RandAugment on
// uint8 tensors: a few operations, drawn from fourteen, all of one magnitude.
//
// Geometry takes the nearest value; what comes from beside the picture is `fill`. Label maps do not move with it: it is
// for pictures with one label. All are stateless; any thread.
#ifndef DISTILL_STUDENT_WORKER_DATA_RAND_AUGMENT_H_
#define DISTILL_STUDENT_WORKER_DATA_RAND_AUGMENT_H_

#include <array>
#include <cstdint>
#include <string_view>

#include "student_worker/data/counter_rng.h"
#include "student_worker/data/picture.h"

namespace distill {

// torchvision's names, in its order, which the draws follow.
inline constexpr std::array<std::string_view, 14> kAugmentOps = {
    "Identity", "ShearX",   "ShearY",    "TranslateX", "TranslateY", "Rotate",       "Brightness",
    "Color",    "Contrast", "Sharpness", "Posterize",  "Solarize",   "AutoContrast", "Equalize"};

// The magnitude of `op` at place `bin` of `bins` equal steps (bin < bins, bins >= 2) for pictures of [height, width],
// before its sign: shares of a side for shears, pixels, degrees, 1 - factor, bits, a threshold as a share of 255. 0 for
// those that have none.
double AugmentMagnitude(std::string_view op, uint32_t bin, uint32_t bins, uint32_t height, uint32_t width);

// Does one operation. `scratch` holds nothing in between. REQUIRES: op is one of kAugmentOps, no label map.
void ApplyAugment(std::string_view op, double magnitude, uint8_t fill, Picture* picture, Picture* scratch);

// `num_ops` operations, each drawn anew, those that have one with a random sign.
void RandAugment(uint32_t num_ops, uint32_t bin, uint32_t bins, uint8_t fill, CounterRng* rng, Picture* picture,
                 Picture* scratch);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_RAND_AUGMENT_H_
