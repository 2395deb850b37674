// What the two kinds of worker programs, distill-teacher and distill-student, do alike: a name of their own, and the
// way into the fleet.
#ifndef DISTILL_COMMON_SERVICE_WORKER_PROCESS_H_
#define DISTILL_COMMON_SERVICE_WORKER_PROCESS_H_

#include <memory>
#include <string>

#include "common/fleet/fleet_client.h"
#include "common/status.h"

namespace distill {

// This machine's, "localhost" when it has none.
std::string HostName();
// "HOST-PID": of a worker that --id does not name.
std::string DefaultWorkerId();

// FleetClient::Start, again and again for 30 s while the coordinator does not answer (kUnavailable). kCancelled: a
// signal came that WaitForSignal() will report.
StatusOr<std::unique_ptr<FleetClient>> Register(const FleetClient::Options& options,
                                                const FleetClient::Callbacks& callbacks);
// Of a process that could not register (common/exit_codes.h).
int RegistrationExitCode(const Status& status);

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_WORKER_PROCESS_H_
