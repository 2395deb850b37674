// The files a finished job leaves in <work-dir>/<job_id>/: student.safetensors, student.pt and result.json. No torch
// here (the exports themselves are common/zoo/weights.h).
#ifndef DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_

#include <string>

#include "common/fleet/fleet_client.h"
#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Fills in the sizes of both exported files. kNotFound: one is missing.
Status MeasureFiles(JobArtifacts* artifacts);

// result.json: job, plan digest, seed, architecture, parameters, accuracies (null when not measured), and each file's
// name, size and sha256. Written atomically.
Status WriteResult(const std::string& path, const std::string& job_id, const JobPlan& plan,
                   const std::string& plan_digest, const JobArtifacts& artifacts);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_
