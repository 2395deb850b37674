// Completion for bash, made from the declared command line so that it cannot fall behind.
#ifndef DISTILL_COORDINATOR_CLI_COMPLETION_H_
#define DISTILL_COORDINATOR_CLI_COMPLETION_H_

#include <CLI/App.hpp>
#include <string>

namespace distill::cli {

// A script that completes commands, flags, the values of --output and --color, file names, and jobs (by asking the
// coordinator).
std::string BashCompletion(const CLI::App& app);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_COMPLETION_H_
