// A small HTTP/1.1 server (Boost.Beast) for /metrics, /healthz, /readyz and the coordinator's status page. GET and
// HEAD, and POST where a route asks for it.
//
// With a certificate the port speaks both: TLS to peers that begin with a TLS handshake, plain HTTP to all others
// (probes and scrapers go on as before). HttpRequest::tls tells a handler which it was; what must not travel in the
// clear is the handler's business.
//
// One thread named "http". Handlers run on it: they must be quick and must not block; an exception they throw becomes a
// 500. What may block (files on a network's disk) is left to HttpResponse::later and HttpResponse::file, which use a
// second thread, "http-files", made when it is first needed: probes and scrapes are answered whatever it waits for.
// Malformed requests get 400, header sections over the limit 431, a request body over the limit 413; then the
// connection is closed. Connections above the limit wait in the kernel's queue until another one ends.
#ifndef DISTILL_COMMON_HTTP_HTTP_SERVER_H_
#define DISTILL_COMMON_HTTP_HTTP_SERVER_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

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
// A part of an open file, read in pieces while it is sent. Used by one thread at a time.
class HttpFile {
 public:
  // Takes the descriptor. Sends `length` bytes from `offset` on. `name` is for messages.
  HttpFile(int fd, std::string name, uint64_t offset, uint64_t length)
      : fd_(fd), name_(std::move(name)), offset_(offset), left_(length) {}
  ~HttpFile();
  HttpFile(const HttpFile&) = delete;
  HttpFile& operator=(const HttpFile&) = delete;

  uint64_t left() const { return left_; }  // bytes that are still to be read
  // The next bytes, at most kPiece. kDataLoss: the file has become shorter; kUnavailable: it cannot be read.
  static constexpr size_t kPiece = 256 << 10;
  Status Read(std::string* piece);

 private:
  const int fd_;
  const std::string name_;
  uint64_t offset_, left_;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::map<std::string, std::string> headers;
  // Sent instead of `body`, never in memory as a whole. When it cannot be read to its end, the connection is closed, by
  // which the client sees that the answer is cut off.
  std::shared_ptr<HttpFile> file;
  // When set, all else in here is ignored: it is called on the thread "http-files", where it may block, and its result
  // (whose own `later` is ignored) is the answer.
  std::function<HttpResponse()> later;
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
