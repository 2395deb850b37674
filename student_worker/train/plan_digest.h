// A fingerprint of a job's plan: checkpoints carry it, so that state of one plan is never continued under another.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_PLAN_DIGEST_H_
#define DISTILL_STUDENT_WORKER_TRAIN_PLAN_DIGEST_H_

#include <string>

#include "common/plan/plan.h"

namespace distill {

// sha256 of the plan's deterministic protobuf bytes. Equal plans give equal digests in every version of the program
// that knows the same fields; a field that is at its default does not count.
std::string PlanDigest(const JobPlan& plan);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_PLAN_DIGEST_H_
