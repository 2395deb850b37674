#include "common/http/http_server.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "common/log.h"
#include "common/rpc/address.h"
#include "common/str_cat.h"

namespace distill {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;

// How long a refused peer may go on sending.
constexpr std::chrono::milliseconds kLinger{2000};

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// Percent-decoding; what is no valid escape stays as it is. '+' is a space in queries only.
std::string Decode(std::string_view text, bool query) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 && HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 + HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(query && text[i] == '+' ? ' ' : text[i]);
    }
  }
  return out;
}

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

// "/a/b?x=1&y" into path and query.
void ParseTarget(std::string_view target, HttpRequest* request) {
  const size_t mark = target.find('?');
  request->path = Decode(target.substr(0, mark), false);
  if (mark == std::string_view::npos) return;
  std::string_view rest = target.substr(mark + 1);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find('&'), rest.size());
    const std::string_view pair = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    const size_t equals = std::min(pair.find('='), pair.size());
    if (pair.empty()) continue;
    request->query[Decode(pair.substr(0, equals), true)] = Decode(pair.substr(std::min(equals + 1, pair.size())), true);
  }
}

class Server;

// A file on its way: the answer's head, then piece after piece.
struct FileAnswer {
  http::response<http::empty_body> head;
  http::response_serializer<http::empty_body> serializer{head};
  std::shared_ptr<HttpFile> file;
  std::string piece;
};

// One connection. Lives as long as an operation on it is pending (each handler holds it).
class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, Server* server);
  ~Session();
  // Finds out whether the peer speaks TLS, when this server can, and reads its requests.
  void Begin();

 private:
  // Calls `operation` with the stream that requests and answers travel on.
  template <typename Operation>
  void OnStream(const Operation& operation) {
    if (tls_.has_value()) {
      operation(*tls_);
    } else {
      operation(stream_);
    }
  }
  void Handshake();
  void Read();
  void OnRead(beast::error_code error);
  void Send(HttpResponse response, bool keep_alive, bool head);
  void SendFile(std::shared_ptr<FileAnswer> answer);
  void SendPiece(std::shared_ptr<FileAnswer> answer);
  void Sent(bool keep_alive);
  void Finish();
  void Discard();

  Server* const server_;  // Not owned: destroys the io_context, and with it every session, before it goes
  beast::tcp_stream stream_;
  std::optional<beast::ssl_stream<beast::tcp_stream&>> tls_;  // over stream_, once the peer has begun a TLS handshake
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<void> response_;  // alive while it is written
};

class Server : public HttpServer {
 public:
  Server(std::map<std::string, HttpHandler> routes, const HttpLimits& limits)
      : routes_(std::move(routes)), limits_(limits) {}

  // Call before Listen().
  Status UseCertificate(const HttpTls& files) {
    namespace ssl = boost::asio::ssl;
    beast::error_code error;
    tls_.emplace(ssl::context::tls_server);
    tls_->set_options(ssl::context::default_workarounds | ssl::context::no_tlsv1 | ssl::context::no_tlsv1_1, error);
    if (!error) tls_->use_certificate_chain(asio::buffer(files.certificate), error);
    if (!error) tls_->use_private_key(asio::buffer(files.key), ssl::context::pem, error);
    if (!error) return OkStatus();
    return absl::InvalidArgumentError(
        StrCat("the TLS certificate or its key cannot be used for HTTP: ", error.message()));
  }
  asio::ssl::context* tls() { return tls_.has_value() ? &*tls_ : nullptr; }
  ~Server() override {
    if (context_ == nullptr) return;
    context_->stop();
    if (thread_.joinable()) thread_.join();
    stopping_ = true;
    if (files_ != nullptr) {
      files_->stop();
      files_->join();
    }
    retry_.reset();
    acceptor_.reset();
    files_.reset();    // destroys what was still to be done, and the sessions it held
    context_.reset();  // destroys the pending handlers, and with them the sessions
  }

