#include "common/http/http_server.h"

#include <pthread.h>
#include <sys/socket.h>
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
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/time/time.h"
#include "common/http/form.h"
#include "common/http/side_thread_internal.h"
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

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

// "/a/b?x=1&y" into path and query.
void ParseTarget(std::string_view target, HttpRequest* request) {
  const size_t mark = target.find('?');
  request->path = PercentDecode(target.substr(0, mark), false);
  if (mark != std::string_view::npos) request->query = ParseForm(target.substr(mark + 1));
}

class Server;
class Session;

// A file on its way: the answer's head, then piece after piece. Used by one thread at a time.
struct FileAnswer {
  http::response<http::empty_body> head;
  http::response_serializer<http::empty_body> serializer{head};
  std::shared_ptr<HttpFile> file;
  std::string piece;
};

// What a lane has made, to be done on the loop's thread.
using Continuation = std::function<void(Session*)>;

// One connection. Lives as long as an operation on it is pending (each handler holds it).
//
//   receiving -> [working -> ...] sending -> receiving | closed      and closed from everywhere
//
// Used on the loop's thread alone.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // In this order they are closed when there are too many.
  enum class Doing { kReceiving, kSending, kWorking };

  Session(tcp::socket socket, Server* server);
  ~Session() { Forgotten(); }
  // Finds out whether the peer speaks TLS, when this server can, and reads its requests.
  void Begin();
  // At once. What was pending ends with errors.
  void Close();

  Doing doing() const { return doing_; }
  const asio::ip::address& peer() const { return peer_; }
  uint64_t round() const { return round_; }
  // What was given to a lane in this round is done.
  void WorkDone(const Continuation& go_on);

 private:
  friend class Server;

  // Calls `operation` with the stream that requests and answers travel on.
  template <typename Operation>
  void OnStream(const Operation& operation) {
    if (tls_.has_value()) {
      operation(*tls_);
    } else {
      operation(stream_);
    }
  }
  void Become(Doing doing);
  void Forgotten();
  void Handshake();
  void Read();
  void OnRead(beast::error_code error);
  // Sends the answer, or has it made.
  void Answer(HttpResponse response);
  void Send(HttpResponse response);
  void SendFile(std::shared_ptr<FileAnswer> answer);
  void SendPiece(std::shared_ptr<FileAnswer> answer);
  void Sent(bool keep_alive);
  void Finish();
  void Discard();
  // Has `work` done by a lane; its result goes to WorkDone(). Meanwhile looks whether the peer goes, and at the clock.
  void Work(HttpLane lane, std::function<Continuation()> work);
  void WatchPeer();
  void EndWork();
  // The lane does not do it: says so, if the answer has not begun, or closes.
  void GiveUp();

  Server* const server_;  // Not owned: destroys the io_context, and with it every session, before it goes
  beast::tcp_stream stream_;
  asio::ip::address peer_;                                    // constant after construction
  std::optional<beast::ssl_stream<beast::tcp_stream&>> tls_;  // over stream_, once the peer has begun a TLS handshake
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  std::shared_ptr<void> response_;  // alive while it is written

  // Of the request that is answered.
  std::string path_;
  bool keep_alive_ = false, head_ = false;
  bool begun_ = false;  // part of its answer has been sent

  Doing doing_ = Doing::kReceiving;
  bool listed_ = false;                     // the server counts it
  std::list<Session*>::iterator place_;     // in the server's list
  asio::steady_timer patience_;             // of kWorking
  uint64_t round_ = 0;                      // counts work; what comes from an older round comes too late
  std::pair<HttpLane, uint64_t> ticket_{};  // of kWorking
};

// How lanes come back to the loop. Shared with them, as one may outlive the server.
class LoopLink {
 public:
  explicit LoopLink(asio::io_context* context) : context_(context) {}
  // Runs `work` on the loop's thread; drops it when the loop is no more.
  template <typename Work>
  void Post(Work work) {
    std::lock_guard lock(mutex_);
    if (context_ != nullptr) asio::post(*context_, std::move(work));
  }
  void Cut() {
    std::lock_guard lock(mutex_);
    context_ = nullptr;
  }

 private:
  std::mutex mutex_;
  asio::io_context* context_;  // guarded by mutex_
};

// A port of one address.
struct Acceptor {
  explicit Acceptor(asio::io_context& context) : acceptor(context), retry(context) {}
  tcp::acceptor acceptor;
  asio::steady_timer retry;
};

