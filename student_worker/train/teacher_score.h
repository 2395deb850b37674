// How well the teacher does on the test set, measured as the job sees it: over the feature stream.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_TEACHER_SCORE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_TEACHER_SCORE_H_

#include <cstdint>
#include <functional>

#include "common/plan/plan.h"
#include "common/status.h"
#include "student_worker/data/sample_reader.h"
#include "student_worker/feature/teacher_pool.h"
#include "student_worker/train/score.h"

namespace distill {

// Sends all test images, in the views that `plan` asks for (student_worker/train/evaluation_views.h), through `pool`,
// whose only tap is the network's output as float32, a few batches at a time, and scores the answers against the
// labels. Batches are of at most as many images as a rank trains with at once, fewer where the answers of so many would
// not fit the plan's prefetch window, or their pixels a message (full-size logits of 19 classes at 512 x 1024 are 38
// MiB an image). `tick` is called about every 200 ms from the caller's thread while waiting: it may refresh the pool's
// teachers, and returns false to give up (kCancelled). Other errors are the pool's; kInvalidArgument: answers that are
// not float32 [n, K], or [n, K, h, w] where the labels are for pixels.
StatusOr<Score> MeasureTeacherScore(TeacherPool* pool, const SampleReader& test, const JobPlan& plan,
                                    const std::function<bool()>& tick);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_TEACHER_SCORE_H_
