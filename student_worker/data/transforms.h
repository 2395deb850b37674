// The transforms of a job (DataPlan.train_transforms, test_transforms), applied to one picture after another.
//
// What a transform does to a picture is a pure function of (seed, epoch, sample id) and of its place in the list: it
// depends neither on threads, ranks and retries nor on what the others in the list draw. Transform i draws from
// CounterRng(Mix(seed + (i + 1) * kGamma), kTransform, epoch, id), first whether it is done at all (where it has a
// `p`), then what it needs, in the order of its knobs. Label maps move with their pictures: the same part, the nearest
// values, kIgnoredPixel in padding.
#ifndef DISTILL_STUDENT_WORKER_DATA_TRANSFORMS_H_
#define DISTILL_STUDENT_WORKER_DATA_TRANSFORMS_H_

#include <cstdint>
#include <vector>

#include "common/plan/plan.h"
#include "common/plan/transform_schema.h"
#include "common/status.h"
#include "student_worker/data/counter_rng.h"
#include "student_worker/data/picture.h"
#include "student_worker/data/resample.h"

namespace distill {

// Immutable, thread-safe.
class Transforms {
 public:
  Transforms() = default;  // none: pictures stay as they are
  // Completes the knobs of `plans` (CompleteTransform). kInvalidArgument: as there and as SizeAfter.
  static StatusOr<Transforms> Create(const std::vector<TransformPlan>& plans, uint64_t seed);

  // What the list makes of pictures' sizes.
  const TransformedSize& size() const { return size_; }
  // Transforms `picture`; `scratch` holds nothing in between and saves allocations. The part that shows the picture.
  VisibleRect Apply(uint64_t epoch, uint64_t id, Picture* picture, Picture* scratch) const;

  // Whether the first transform makes a new size of a part of the picture, and needs no more of it:
  // random_resized_crop, or resize without fit.
  bool takes_part() const { return takes_part_; }
  // What it takes of a picture of [height, width]. REQUIRES: takes_part().
  WantedPart PartOf(uint64_t epoch, uint64_t id, uint32_t height, uint32_t width) const;
  // As Apply of the whole picture, of which `picture` holds the part `wanted` = PartOf(...) at `box`, perhaps reduced.
  // REQUIRES: takes_part().
  VisibleRect ApplyToPart(uint64_t epoch, uint64_t id, const WantedPart& wanted, const PictureBox& box,
                          Picture* picture, Picture* scratch) const;

 private:
  // What the transform at `place` in the list draws from.
  CounterRng RngOf(size_t place, uint64_t epoch, uint64_t id) const;

  std::vector<TransformPlan> plans_;
  TransformedSize size_;
  bool takes_part_ = false;
  uint64_t seed_ = 0;
};

// The part that random_resized_crop takes of a picture of [height, width]: ten times an area (a share from
// [scale[0], scale[1]] of the picture's) and a ratio (width over height, its logarithm uniform) are drawn; the first
// that fits is placed at random. If none does, the middle, with the nearest ratio. As in torchvision.
CropRect DrawResizedCrop(CounterRng* rng, uint32_t height, uint32_t width, const std::vector<double>& scale,
                         const std::vector<double>& ratio);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TRANSFORMS_H_
