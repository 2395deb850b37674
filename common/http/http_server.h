// A small HTTP/1.1 server (Boost.Beast) for /metrics, /healthz, /readyz and the coordinator's status page. GET and HEAD only.
//
// One thread named "http". Handlers run on it: they must be quick and must not block. Requests over 16 KiB get 431, idle connections
// are closed after 30 s, at most 64 connections are served at once.
#ifndef DISTILL_COMMON_HTTP_HTTP_SERVER_H_
#define DISTILL_COMMON_HTTP_HTTP_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/status.h"

namespace distill {

struct HttpRequest {
  std::string method;
  std::string path;                          // without the query
  std::map<std::string, std::string> query;  // decoded
  std::map<std::string, std::string> headers;  // names in lower case
};
struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::map<std::string, std::string> headers;
};
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

class HttpServer {
 public:
  // Routes: exact path, or a prefix ending in "/*". Unknown paths get 404, other methods 405.
  // kUnavailable: the port is in use; kInvalidArgument: bad address.
  static StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen, std::map<std::string, HttpHandler> routes);
  virtual ~HttpServer() = default;  // stops and joins
  virtual int port() const = 0;
  virtual std::string address() const = 0;  // host:port as bound
};

}  // namespace distill

#endif  // DISTILL_COMMON_HTTP_HTTP_SERVER_H_
