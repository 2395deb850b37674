// Reading the job file that a user names.
#ifndef DISTILL_COORDINATOR_CLI_JOB_FILE_H_
#define DISTILL_COORDINATOR_CLI_JOB_FILE_H_

#include <string>

#include "common/status.h"

namespace distill::cli {

inline constexpr size_t kMaxJobFileBytes = 1 << 20;  // what the coordinator accepts

struct JobFile {
  std::string name;  // for messages: the path as given, "<stdin>" for "-"
  std::string content;
};

// Reads `path`, or standard input when it is "-".
// kNotFound: missing or unreadable, with the system's reason. kInvalidArgument: empty, larger than kMaxJobFileBytes, or
// not UTF-8 (with line and column of the first bad byte).
StatusOr<JobFile> ReadJobFile(const std::string& path);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_JOB_FILE_H_