class Server : public HttpServer {
 public:
  Server(std::map<std::string, HttpHandler> routes, const HttpLimits& limits)
      : routes_(std::move(routes)),
        limits_(limits),
        state_("http-state", limits.waiting, absl::FromChrono(limits.later)),
        files_("http-files", limits.waiting, absl::FromChrono(limits.later)) {}

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
    link_->Cut();
    state_.Stop(absl::InfiniteDuration());
    files_.Stop(absl::FromChrono(limits_.stop));
    acceptors_.clear();
    context_.reset();  // destroys the pending handlers, and with them the sessions
  }

  Status Listen(const HostPort& listen) {
    context_ = std::make_unique<asio::io_context>(1);
    link_ = std::make_shared<LoopLink>(context_.get());
    DISTILL_ASSIGN_OR_RETURN(const std::vector<tcp::endpoint> endpoints, Resolve(listen));
    // The kernel's choice for one address may be taken at the next one.
    beast::error_code error;
    for (int tries = 0; tries < 10; ++tries) {
      error = Bind(endpoints, listen.port);
      if (!error || listen.port != 0) break;
    }
    if (error == asio::error::address_in_use) {
      return absl::UnavailableError(StrCat("cannot listen on ", ToString(listen), ": port ", listen.port,
                                           " is in use by another process; stop it or choose another port"));
    }
    if (error) return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", error.message()));
    port_ = acceptors_.front()->acceptor.local_endpoint(error).port();
    address_ = ToString({listen.host, static_cast<uint16_t>(port_)});
    for (const auto& acceptor : acceptors_) Accept(acceptor.get());
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

  // All of these on the loop's thread (or before it started).

  // A session has begun to do something else, or is new: the last of its kind to be closed.
  void Moved(Session* session) {
    if (session->listed_) sessions_.erase(session->place_);
    session->place_ = sessions_.insert(sessions_.end(), session);
    session->listed_ = true;
  }
  void Forget(Session* session) {
    if (std::exchange(session->listed_, false)) sessions_.erase(session->place_);
  }
  // nullopt when the lane is full or hangs.
  std::optional<uint64_t> AddWork(HttpLane lane, const std::shared_ptr<Session>& session,
                                  std::function<Continuation()> work) {
    // The lane holds no session: one that nothing else waits for goes, with its socket.
    return Thread(lane).Add(
        [link = link_, session = std::weak_ptr<Session>(session), round = session->round(), work = std::move(work)] {
          link->Post([session, round, go_on = work()] {
            const std::shared_ptr<Session> alive = session.lock();
            if (alive != nullptr && alive->round() == round) alive->WorkDone(go_on);
          });
        });
  }
  // Once in a while: many may ask for what hangs.
  void TellOfHang(const std::string& path) {
    const auto now = std::chrono::steady_clock::now();
    if (told_of_hang_.has_value() && now - *told_of_hang_ < std::chrono::seconds(30)) return;
    told_of_hang_ = now;
    LogWarning("HTTP: what answers need does not come, or too many wait for it", {{"path", path}});
  }
  void ForgetWork(const std::pair<HttpLane, uint64_t>& ticket) { Thread(ticket.first).Forget(ticket.second); }

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

  SideThread& Thread(HttpLane lane) { return lane == HttpLane::kState ? state_ : files_; }

  StatusOr<std::vector<tcp::endpoint>> Resolve(const HostPort& listen) {
    // This name means the machine itself, whatever /etc/hosts says, and to its users both addresses.
    if (listen.host == "localhost") {
      return std::vector<tcp::endpoint>{{asio::ip::address_v4::loopback(), listen.port},
                                        {asio::ip::address_v6::loopback(), listen.port}};
    }
    beast::error_code error;
    tcp::resolver resolver(*context_);
    const auto found = resolver.resolve(listen.host, std::to_string(listen.port), tcp::resolver::passive, error);
    if (error) return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", error.message()));
    return std::vector<tcp::endpoint>(found.begin(), found.end());
  }

  // Listens on all endpoints that are this machine's, on one port. After an error there are no acceptors.
  beast::error_code Bind(const std::vector<tcp::endpoint>& endpoints, uint16_t port) {
    acceptors_.clear();
    beast::error_code absent;
    for (tcp::endpoint endpoint : endpoints) {
      endpoint.port(port);
      auto made = std::make_unique<Acceptor>(*context_);
      tcp::acceptor& acceptor = made->acceptor;
      beast::error_code error;
      acceptor.open(endpoint.protocol(), error);
      if (!error) acceptor.set_option(asio::socket_base::reuse_address(true), error);
      if (!error) acceptor.bind(endpoint, error);
      if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
      if (!error) port = acceptor.local_endpoint(error).port();
      if (error == asio::error::address_in_use) {
        acceptors_.clear();
        return error;
      }
      // A name's other addresses may be of a kind that this machine does not have (no IPv6, say).
      if (error) {
        absent = error;
      } else {
        acceptors_.push_back(std::move(made));
      }
    }
    return acceptors_.empty() ? absent : beast::error_code();
  }

  void Accept(Acceptor* from) {
    from->acceptor.async_accept([this, from](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      if (!error) {
        while (sessions_.size() >= limits_.connections) CloseOne();
        std::make_shared<Session>(std::move(socket), this)->Begin();
        return Accept(from);
      }
      // A peer that was gone already, or out of file descriptors: the process may need them elsewhere, so that one of
      // ours goes. A short pause keeps the loop from spinning.
      LogWarning("HTTP accept failed", {{"error", error.message()}});
      if (error == asio::error::no_descriptors && !sessions_.empty()) CloseOne();
      from->retry.expires_after(std::chrono::milliseconds(100));
      from->retry.async_wait([this, from](beast::error_code cancelled) {
        if (!cancelled) Accept(from);
      });
    });
  }

  // See http_server.h. REQUIRES: there is a session.
  void CloseOne() {
    std::map<asio::ip::address, size_t> of_address;
    for (const Session* session : sessions_) ++of_address[session->peer()];
    const auto order = [&](const Session* session) {
      return std::make_tuple(session->doing(), -static_cast<int64_t>(of_address[session->peer()]));
    };
    // The list is in order of time, and the first of several least elements is taken.
    (*std::min_element(sessions_.begin(), sessions_.end(), [&](const Session* a, const Session* b) {
      return order(a) < order(b);
    }))->Close();
  }

  const std::map<std::string, HttpHandler> routes_;
  const HttpLimits limits_;
  std::optional<asio::ssl::context> tls_;  // constant after UseCertificate()
  int port_ = 0;                           // constant after Listen()
  std::string address_;                    // constant after Listen()
  std::shared_ptr<LoopLink> link_;         // constant after Listen()
  SideThread state_, files_;
  // Everything below is used by the loop's thread alone once it runs.
  std::optional<std::chrono::steady_clock::time_point> told_of_hang_;
  std::list<Session*> sessions_;  // what has been doing the same for the longest time comes first
  std::unique_ptr<asio::io_context> context_;
  std::vector<std::unique_ptr<Acceptor>> acceptors_;
  std::thread thread_;
};

