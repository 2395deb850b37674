// The weights of a stage that were the best on held-out images (StagePlan.select, patience), kept in the stage's
// checkpoints beside the optimizer so that a resumed stage knows them. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_BEST_WEIGHTS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_BEST_WEIGHTS_H_

#include <cstdint>
#include <limits>

#include "common/safetensors/safetensors.h"

namespace distill {

// A value; thread-compatible.
struct BestWeights {
  double loss = std::numeric_limits<double>::infinity();  // what is lowest: the objective, or the metric's negative
  uint32_t since = 0;                                     // measurements since then, also those that gave no number
  SafetensorsFile model;                                  // empty: nothing finite was measured yet

  // Adds tensors "best.<name>" and two numbers to a checkpoint's optimizer file.
  void AddTo(SafetensorsFile* file) const;
  // Takes out of the file what AddTo put in; what a file without it gives is a fresh BestWeights.
  static BestWeights TakeFrom(SafetensorsFile* file);
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_BEST_WEIGHTS_H_
