// What every service has in common: flags (logging, HTTP, TLS), signals, health.
//
// Flags may also come from environment variables (DISTILL_<FLAG>, upper case, '-' -> '_') and from a YAML/TOML config file given
// by --config; the command line wins over the environment, the environment over the file.
#ifndef DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_
#define DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_

#include <CLI/App.hpp>
#include <atomic>
#include <functional>
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
  std::string ready_file;                   // written (host:port lines) once ready, for scripts and tests
  RpcSecurity security;
};

// Adds --log-level, --log-json, --http-listen, --ready-file, --tls-ca, --tls-cert, --tls-key, --token-file, --insecure, --version.
void AddServiceFlags(CLI::App* app, ServiceFlags* flags);
// Adds --tls-ca, --tls-cert, --tls-key, --token-file, --insecure only (clients).
void AddSecurityFlags(CLI::App* app, RpcSecurity* security);

// Blocks SIGINT and SIGTERM in all threads made later; call first in main().
void BlockSignals();
// Waits for SIGINT or SIGTERM, or for `RequestStop`. Returns the signal number, 0 for RequestStop.
int WaitForSignal();
// From any thread: WaitForSignal returns 0.
void RequestStop();

// /metrics, /healthz (always 200 "ok"), /readyz (200 or 503 with the reason from `ready`, empty string = ready), extra routes.
StatusOr<std::unique_ptr<HttpServer>> StartServiceHttp(const std::string& listen, MetricsRegistry* metrics,
                                                       std::function<std::string()> ready,
                                                       std::map<std::string, HttpHandler> extra = {});

// "0.1.0 (cpu)" etc.
std::string VersionString();
// "key=value" lines, atomically (temp file and rename).
Status WriteReadyFile(const std::string& path, const std::map<std::string, std::string>& values);

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_SERVICE_FLAGS_H_
