// A small HTTP/1.1 server (Boost.Beast) for /metrics, /healthz, /readyz and the coordinator's status page. GET and
// HEAD, and POST where a route asks for it.
//
// With a certificate the port speaks both: TLS to peers that begin with a TLS handshake, plain HTTP to all others
// (probes and scrapers go on as before). HttpRequest::tls tells a handler which it was; what must not travel in the
// clear is the handler's business.
//
// One thread named "http". Handlers run on it: they must be quick and must not block, nor take a lock that anybody
// holds while he waits for a disk; an exception they throw becomes a 500. What may block is left to HttpResponse::later
// and HttpResponse::file, which use further threads, made when they are first needed (HttpLane). So probes and scrapes
// are answered whatever the others wait for.
//
// Nor can others take the connections away: every connection is accepted, and when there are too many, an older one is
// closed for it. That is one that waits for a request; if there is none, one that does not take its answer; and last,
// one whose answer is still being made. Among these it is the one that has been so for the longest time, of the address
// that has the most connections. A peer that sends its request when it has connected is therefore answered, however
// many connections others hold.
//
// Malformed requests get 400, header sections over the limit 431, a request body over the limit 413; then the
// connection is closed.
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

// Where work that may block is done: one thread each, one piece after another.
enum class HttpLane {
  kState,  // "http-state": locks that are held while a store writes. The server waits for it when it stops.
  // "http-files": files on volumes that may hang. When the server stops while one does, the thread is left to itself,
  // so that what runs here must own all it touches.
  kFiles,
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  std::map<std::string, std::string> headers;
  // Sent instead of `body`, never in memory as a whole. When it cannot be read to its end, the connection is closed, by
  // which the client sees that the answer is cut off.
  std::shared_ptr<HttpFile> file;
  // When set, all else in here is ignored: it is called on the thread of `lane`, where it may block, and its result
  // (which may have a `later` of its own) is the answer. 503 instead when that takes longer than HttpLimits::later,
  // when too many wait there already, or when the thread hangs; what has not begun by then is never called, nor is it
  // when the peer has gone.
  std::function<HttpResponse()> later;
  HttpLane lane = HttpLane::kFiles;
};
using HttpHandler = std::function<HttpResponse(const HttpRequest&)>;

struct HttpLimits {
  size_t header_bytes = 16 << 10;
  size_t body_bytes = 16 << 10;
  std::chrono::milliseconds first{5000};  // a new connection must have sent a whole request by then
  std::chrono::milliseconds idle{
      30000};  // one that sends no further request, or takes no answer, for so long is closed
  std::chrono::milliseconds later{10000};  // what a piece of HttpResponse::later or of a file may take
  std::chrono::milliseconds stop{2000};    // how long the end waits for files that hang
  size_t connections = 256;                // at a time; each takes a file descriptor and up to some 100 KiB
  size_t waiting = 128;                    // pieces of work that wait in a lane
};

// A server's certificate chain and private key, PEM. Empty: plain HTTP only.
struct HttpTls {
  std::string certificate, key;
};

// Thread-safe.
class HttpServer {
 public:
  // Routes: exact path, or a prefix ending in "/*" (the longest wins; an exact path wins over any); "POST /path" takes
  // the posts to an exact path. Unknown paths get 404, other methods 405. "localhost" listens on 127.0.0.1 and, where
  // there is IPv6, on ::1; another name on all its addresses. kUnavailable: the port is in use;
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
