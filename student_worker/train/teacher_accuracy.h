// Test accuracy of the teacher, measured as the job sees it: over the feature stream. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_TEACHER_ACCURACY_H_
#define DISTILL_STUDENT_WORKER_TRAIN_TEACHER_ACCURACY_H_

#include <cstdint>
#include <functional>

#include "common/status.h"
#include "student_worker/data/dataset.h"
#include "student_worker/feature/teacher_pool.h"

namespace distill {

// Sends all test images through `pool`, whose only tap is the network's output as float32, a few batches at a time, and
// counts how often the largest logit is the label's. Returns a share in [0, 1]. `tick` is called about every 200 ms
// from the caller's thread while waiting: it may refresh the pool's teachers, and returns false to give up
// (kCancelled). Other errors are the pool's; kInvalidArgument: answers that are not float32 [n, K].
StatusOr<double> MeasureTeacherAccuracy(TeacherPool* pool, const Dataset& test, uint32_t batch_size,
                                        const std::function<bool()>& tick);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_TEACHER_ACCURACY_H_
