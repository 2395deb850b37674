// What a job needs at once against what there is room for: a step's answers against `prefetch`, pixels against a
// message, values a channel against what a batch norm can train with. All of it is known at submit, so that no job
// waits in the queue only to fail at its first step.
#ifndef DISTILL_COORDINATOR_JOBFILE_SIZE_CHECKS_H_
#define DISTILL_COORDINATOR_JOBFILE_SIZE_CHECKS_H_

#include "common/zoo/architecture.h"
#include "coordinator/jobfile/job_draft.h"
#include "coordinator/jobfile/model_taps.h"
#include "coordinator/jobfile/problems.h"

namespace distill {

// Looks at job.plan, stages included, and adds a problem with the sum for each limit that it exceeds. `teacher` null:
// the teacher's sizes are not known, and only the student's are checked.
void CheckSizes(const JobDraft& job, const Architecture& student, const ModelTaps* teacher, Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_SIZE_CHECKS_H_
