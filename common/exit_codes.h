// Exit codes of all programs, documented in docs/cli.md and docs/services.md. Kubernetes' pod failure policy and
// scripts read them.
#ifndef DISTILL_COMMON_EXIT_CODES_H_
#define DISTILL_COMMON_EXIT_CODES_H_

namespace distill {

enum ExitCode : int {
  kExitOk = 0,
  kExitInternal = 1,         // a bug, or something nobody foresaw
  kExitBadData = 1,          // distill-data check: something is wrong with the data
  kExitUsage = 2,            // wrong command line
  kExitInvalidJob = 3,       // distillctl: the job file was refused
  kExitJobFailed = 4,        // distillctl submit/watch: the job ended FAILED
  kExitJobCancelled = 5,     // distillctl submit/watch: the job ended CANCELLED
  kExitNotFound = 6,         // distillctl: no such job or model
  kExitUnreachable = 7,      // the coordinator does not answer
  kExitUnauthenticated = 8,  // the coordinator refuses the credentials
  kExitConfiguration = 42,   // services: configuration or input is wrong; restarting cannot help
  kExitDiskFull = 74,        // services: a write failed for lack of space or rights
  kExitTemporary = 75,       // services: try again
  kExitInterrupted = 130,    // distillctl: SIGINT; the job goes on
  kExitTerminated = 143,     // services: SIGTERM, after an orderly stop
};

}  // namespace distill

#endif  // DISTILL_COMMON_EXIT_CODES_H_
