// distill-coordinator: job files, stages, membership. See --help; docs/design.md says what it is for.
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <system_error>

#include "common/exit_codes.h"
#include "common/log.h"
#include "common/metrics/process_metrics.h"
#include "common/rpc/security_files.h"
#include "common/rpc/server.h"
#include "common/service/certificate_metrics.h"
#include "common/service/service_flags.h"
#include "common/str_cat.h"
#include "coordinator/core/coordinator.h"
#include "coordinator/core/ticker.h"
#include "coordinator/services/fleet_service.h"
#include "coordinator/services/job_service.h"
#include "coordinator/services/store_service.h"
#include "coordinator/web/status_page.h"

namespace distill {
namespace {

struct Flags {
  std::string listen = "127.0.0.1:7070";
  std::string state_dir = "distill-state";
  std::string files_dir;
  double lease = 5;
  double heartbeat = 1;
  uint32_t max_restarts = 10;
  double hold = 60;
  double set_aside_limit = 3600;
  double stuck_limit = 60;
  double stall_limit = 900;
  double hang_limit = 14400;
  double cancel_grace = 60;
  ServiceFlags service;
};

int ExitCodeOf(const Status& status) {
  switch (status.code()) {
    case StatusCode::kResourceExhausted:
    case StatusCode::kPermissionDenied:
      return kExitDiskFull;
    case StatusCode::kUnavailable:
      return kExitTemporary;
    case StatusCode::kInternal:
      return kExitInternal;
    default:
      return kExitConfiguration;
  }
}

Status MakeStateDir(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::PermissionDeniedError(StrCat("--state-dir ", path, " cannot be made: ", error.message()));
  if (access(path.c_str(), W_OK | X_OK) != 0) {
    return absl::PermissionDeniedError(StrCat("--state-dir ", path, " is not writable: ", std::strerror(errno)));
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<Coordinator>> OpenCoordinator(const Flags& flags, MetricsRegistry* metrics,
                                                       std::function<void()> decision_due) {
  DISTILL_RETURN_IF_ERROR(MakeStateDir(flags.state_dir));
  // Well below a lease: who waits for a report's answer while somebody holds the store's lock is to try again.
  DISTILL_ASSIGN_OR_RETURN(std::unique_ptr<JobStore> store,
                           OpenSqliteJobStore(flags.state_dir + "/coordinator.db", std::min(1.0, flags.lease / 8)));
  Coordinator::Options options;
  options.heartbeat_seconds = flags.heartbeat;
  options.lease_seconds = flags.lease;
  options.max_restarts = flags.max_restarts;
  options.hold_seconds = flags.hold;
  options.set_aside_limit_seconds = flags.set_aside_limit;
  options.cancel_grace_seconds = flags.cancel_grace;
  options.stuck_limit_seconds = flags.stuck_limit;
  options.stall_limit_seconds = flags.stall_limit;
  options.hang_limit_seconds = flags.hang_limit;
  options.decision_due = std::move(decision_due);
  options.version = VersionString();
  return Coordinator::Create(options, std::move(store), SystemClock(), metrics);
}

// Serves until a signal comes or the store is lost. The result is the reason to stop; ok for a signal.
Status Serve(const Flags& flags) {
  MetricsRegistry metrics;
  ExportCertificateExpiry(flags.service.security, &metrics);
  Ticker* ticker_or_null = nullptr;  // set before the first call can come
  DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<Coordinator> coordinator, OpenCoordinator(flags, &metrics, [&] {
                             if (ticker_or_null != nullptr) ticker_or_null->Poke();
                           }));
  // Four times a heartbeat: leases are seen to end within that.
  Ticker ticker("coord-tick", absl::Seconds(flags.heartbeat / 4), [&] {
    coordinator->Tick();
    if (!coordinator->health().ok()) RequestStop();
  });
  ticker_or_null = &ticker;
  // Apart from the above: asking a hanging volume for its size must not stop decisions.
  Ticker folder_ticker("state-size", absl::Seconds(15), [&] { MeasureFolder("state", flags.state_dir, &metrics); });
  MeasureFolder("state", flags.state_dir, &metrics);
  const std::unique_ptr<grpc::Service> jobs = MakeJobService(coordinator.get());
  const std::unique_ptr<grpc::Service> fleet = MakeFleetService(coordinator.get());
  const std::unique_ptr<grpc::Service> store = MakeStoreService(&coordinator->rendezvous(), coordinator->epoch());
  RpcServer::Options rpc;
  rpc.listen = flags.listen;
  rpc.security = flags.service.security;
  DISTILL_ASSIGN_OR_RETURN(const std::unique_ptr<RpcServer> server,
                           RpcServer::Start(rpc, {jobs.get(), fleet.get(), store.get()}));
  const auto ready = [&]() -> std::string {
    const Status health = coordinator->health();
    return health.ok() ? "" : std::string(health.message());
  };
  DISTILL_ASSIGN_OR_RETURN(const SecurityFiles files, ReadSecurityFiles(flags.service.security));
  const web::StatusPageOptions page{.listen = flags.service.http_listen,
                                    .token = files.token,
                                    .tls = !files.cert.empty(),
                                    .files_dir = flags.files_dir,
                                    .insecure = flags.service.security.insecure};
  DISTILL_ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpServer> http,
      StartServiceHttp(flags.service.http_listen, &metrics, ready, web::StatusPageRoutes(coordinator.get(), page),
                       {.certificate = files.cert, .key = files.key}));
  std::map<std::string, std::string> addresses = {{"address", server->address()}};
  if (http != nullptr) addresses["http"] = http->address();
  DISTILL_RETURN_IF_ERROR(WriteReadyFile(flags.service.ready_file, addresses));
  LogInfo("coordinator ready", {{"address", server->address()},
                                {"http", http == nullptr ? "off" : http->address()},
                                {"state_dir", flags.state_dir},
                                {"epoch", coordinator->epoch()}});
  const int signal = WaitForSignal();
  LogInfo("stopping", {{"signal", signal}});
  server->SetServing(false);
  ticker.Stop();
  // Watchers hang on open streams; they learn of the end by these being cancelled.
  server->Stop(std::chrono::milliseconds(500));
  return coordinator->health();
}

int Main(int argc, char** argv) {
  BlockSignals();
  Flags flags;
  CLI::App app("distill-coordinator: keeps jobs, gathers students and teachers, runs stages one by one.");
  app.add_option("--listen", flags.listen, "host:port for users and workers")->capture_default_str();
  app.add_option("--state-dir", flags.state_dir, "folder of the job store; made when absent")->capture_default_str();
  app.add_option("--files-dir", flags.files_dir,
                 "folder where this machine sees the students' --work-dir, read only: the status page links to "
                 "checkpoints and results in it");
  app.add_option("--heartbeat", flags.heartbeat, "seconds between heartbeats of workers")
      ->capture_default_str()
      ->check(CLI::Range(0.05, 60.0));
  app.add_option("--lease", flags.lease, "seconds of silence after which a worker is lost")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 600.0));
  app.add_option("--max-restarts", flags.max_restarts,
                 "times in a row a job's group is re-formed without any progress before the job fails")
      ->capture_default_str();
  app.add_option("--hold", flags.hold, "seconds a job that lost a student keeps the others from later jobs")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 86400.0));
  app.add_option("--set-aside-limit", flags.set_aside_limit,
                 "seconds a queued job waits for others than the students that failed it by a fault of their own")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e7));
  app.add_option("--cancel-grace", flags.cancel_grace,
                 "seconds the students of a cancelled job may take to write a checkpoint and stop")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 86400.0));
  app.add_option("--stuck-limit", flags.stuck_limit,
                 "seconds a student may take to leave a job that it holds no rank of; then it counts as stuck")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 86400.0));
  app.add_option("--stall-limit", flags.stall_limit,
                 "seconds without any news from the ranks of a running job after which it is said to stall")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 1e7));
  app.add_option("--hang-limit", flags.hang_limit,
                 "seconds without any news from the ranks of a running job after which its group is re-formed without "
                 "the one that hangs; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1e7));
  AddServiceFlags(&app, &flags.service);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  InitServiceLogging(flags.service, "coordinator");
  const Status status = Serve(flags);
  if (status.ok()) return kExitTerminated;
  LogError("coordinator stopped", {{"error", status.message()}});
  return ExitCodeOf(status);
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) {
  try {
    return distill::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "distill-coordinator: %s\n", error.what());
    return distill::kExitInternal;
  }
}
