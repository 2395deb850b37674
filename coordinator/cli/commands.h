// The commands of distillctl. Results go to standard output, everything else to standard error.
#ifndef DISTILL_COORDINATOR_CLI_COMMANDS_H_
#define DISTILL_COORDINATOR_CLI_COMMANDS_H_

#include <CLI/App.hpp>
#include <string>

#include "common/exit_codes.h"
#include "common/status.h"
#include "coordinator/cli/options.h"

namespace distill::cli {

// Runs the command called `name` (one that `app` declares). Never throws for what may happen.
ExitCode RunCommand(const std::string& name, const Options& options, const CLI::App& app);

// The exit code for a call's error; `submitting` when the call was SubmitJob, whose refusals are about the job file.
ExitCode ExitCodeFor(const Status& status, bool submitting);
// Prints the error of a call that is not SubmitJob; the exit code for it.
ExitCode Fail(const Status& status);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_COMMANDS_H_
