// What a job's student starts from.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_INITIAL_WEIGHTS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_INITIAL_WEIGHTS_H_

#include <string>

#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/student_net.h"

namespace distill {

// Random weights keyed by plan.seed; over them the file plan.student.weights below `model_root`, whole or only its
// weights_modules. Errors name the file. The worker's fault: no `model_root`, no such file, a damaged one, or one that
// is not the teacher's though the plan asks for that. The job's: a file of another network.
Status LoadInitialWeights(const JobPlan& plan, const std::string& model_root, StudentNet* net);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_INITIAL_WEIGHTS_H_
