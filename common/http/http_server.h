// A small HTTP/1.1 server (Boost.Beast) for /metrics, /healthz, /readyz and the coordinator's status page. GET and
// HEAD, and POST where a route asks for it.
//
// With a certificate the port speaks both: TLS to peers that begin with a TLS handshake, plain HTTP to all others
// (probes and scrapers go on as before). HttpRequest::tls tells a handler which it was; what must not travel in the
// clear is the handler's business.
//
// One thread named "http". Handlers run on it: they must be quick and must not block; an exception they throw becomes a
// 500. Malformed requests get 400, header sections over the limit 431, a request body over the limit 413; then the
// connection is closed. Connections above the limit wait in the kernel's queue until another one ends.
#ifndef DISTILL_COMMON_HTTP_HTTP_SERVER_H_
#define DISTILL_COMMON_HTTP_HTTP_SERVER_H_

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/status.h"

namespace distill {

struct HttpRequest {
  std::string method;
  std::string path;                            // without the query
  std::map<std::string, std::string> query;    // decoded
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // of a POST
  std::string peer;                            // address of the other end, without the port
  bool tls = false;
};
struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::map<std::string, std::string> headers;
};
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpLimits {
  size_t header_bytes = 16 << 10;
  size_t body_bytes = 16 << 10;
  std::chrono::milliseconds idle{30000};  // a connection that sends or takes nothing for so long is closed
  size_t connections = 64;
};

// A server's certificate chain and private key, PEM. Empty: plain HTTP only.
struct HttpTls {
  std::string certificate, key;
};

// Thread-safe.
class HttpServer {
 public:
  // Routes: exact path, or a prefix ending in "/*" (the longest wins; an exact path wins over any); "POST /path" takes
  // the posts to an exact path. Unknown paths get 404, other methods 405. kUnavailable: the port is in use;
  // kInvalidArgument: bad address, or not one of this machine; certificate or key that cannot be used.
  static StatusOr<std::unique_ptr<HttpServer>> Start(const std::string& listen,
                                                     std::map<std::string, HttpHandler> routes,
                                                     const HttpLimits& limits = {}, const HttpTls& tls = {});
  virtual ~HttpServer() = default;  // stops, closing all connections, and joins
  virtual int port() const = 0;
  virtual std::string address() const = 0;  // host:port as bound
};

}  // namespace distill

#endif  // DISTILL_COMMON_HTTP_HTTP_SERVER_H_
