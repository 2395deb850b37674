// Which images the stages of a job draw from: with and without labels, and those held out to measure on.
#ifndef DISTILL_STUDENT_WORKER_DATA_TRAINING_IMAGES_H_
#define DISTILL_STUDENT_WORKER_DATA_TRAINING_IMAGES_H_

#include <cstdint>
#include <memory>

#include "common/plan/plan.h"
#include "common/status.h"
#include "student_worker/data/dataset.h"

namespace distill {

// A data set cut in two, by a shuffle keyed by `seed`: `count` images to measure on and the others to train on, each in
// the order of the whole, with their labels or label maps. kInvalidArgument: not fewer than there are.
struct HeldOutSplit {
  std::shared_ptr<const Dataset> train;
  std::shared_ptr<const Dataset> held_out;
};
StatusOr<HeldOutSplit> HoldOut(std::shared_ptr<const Dataset> whole, uint64_t count, uint64_t seed);

// What the stages of a job draw from.
struct TrainingImages {
  std::shared_ptr<const Dataset> labelled;  // with labels or label maps; null: none
  std::shared_ptr<const Dataset> all;  // the labelled ones, with the same numbers, then those without labels. Has no
                                       // label maps when there are any of the latter.
  std::shared_ptr<const Dataset> held_out;  // to measure on; null: none
};

// Puts `holdout` images aside: labelled ones, so that every stage can be measured on them; without any label, others.
// Errors as HoldOut.
StatusOr<TrainingImages> PrepareTrainingImages(const DataSplits& splits, uint64_t holdout, uint64_t seed);

// The images of one stage: all when it may use unlabelled ones or takes no step, else those with labels.
// kInvalidArgument, naming the stage: it needs labels and there are none, its images are fewer than a batch, or it
// reads labels and may use images without.
StatusOr<std::shared_ptr<const Dataset>> ImagesOfStage(const TrainingImages& images, const StagePlan& stage,
                                                       uint32_t batch_size);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TRAINING_IMAGES_H_
