// Commands that put something back to work: resume an ended job, uncordon a worker.
#ifndef DISTILL_COORDINATOR_CLI_REPAIR_COMMANDS_H_
#define DISTILL_COORDINATOR_CLI_REPAIR_COMMANDS_H_

#include "common/exit_codes.h"
#include "coordinator/cli/job_client.h"
#include "coordinator/cli/options.h"

namespace distill::cli {

// `distillctl resume JOB`. Repeating it is harmless: a job that is queued or running stays as it is.
ExitCode RunResume(JobClient& client, const Options& options);
// `distillctl uncordon WORKER`.
ExitCode RunUncordon(JobClient& client, const Options& options);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_REPAIR_COMMANDS_H_
