// Random crop with zero padding, then horizontal flip: a pure function of (seed, epoch, sample id), so that pixels
// depend on nothing but the job's seed (not on threads, ranks or retries) and teacher and student see the same view. A
// label map moves with its image.
//
// Three draws are taken from CounterRng(seed, kAugment, epoch, sample_id), in this order and always all of them: dy and
// dx in [0, 2 * crop_padding], then one bit for the flip. Output pixel (y, x) is input pixel (y + dy - p, x' + dx - p)
// with x' = W - 1 - x when flipped, else x; zero outside the image.
#ifndef DISTILL_STUDENT_WORKER_DATA_AUGMENT_H_
#define DISTILL_STUDENT_WORKER_DATA_AUGMENT_H_

#include <cstdint>

namespace distill {

struct AugmentOptions {
  uint32_t crop_padding = 0;     // pixels on each side; 0: no crop
  bool horizontal_flip = false;  // with probability one half
};

// The part of an augmented picture that shows the image and no padding: rows [top, bottom), columns [left, right).
// Empty when all of it is padding.
struct VisibleRect {
  uint32_t top = 0, left = 0, bottom = 0, right = 0;
  bool operator==(const VisibleRect&) const = default;
};

// `in` and `out` are uint8 [C, H, W] and do not overlap. Stateless; any thread.
VisibleRect AugmentImage(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t sample_id,
                         uint32_t channels, uint32_t height, uint32_t width, const uint8_t* in, uint8_t* out);

// The label map of the same image, seen as AugmentImage() shows it: the same crop and flip, kIgnoredPixel where that
// pads. `in` and `out` are uint8 [H, W] and do not overlap. Stateless; any thread.
void AugmentLabelMap(const AugmentOptions& options, uint64_t seed, uint64_t epoch, uint64_t sample_id, uint32_t height,
                     uint32_t width, const uint8_t* in, uint8_t* out);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_AUGMENT_H_
