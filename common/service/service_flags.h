// What every service has in common: flags (logging, HTTP, TLS), signals, health.
//
// Flags may also come from environment variables (DISTILL_<FLAG>, upper case, '-' -> '_': DISTILL_LOG_LEVEL) and, for
// services, from a config file given by --config: TOML, one `flag = value` a line ("log-level = 'debug'"); a flag the
// file misspells is an error. The command line wins over the file, the file over the environment.
#ifndef DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_
#define DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_

#include <CLI/App.hpp>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/http/http_server.h"
#include "common/metrics/metrics.h"
#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

struct ServiceFlags {
  std::string log_level = "info";
  bool log_json = false;
  std::string http_listen = "127.0.0.1:0";  // metrics and health; "off" disables
  std::string ready_file;                   // see WriteReadyFile(); written once ready, for scripts and tests
  RpcSecurity security;
};

// Adds --log-level, --log-json, --http-listen, --ready-file, --config, --tls-ca, --tls-cert, --tls-key, --token-file,
// --insecure, --version. `flags` is written when the app parses and must live until then. Call after the program's own
// options were added: every option that `app` has by then gets its environment variable (but --help, --version and
// --config).
void AddServiceFlags(CLI::App* app, ServiceFlags* flags);
// Adds --tls-ca, --tls-cert, --tls-key, --token-file, --insecure only (clients), each with its environment variable.
void AddSecurityFlags(CLI::App* app, RpcSecurity* security);

// Starts logging as the flags say, under the name `service`. REQUIRES: the app has parsed the flags.
void InitServiceLogging(const ServiceFlags& flags, const std::string& service);

// Blocks SIGINT and SIGTERM in all threads made later and ignores SIGPIPE; call first in main(). Children inherit the
// mask.
void BlockSignals();
// Waits for SIGINT or SIGTERM, or for `RequestStop`. Returns the signal number, 0 for RequestStop. May be called again.
// REQUIRES: BlockSignals() was called.
int WaitForSignal();
// A signal came that WaitForSignal() will report.
bool StopSignalPending();
// From any thread: WaitForSignal returns 0, also when it is called later.
void RequestStop();

// /metrics (with the process's own figures), /healthz (always 200 "ok"), /readyz (200 or 503 with the reason from
// `ready`, empty string = ready), extra routes. `metrics` is not owned and outlives the server; `ready` runs on the
// server's thread, so it must not wait. "off" gives a null pointer. `tls`: see HttpServer.
StatusOr<std::unique_ptr<HttpServer>> StartServiceHttp(const std::string& listen, MetricsRegistry* metrics,
                                                       std::function<std::string()> ready,
                                                       std::map<std::string, HttpHandler> extra = {},
                                                       const HttpTls& tls = {});

// "0.1.0 (cpu)", or "0.1.0 (cuda)" when the CUDA plugin was built.
std::string VersionString();
// "key=value" lines, atomically (temp file and rename). An empty path does nothing. kUnavailable: cannot be written,
// naming the path.
Status WriteReadyFile(const std::string& path, const std::map<std::string, std::string>& values);

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_