Session::Session(tcp::socket socket, Server* server)
    : server_(server), stream_(std::move(socket)), patience_(stream_.get_executor()) {
  beast::error_code unknown;  // a peer that has gone already
  peer_ = stream_.socket().remote_endpoint(unknown).address();
  server_->Moved(this);
}

void Session::Become(Doing doing) {
  doing_ = doing;
  if (listed_) server_->Moved(this);
}

void Session::Forgotten() { server_->Forget(this); }

void Session::Close() {
  Forgotten();
  if (doing_ == Doing::kWorking) EndWork();
  stream_.close();
}

void Session::Begin() {
  stream_.expires_after(server_->limits().first);  // for all that comes before the first request is there
  if (server_->tls() == nullptr) return Read();
  beast::async_detect_ssl(stream_, buffer_, [self = shared_from_this()](beast::error_code error, bool is_tls) {
    if (error) return;
    if (!is_tls) return self->Read();
    self->Handshake();
  });
}

void Session::Handshake() {
  tls_.emplace(stream_, *server_->tls());
  tls_->async_handshake(asio::ssl::stream_base::server, buffer_.data(),
                        [self = shared_from_this()](beast::error_code error, size_t used) {
                          if (error) return;  // a peer that does not trust the certificate, or no TLS after all
                          self->buffer_.consume(used);
                          self->Read();
                        });
}

// The time limit is the caller's.
void Session::Read() {
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(server_->limits().header_bytes));
  parser_->body_limit(server_->limits().body_bytes);
  OnStream([this](auto& stream) {
    http::async_read(stream, buffer_, *parser_,
                     [self = shared_from_this()](beast::error_code error, size_t) { self->OnRead(error); });
  });
}

void Session::OnRead(beast::error_code error) {
  path_.clear();
  keep_alive_ = head_ = begun_ = false;
  if (error == http::error::header_limit) return Send({.status = 431, .body = "request header too large\n"});
  if (error == http::error::body_limit) return Send({.status = 413, .body = "request body too large\n"});
  if (error && error.category() == http::make_error_code(http::error::end_of_stream).category() &&
      error != http::error::end_of_stream && error != http::error::partial_message) {
    return Send({.status = 400, .body = StrCat("bad request: ", error.message(), "\n")});
  }
  if (error) return;  // the peer left, was idle for too long, or had to make room
  const auto& message = parser_->get();
  HttpRequest request;
  request.method = std::string(View(message.method_string()));
  ParseTarget(View(message.target()), &request);
  for (const auto& field : message) {
    request.headers[absl::AsciiStrToLower(std::string(View(field.name_string())))] = std::string(View(field.value()));
  }
  request.body = message.body();
  request.tls = tls_.has_value();
  request.peer = peer_.to_string();
  path_ = request.path;
  keep_alive_ = message.keep_alive();
  head_ = message.method() == http::verb::head;
  Answer(server_->Handle(request));
}

