#include <memory>
#include <utility>

#include "common/metrics/process_metrics.h"
#include "common/service/service_flags.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<std::unique_ptr<HttpServer>> StartServiceHttp(const std::string& listen, MetricsRegistry* metrics,
                                                       std::function<std::string()> ready,
                                                       std::map<std::string, HttpHandler> extra, const HttpTls& tls) {
  if (listen == "off") return std::unique_ptr<HttpServer>();
  std::map<std::string, HttpHandler> routes = std::move(extra);
  metrics->GetGauge("distill_build_info", "Which program this is; always 1.", {{"version", VersionString()}}).Set(1);
  auto process = std::make_shared<ProcessMetrics>(metrics);  // shared: handlers are copied
  routes["/metrics"] = [metrics, process](const HttpRequest&) {
    process->Refresh();
    return HttpResponse{.content_type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics->Serialize()};
  };
  routes["/healthz"] = [](const HttpRequest&) { return HttpResponse{.body = "ok\n"}; };
  routes["/readyz"] = [ready = std::move(ready)](const HttpRequest&) {
    const std::string reason = ready();
    if (reason.empty()) return HttpResponse{.body = "ready\n"};
    return HttpResponse{.status = 503, .body = StrCat("not ready: ", reason, "\n")};
  };
  StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(listen, std::move(routes), {}, tls);
  if (!server.ok()) return Annotate(server.status(), "--http-listen");
  return server;
}

}  // namespace distill
