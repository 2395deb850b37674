// How well the student does on the test set, the work split over the ranks.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_

#include <torch/types.h>

#include <optional>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/student_net.h"
#include "student_worker/data/sample_reader.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/score.h"

namespace distill {

// Scores the answers of `plan`'s student against the labels of `test`: the classes of the largest logits, or of the
// largest probabilities over several views (student_worker/train/evaluation_views.h). All ranks call it together, with
// equal nets; each takes a contiguous part, the counts are summed. A rank's part runs through Lockstep::Together, so
// that a slow rank keeps the others waiting and is not taken for a dead one. Runs in eval mode and leaves the modules'
// modes, parameters and buffers as they were.
// nullopt: some rank was asked to stop meanwhile; all ranks learn it. kCancelled: revoked meanwhile; kAborted: a peer
// failed or is lost; kInvalidArgument: the net answers once per image and the labels are for pixels, or the other way
// round, or it does not take pictures of a view's size; otherwise what this rank met with, an exception (memory)
// included.
StatusOr<std::optional<Score>> Evaluate(StudentNet* net, const SampleReader& test, const JobPlan& plan,
                                        Lockstep* lockstep, const JobControl& control, torch::Device device);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