void Session::Answer(HttpResponse response) {
  if (response.later == nullptr) return Send(std::move(response));
  Work(response.lane, [path = path_, later = std::move(response.later)]() -> Continuation {
    return [made = Server::Guarded(path, later)](Session* session) { session->Answer(made); };
  });
}

void Session::Send(HttpResponse response) {
  Become(Doing::kSending);
  const uint64_t length = response.file != nullptr ? response.file->left() : response.body.size();
  const auto describe = [&](auto* message) {
    message->result(static_cast<unsigned>(response.status));
    message->set(http::field::content_type, response.content_type);
    message->set("X-Content-Type-Options", "nosniff");
    for (const auto& [name, value] : response.headers) message->set(name, value);
    message->keep_alive(keep_alive_);
    // 304 tells of a body that stays away; a length of 0 would be a lie about it.
    if (response.status != 304) message->content_length(length);
  };
  const auto send = [&](auto message) {
    describe(message.get());
    response_ = message;
    stream_.expires_after(server_->limits().idle);
    OnStream([&](auto& stream) {
      http::async_write(stream, *message, [self = shared_from_this()](beast::error_code error, size_t) {
        self->response_.reset();
        if (!error) self->Sent(self->keep_alive_);
      });
    });
  };
  if (response.file != nullptr && !head_) {
    auto answer = std::make_shared<FileAnswer>();
    describe(&answer->head);
    answer->file = std::move(response.file);
    return SendFile(std::move(answer));
  }
  // A HEAD answer tells the length of a body that does not follow.
  if (head_) {
    send(std::make_shared<http::response<http::empty_body>>());
  } else {
    auto message = std::make_shared<http::response<http::string_body>>();
    message->body() = std::move(response.body);
    send(message);
  }
}

void Session::SendFile(std::shared_ptr<FileAnswer> answer) {
  begun_ = true;
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
  if (answer->file->left() == 0) return Sent(keep_alive_);
  Work(HttpLane::kFiles, [answer = std::move(answer)]() -> Continuation {
    const Status read = answer->file->Read(&answer->piece);
    return [answer, read](Session* session) {
      if (!read.ok()) {
        LogWarning("HTTP: a file could not be sent to its end", {{"error", read.message()}});
        return session->Close();  // with less than its answer has announced
      }
      session->Become(Doing::kSending);
      session->stream_.expires_after(session->server_->limits().idle);
      session->OnStream([&](auto& stream) {
        asio::async_write(stream, asio::buffer(answer->piece),
                          [self = session->shared_from_this(), answer](beast::error_code error, size_t) {
                            if (!error) self->SendPiece(answer);
                          });
      });
    };
  });
}

void Session::Sent(bool keep_alive) {
  Become(Doing::kReceiving);
  if (!keep_alive) return Finish();
  stream_.expires_after(server_->limits().idle);
  Read();
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

void Session::Work(HttpLane lane, std::function<Continuation()> work) {
  ++round_;
  const std::optional<uint64_t> ticket = server_->AddWork(lane, shared_from_this(), std::move(work));
  if (!ticket.has_value()) return GiveUp();
  ticket_ = {lane, *ticket};
  Become(Doing::kWorking);
  patience_.expires_after(server_->limits().later);
  patience_.async_wait([self = shared_from_this(), round = round_](beast::error_code cancelled) {
    if (cancelled || self->round_ != round || self->doing_ != Doing::kWorking) return;
    self->EndWork();
    self->GiveUp();
  });
  WatchPeer();
}

// Nobody reads the socket meanwhile, and so nobody would notice that the peer has closed it. One that has sent further
// requests is not looked at any more: the limit of time has to do.
void Session::WatchPeer() {
  stream_.socket().async_wait(
      tcp::socket::wait_read, [self = shared_from_this(), round = round_](beast::error_code cancelled) {
        if (cancelled || self->round_ != round || self->doing_ != Doing::kWorking) return;
        char byte;
        const ssize_t n = recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (n > 0) return;
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return self->WatchPeer();
        self->Close();
      });
}

void Session::WorkDone(const Continuation& go_on) {
  EndWork();
  go_on(this);
}

void Session::EndWork() {
  server_->ForgetWork(ticket_);
  ++round_;
  doing_ = Doing::kSending;
  patience_.cancel();
  beast::error_code ignored;
  stream_.socket().cancel(ignored);
}

void Session::GiveUp() {
  server_->TellOfHang(path_);
  if (begun_) return Close();
  Send({.status = 503,
        .body = "what this answer needs (a disk, a volume) does not come, or too many wait for it; try again later\n",
        .headers = {{"Retry-After", "5"}}});
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
