// The status page on the coordinator's HTTP port: files, JSON, login. docs/status-page.md describes it to users.
#ifndef DISTILL_COORDINATOR_WEB_STATUS_PAGE_H_
#define DISTILL_COORDINATOR_WEB_STATUS_PAGE_H_

#include <functional>
#include <map>
#include <string>

#include "common/http/http_server.h"
#include "coordinator/core/coordinator.h"

namespace distill::web {

struct StatusPageOptions {
  std::string listen;  // host:port of the HTTP server
  std::string token;   // "": none is asked for
  bool tls = false;    // the server has a certificate
  // Where this machine sees the students' --work-dir; "": files are told by their paths only.
  std::string files_dir;
  bool insecure = false;        // serve the page off loopback without TLS or token
  std::function<double()> now;  // seconds since 1970; null: the system's clock
};

// Routes for HttpServer: "/", "/assets/*", "/login", "POST /login", "POST /logout", "/api/v1/*", "/files/*". Data needs
// the token (login.h); the page's files are the same in every build and need none. Off loopback the page is refused
// with 403 unless there are TLS and a token, or `insecure`. `coordinator` is not owned and outlives the server.
std::map<std::string, HttpHandler> StatusPageRoutes(Coordinator* coordinator, const StatusPageOptions& options);

}  // namespace distill::web

#endif  // DISTILL_COORDINATOR_WEB_STATUS_PAGE_H_
