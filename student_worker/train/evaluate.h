// How well the student does on the test set, the work split over the ranks.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_

#include <torch/types.h>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/data/dataset.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/score.h"

namespace distill {

// Scores the classes of the largest logits against the labels of `test`. All ranks call it together, with equal nets;
// each takes a contiguous part, the counts are summed. Runs in eval mode and leaves the modules' modes, parameters and
// buffers as they were. kCancelled: revoked meanwhile; kAborted: a peer is lost; kInvalidArgument: the net answers once
// per image and the labels are for pixels, or the other way round.
StatusOr<Score> Evaluate(ZooNet* net, const Dataset& test, const ModelSpec& spec, Lockstep* lockstep,
                         const JobControl& control, torch::Device device);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
