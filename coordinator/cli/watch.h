// Following a job: prints its progress until it ends.
#ifndef DISTILL_COORDINATOR_CLI_WATCH_H_
#define DISTILL_COORDINATOR_CLI_WATCH_H_

#include "common/exit_codes.h"
#include "coordinator/cli/job_client.h"
#include "coordinator/cli/options.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// Follows `job` (its state as known so far) to its end: a display redrawn in place when standard output is a terminal,
// plain lines otherwise; with --output json the lines go to standard error and the ended job to standard output; with
// --quiet no lines. Outlives restarts of the coordinator up to --timeout. Returns kExitOk, kExitJobFailed or
// kExitJobCancelled by how the job ended, kExitInterrupted after SIGINT (the job goes on), or the code of the error
// that stopped it.
ExitCode WatchJob(JobClient& client, const v1::Job& job, const Options& options);

// Prints the job's events as they come, until it ends. The event after `options.after` is the first. One JSON object a
// line with --output json. Returns as WatchJob does, but kExitOk however the job ended.
ExitCode FollowEvents(JobClient& client, const v1::Job& job, const Options& options);

// Waits without printing until `job` has ended, and stores its last state there. OK, or as FollowStream.
Status WaitForEnd(JobClient& client, v1::Job* job, const Options& options);

// Error or interruption of a follow: prints it with what the user can do next, and gives the exit code.
ExitCode EndFollow(const Status& status, const v1::Job& job, const Options& options);

// Seconds since 1970.
double Now();

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_WATCH_H_
