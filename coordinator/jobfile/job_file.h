// From the text of a job file to the explicit plan that is stored, shown and run. The format is documented in
// docs/job.md.
//
// A pure function: the fleet is an argument. Thread-safe.
#ifndef DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_
#define DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_

#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "coordinator/jobfile/fleet_view.h"
#include "coordinator/jobfile/problems.h"

namespace distill {

struct JobFileInput {
  std::string yaml;
  std::string file_name = "job.yaml";  // as the user knows it, for messages
  // "stages.1.steps=3", applied in order before validation; at most 100 of at most 4 KiB.
  std::vector<std::string> overrides;
};

struct ExpandedJob {
  JobPlan plan;                      // complete when there are no problems
  std::vector<JobProblem> problems;  // all of the file, in its order; not empty: the job is refused
  std::vector<JobProblem> warnings;  // allowed, but probably not meant
};

ExpandedJob ExpandJobFile(const JobFileInput& input, const FleetView& fleet);

// As a line for people: "job.yaml:12:9: unknown key 'wieght' in stages[0].losses[0]; did you mean 'weight'?".
std::string Describe(const JobFileInput& input, const JobProblem& problem);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_JOB_FILE_H_
