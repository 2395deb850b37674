// The files a finished job leaves in <work-dir>/<job_id>/: student.safetensors, student.pt and result.json. No torch
// here (the exports themselves are common/zoo/weights.h).
#ifndef DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_

#include <cstdint>
#include <string>

#include "common/fleet/fleet_client.h"
#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Fills in the sizes of both exported files. kNotFound: one is missing.
Status MeasureFiles(JobArtifacts* artifacts);

// Steps of all stages together.
struct StepCounts {
  uint64_t total = 0;
  uint64_t skipped = 0;  // of these: nothing was learnt, because a teacher's map held NaN or infinity
};

// result.json: job, plan digest, seed, architecture, parameters, accuracies (null when not measured), steps, and each
// file's name, size and sha256. Written atomically.
Status WriteResult(const std::string& path, const std::string& job_id, const JobPlan& plan,
                   const std::string& plan_digest, const JobArtifacts& artifacts, const StepCounts& steps);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_ARTIFACTS_H_