  Status Listen(const HostPort& listen) {
    context_ = std::make_unique<asio::io_context>(1);
    beast::error_code error;
    tcp::resolver resolver(*context_);
    const auto found = resolver.resolve(listen.host, std::to_string(listen.port), tcp::resolver::passive, error);
    if (error) return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", error.message()));
    const tcp::endpoint endpoint = *found.begin();
    acceptor_ = std::make_unique<tcp::acceptor>(*context_);
    acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) acceptor_->listen(asio::socket_base::max_listen_connections, error);
    if (error == asio::error::address_in_use) {
      return absl::UnavailableError(StrCat("cannot listen on ", ToString(listen), ": port ", listen.port,
                                           " is in use by another process; stop it or choose another port"));
    }
    if (error) return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", error.message()));
    port_ = acceptor_->local_endpoint(error).port();
    address_ = ToString({listen.host, static_cast<uint16_t>(port_)});
    Accept();
    thread_ = std::thread([this] {
      pthread_setname_np(pthread_self(), "http");
      for (;;) {
        try {
          context_->run();
          return;
        } catch (const std::exception& error) {  // memory ran out; that connection is gone, the others go on
          LogError("HTTP loop", {{"error", error.what()}});
        }
      }
    });
    return OkStatus();
  }

  int port() const override { return port_; }
  std::string address() const override { return address_; }
  const HttpLimits& limits() const { return limits_; }

  HttpResponse Handle(const HttpRequest& request) {
    const auto post = routes_.find("POST " + request.path);
    const HttpHandler* const page = Find(request.path);
    const HttpHandler* handler = page;
    if (request.method == "POST" && post != routes_.end()) {
      handler = &post->second;
    } else if ((request.method != "GET" && request.method != "HEAD") || (page == nullptr && post != routes_.end())) {
      const std::string_view allowed = post == routes_.end() ? "GET, HEAD"
                                       : page == nullptr     ? "POST"
                                                             : "GET, HEAD, POST";
      return {.status = 405,
              .body = StrCat("method ", request.method, " is not allowed here; use ", allowed, "\n"),
              .headers = {{"Allow", std::string(allowed)}}};
    }
    if (handler == nullptr) return {.status = 404, .body = "no such page\n"};
    return Guarded(request.path, [&] { return (*handler)(request); });
  }

  // What `make` returns; a 500 when it throws.
  template <typename Make>
  static HttpResponse Guarded(const std::string& path, const Make& make) {
    try {
      return make();
    } catch (const std::exception& error) {
      LogError("HTTP handler failed", {{"path", path}, {"error", error.what()}});
    } catch (...) {
      LogError("HTTP handler failed", {{"path", path}});
    }
    return {.status = 500, .body = "internal error; see the log\n"};
  }

  // On the loop's thread: runs `work` on the thread for files, one after another. `work` may block; it must not throw,
  // and continues by OnLoop().
  template <typename Work>
  void OnFiles(Work work) {
    if (files_ == nullptr) {
      files_ = std::make_unique<asio::thread_pool>(1);
      asio::post(*files_, [] { pthread_setname_np(pthread_self(), "http-files"); });
    }
    asio::post(*files_, std::move(work));
  }
  template <typename Work>
  void OnLoop(Work work) {
    asio::post(*context_, std::move(work));
  }

  // Both on the loop's thread (or before it started).
  void SessionOpened() { ++sessions_; }
  void SessionClosed() {
    --sessions_;
    if (paused_ && !stopping_) Accept();
  }

 private:
  const HttpHandler* Find(const std::string& path) const {
    if (auto found = routes_.find(path); found != routes_.end() && !path.ends_with("/*")) return &found->second;
    // "/a/b" is looked for as "/a/*", then "/*".
    for (size_t slash = path.rfind('/'); slash != std::string::npos;
         slash = slash == 0 ? std::string::npos : path.rfind('/', slash - 1)) {
      if (auto found = routes_.find(path.substr(0, slash + 1) + "*"); found != routes_.end()) return &found->second;
    }
    return nullptr;
  }

  void Accept() {
    paused_ = sessions_ >= limits_.connections;
    if (paused_) return;
    acceptor_->async_accept([this](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (!error) {
        std::make_shared<Session>(std::move(socket), this)->Begin();
        return Accept();
      }
      // Out of file descriptors, or a peer that was gone already. A short pause keeps the loop from spinning.
      LogWarning("HTTP accept failed", {{"error", error.message()}});
      retry_.emplace(*context_, std::chrono::milliseconds(100));
      retry_->async_wait([this](beast::error_code cancelled) {
        if (!cancelled) Accept();
      });
    });
  }

  const std::map<std::string, HttpHandler> routes_;
  const HttpLimits limits_;
  std::optional<asio::ssl::context> tls_;  // constant after UseCertificate()
  int port_ = 0;                           // constant after Listen()
  std::string address_;                    // constant after Listen()
  // Everything below is used by the loop's thread alone once it runs.
  std::unique_ptr<asio::io_context> context_;
  std::unique_ptr<tcp::acceptor> acceptor_;
  std::optional<asio::steady_timer> retry_;
  std::unique_ptr<asio::thread_pool> files_;  // one thread; null until it is needed
  size_t sessions_ = 0;
  bool stopping_ = false;
  bool paused_ = false;  // not accepting: the limit of connections is reached
  std::thread thread_;
};

