// From the text of a job file to the explicit plan that is stored, shown and run. The format is documented in
// docs/job.md.
//
// A pure function: the fleet is an argument. Thread-safe.
#ifndef DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_
#define DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_

#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"
#include "coordinator/jobfile/fleet_view.h"

namespace distill {

struct JobFileInput {
  std::string yaml;
  std::string file_name = "job.yaml";  // as the user knows it, for messages
  // "stages.1.steps=3", applied in order before validation; at most 100 of at most 4 KiB.
  std::vector<std::string> overrides;
};

struct ExpandedJob {
  JobPlan plan;
  std::vector<std::string> warnings;  // allowed, but probably not meant
};

// kInvalidArgument: the message has one line per problem, all problems of the file:
//     job.yaml:12:9: unknown key 'wieght' in losses[0]; did you mean 'weight'?
// kFailedPrecondition: the file is fine, but no live teacher serves the model it names (or teachers disagree about its
// weights).
StatusOr<ExpandedJob> ExpandJobFile(const JobFileInput& input, const FleetView& fleet);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_
