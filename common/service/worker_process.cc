#include "common/service/worker_process.h"

#include <unistd.h>

#include <chrono>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/service/service_flags.h"
#include "common/str_cat.h"

namespace distill {

std::string HostName() {
  char name[256] = {};
  if (gethostname(name, sizeof name - 1) != 0) return "localhost";
  return name;
}

std::string DefaultWorkerId() { return StrCat(HostName(), "-", getpid()); }

StatusOr<std::unique_ptr<FleetClient>> Register(const FleetClient::Options& options,
                                                const FleetClient::Callbacks& callbacks) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (true) {
    StatusOr<std::unique_ptr<FleetClient>> client = FleetClient::Start(options, callbacks);
    if (client.ok() || client.status().code() != StatusCode::kUnavailable || std::chrono::steady_clock::now() >= end)
      return client;
    if (StopSignalPending()) return absl::CancelledError("stopped while waiting for the coordinator");
    LogWarning("the coordinator does not answer yet",
               {{"coordinator", options.coordinator}, {"reason", client.status().message()}});
  }
}

int RegistrationExitCode(const Status& status) {
  switch (status.code()) {
    case StatusCode::kUnavailable:
      return kExitUnreachable;
    case StatusCode::kUnauthenticated:
      return kExitUnauthenticated;
    case StatusCode::kResourceExhausted:  // as many workers are registered as may be
      return kExitTemporary;
    default:
      return kExitConfiguration;
  }
}

}  // namespace distill