Session::Session(tcp::socket socket, Server* server) : server_(server), stream_(std::move(socket)) {
  server_->SessionOpened();
}
Session::~Session() { server_->SessionClosed(); }

void Session::Begin() {
  if (server_->tls() == nullptr) return Read();
  stream_.expires_after(server_->limits().idle);
  beast::async_detect_ssl(stream_, buffer_, [self = shared_from_this()](beast::error_code error, bool is_tls) {
    if (error) return;
    if (!is_tls) return self->Read();
    self->Handshake();
  });
}

void Session::Handshake() {
  tls_.emplace(stream_, *server_->tls());
  stream_.expires_after(server_->limits().idle);
  tls_->async_handshake(asio::ssl::stream_base::server, buffer_.data(),
                        [self = shared_from_this()](beast::error_code error, size_t used) {
                          if (error) return;  // a peer that does not trust the certificate, or no TLS after all
                          self->buffer_.consume(used);
                          self->Read();
                        });
}

void Session::Read() {
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(server_->limits().header_bytes));
  parser_->body_limit(server_->limits().body_bytes);
  stream_.expires_after(server_->limits().idle);
  OnStream([this](auto& stream) {
    http::async_read(stream, buffer_, *parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) { self->OnRead(error); });
  });
}

void Session::OnRead(beast::error_code error) {
  if (error == http::error::header_limit)
    return Send({.status = 431, .body = "request header too large\n"}, false, false);
  if (error == http::error::body_limit) return Send({.status = 413, .body = "request body too large\n"}, false, false);
  if (error && error.category() == http::make_error_code(http::error::end_of_stream).category() &&
      error != http::error::end_of_stream && error != http::error::partial_message) {
    return Send({.status = 400, .body = StrCat("bad request: ", error.message(), "\n")}, false, false);
  }
  if (error) return;  // the peer left, or was idle for too long
  const auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(View(message.method_string()));
  ParseTarget(View(message.target()), &request);
  for (const auto& field : message) {
    request.headers[absl::AsciiStrToLower(std::string(View(field.name_string())))] = std::string(View(field.value()));
  }
  request.body = message.body();
  request.tls = tls_.has_value();
  beast::error_code unknown;
  request.peer = stream_.socket().remote_endpoint(unknown).address().to_string();
  const bool keep_alive = message.keep_alive();
  const bool head = message.method() == http::verb::head;
  HttpResponse response = server_->Handle(request);
  if (response.later == nullptr) return Send(std::move(response), keep_alive, head);
  server_->OnFiles([self = shared_from_this(), keep_alive, head, path = std::move(request.path),
                    later = std::move(response.later)]() mutable {
    HttpResponse made = Server::Guarded(path, later);
    Server* const server = self->server_;
    server->OnLoop([self = std::move(self), keep_alive, head, made = std::move(made)]() mutable {
      self->Send(std::move(made), keep_alive, head);
    });
  });
}

