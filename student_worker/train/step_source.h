// Where a stage's steps get their inputs from. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STEP_SOURCE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STEP_SOURCE_H_

#include <chrono>

#include "common/status.h"
#include "student_worker/pipeline/step_pipeline.h"

namespace distill {

// Called by the training thread.
class StepSource {
 public:
  virtual ~StepSource() = default;
  // The next step's input, waiting at most `timeout`. kDeadlineExceeded: not there yet, call again. Other errors are
  // final.
  virtual StatusOr<StepInput> Next(std::chrono::milliseconds timeout) = 0;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STEP_SOURCE_H_
