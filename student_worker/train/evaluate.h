// Test accuracy of the student, the work split over the ranks.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_

#include <torch/types.h>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/data/dataset.h"
#include "student_worker/train/lockstep.h"

namespace distill {

// Share of `test` whose largest logit is the label's, in [0, 1]. All ranks call it together, with equal nets; each
// takes a contiguous part, the counts are summed. Runs in eval mode and leaves the modules' modes, parameters and
// buffers as they were. kCancelled: revoked meanwhile; kAborted: a peer is lost.
StatusOr<double> EvaluateAccuracy(ZooNet* net, const Dataset& test, const ModelSpec& spec, Lockstep* lockstep,
                                  const JobControl& control, torch::Device device);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_EVALUATE_H_