void Session::Send(HttpResponse response, bool keep_alive, bool head) {
  const uint64_t length = response.file != nullptr ? response.file->left() : response.body.size();
  const auto describe = [&](auto* message) {
    message->result(static_cast<unsigned>(response.status));
    message->set(http::field::content_type, response.content_type);
    message->set("X-Content-Type-Options", "nosniff");
    for (const auto& [name, value] : response.headers) message->set(name, value);
    message->keep_alive(keep_alive);
    // 304 tells of a body that stays away; a length of 0 would be a lie about it.
    if (response.status != 304) message->content_length(length);
  };
  const auto send = [&](auto message) {
    describe(message.get());
    response_ = message;
    stream_.expires_after(server_->limits().idle);
    OnStream([&](auto& stream) {
      http::async_write(stream, *message, [self = shared_from_this(), keep_alive](beast::error_code error, size_t) {
        self->response_.reset();
        if (!error) self->Sent(keep_alive);
      });
    });
  };
  if (response.file != nullptr && !head) {
    auto answer = std::make_shared<FileAnswer>();
    describe(&answer->head);
    answer->file = std::move(response.file);
    return SendFile(std::move(answer));
  }
  // A HEAD answer tells the length of a body that does not follow.
  if (head) {
    send(std::make_shared<http::response<http::empty_body>>());
  } else {
    auto message = std::make_shared<http::response<http::string_body>>();
    message->body() = std::move(response.body);
    send(message);
  }
}

void Session::SendFile(std::shared_ptr<FileAnswer> answer) {
  stream_.expires_after(server_->limits().idle);
  OnStream([&](auto& stream) {
    auto& serializer = answer->serializer;
    http::async_write_header(stream, serializer,
                             [self = shared_from_this(), answer](beast::error_code error, size_t) mutable {
                               if (!error) self->SendPiece(std::move(answer));
                             });
  });
}

void Session::SendPiece(std::shared_ptr<FileAnswer> answer) {
  if (answer->file->left() == 0) return Sent(answer->head.keep_alive());
  server_->OnFiles([self = shared_from_this(), answer = std::move(answer)]() mutable {
    const Status read = answer->file->Read(&answer->piece);
    Server* const server = self->server_;
    server->OnLoop([self = std::move(self), answer = std::move(answer), read]() mutable {
      if (!read.ok()) {
        LogWarning("HTTP: a file could not be sent to its end", {{"error", read.message()}});
        return;  // the connection is closed, with less than its answer has announced
      }
      self->stream_.expires_after(self->server_->limits().idle);
      self->OnStream([&](auto& stream) {
        const auto bytes = asio::buffer(answer->piece);
        asio::async_write(stream, bytes, [self, answer](beast::error_code error, size_t) mutable {
          if (!error) self->SendPiece(std::move(answer));
        });
      });
    });
  });
}

void Session::Sent(bool keep_alive) {
  if (keep_alive) return Read();
  Finish();
}

void Session::Finish() {
  stream_.expires_after(std::min(server_->limits().idle, kLinger));
  // Over TLS the peer must learn that the answer was not cut off.
  if (tls_.has_value()) {
    tls_->async_shutdown([self = shared_from_this()](beast::error_code) {});
    return;
  }
  beast::error_code ignored;
  stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
  Discard();
}

// Closing a socket with unread bytes resets the connection, and the peer may lose the answer: read until it has closed
// its side.
void Session::Discard() {
  buffer_.clear();
  stream_.async_read_some(buffer_.prepare(4096), [self = shared_from_this()](beast::error_code error, size_t) {
    if (!error) self->Discard();
  });
}

}  // namespace

HttpFile::~HttpFile() { close(fd_); }

Status HttpFile::Read(std::string* piece) {
  piece->resize(std::min<uint64_t>(left_, kPiece));
  size_t have = 0;
  while (have < piece->size()) {
    const ssize_t n = pread(fd_, piece->data() + have, piece->size() - have, static_cast<off_t>(offset_ + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::UnavailableError(StrCat(name_, " cannot be read: ", std::strerror(errno)));
    if (n == 0)
      return absl::DataLossError(StrCat(name_, " ends at byte ", offset_ + have, ", ", left_ - have, " too early"));
    have += n;
  }
  offset_ += have;
  left_ -= have;
  return OkStatus();
}

StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const std::string& listen,
                                                        std::map<std::string, HttpHandler> routes,
                                                        const HttpLimits& limits, const HttpTls& tls) {
  DISTILL_ASSIGN_OR_RETURN(const HostPort host_port, ParseHostPort(listen));
  auto server = std::make_unique<Server>(std::move(routes), limits);
  if (!tls.certificate.empty()) DISTILL_RETURN_IF_ERROR(server->UseCertificate(tls));
  DISTILL_RETURN_IF_ERROR(server->Listen(host_port));
  return StatusOr<std::unique_ptr<HttpServer>>(std::move(server));
}

}  // namespace distill
