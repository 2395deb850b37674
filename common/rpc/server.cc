#include "common/rpc/server.h"

#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/security/server_credentials.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "common/log.h"
#include "common/rpc/address.h"
#include "common/rpc/channel.h"
#include "common/rpc/health_service.h"
#include "common/rpc/rpc_internal.h"
#include "common/rpc/security_files.h"
#include "common/str_cat.h"

namespace distill {
namespace {

std::string_view View(const grpc_slice& slice) {
  return {reinterpret_cast<const char*>(GRPC_SLICE_START_PTR(slice)), GRPC_SLICE_LENGTH(slice)};
}

// Runs in gRPC's core, before any handler, for every call.
struct TokenCheck {
  const std::string expected;  // "Bearer <token>"

  static void Process(void* state, grpc_auth_context*, const grpc_metadata* metadata, size_t count,
                      grpc_process_auth_metadata_done_cb done, void* user_data) {
    const std::string& expected = static_cast<const TokenCheck*>(state)->expected;
    std::string_view path;
    const grpc_metadata* authorization = nullptr;
    for (size_t i = 0; i < count; ++i) {
      if (View(metadata[i].key) == ":path") path = View(metadata[i].value);
      if (View(metadata[i].key) == "authorization") authorization = &metadata[i];
    }
    if (path == HealthService::kCheck) {
      done(user_data, nullptr, 0, nullptr, 0, GRPC_STATUS_OK, nullptr);
    } else if (authorization == nullptr) {
      done(user_data, nullptr, 0, nullptr, 0, GRPC_STATUS_UNAUTHENTICATED,
           "this server wants a token and the call carries none; give --token-file with the server's token");
    } else if (!ConstantTimeEqual(View(authorization->value), expected)) {
      done(user_data, nullptr, 0, nullptr, 0, GRPC_STATUS_UNAUTHENTICATED,
           "the token is wrong; give --token-file with the server's token");
    } else {
      // Consumed: handlers never see the token.
      done(user_data, authorization, 1, nullptr, 0, GRPC_STATUS_OK, nullptr);
    }
  }
  static void Destroy(void* state) { delete static_cast<TokenCheck*>(state); }
};

// grpc++ offers a check of metadata for TLS servers only; the core beneath has it for plaintext too, and that is what
// this uses. (An interceptor cannot do it: it can change a call's status but not keep the handler from running.)
class CheckedServerCredentials : public grpc::ServerCredentials {
 public:
  explicit CheckedServerCredentials(const SecurityFiles& files) {
    if (files.cert.empty()) {
      credentials_ = grpc_insecure_server_credentials_create();
    } else {
      grpc_ssl_pem_key_cert_pair pair{files.key.c_str(), files.cert.c_str()};
      credentials_ = grpc_ssl_server_credentials_create_ex(
          files.ca.empty() ? nullptr : files.ca.c_str(), &pair, 1,
          files.ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY,
          nullptr);
    }
    if (!files.token.empty()) {
      grpc_server_credentials_set_auth_metadata_processor(
          credentials_, {&TokenCheck::Process, &TokenCheck::Destroy, new TokenCheck{StrCat("Bearer ", files.token)}});
    }
  }
  ~CheckedServerCredentials() override { grpc_server_credentials_release(credentials_); }
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }
  grpc_server_credentials* credentials_;
};

// gRPC says only that binding failed; a plain socket says why.
Status WhyNotBound(const HostPort& listen) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int lookup = getaddrinfo(listen.host.c_str(), std::to_string(listen.port).c_str(), &hints, &found);
  if (lookup != 0) {
    return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", gai_strerror(lookup)));
  }
  int error = 0;
  for (const addrinfo* a = found; a != nullptr && error == 0; a = a->ai_next) {
    const int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd < 0) continue;
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, a->ai_addr, a->ai_addrlen) != 0 || ::listen(fd, 1) != 0) error = errno;
    close(fd);
  }
  freeaddrinfo(found);
  if (error == EADDRINUSE) {
    return absl::UnavailableError(StrCat("cannot listen on ", ToString(listen), ": port ", listen.port,
                                         " is in use by another process; stop it or choose another port"));
  }
  if (error != 0)
    return absl::InvalidArgumentError(StrCat("cannot listen on ", ToString(listen), ": ", std::strerror(error)));
  return absl::UnavailableError(StrCat("cannot listen on ", ToString(listen), ": gRPC gave no reason; try again"));
}

}  // namespace

StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(const Options& options,
                                                      const std::vector<grpc::Service*>& services) {
  InstallGrpcLogging();
  DISTILL_ASSIGN_OR_RETURN(const HostPort listen, ParseHostPort(options.listen));
  DISTILL_ASSIGN_OR_RETURN(const SecurityFiles files, ReadSecurityFiles(options.security));
  if (!IsLoopback(listen.host) && !options.security.insecure && (files.cert.empty() || files.token.empty())) {
    return absl::InvalidArgumentError(StrCat(
        "refusing to listen on ", options.listen, ", which is not loopback, without ",
        files.cert.empty() ? "TLS (--tls-cert, --tls-key)" : "",
        files.cert.empty() && files.token.empty() ? " and " : "", files.token.empty() ? "a token (--token-file)" : "",
        "; give them, or --insecure on a network you trust"));
  }

  // Both are process-wide switches of gRPC that act on servers built later.
  grpc::EnableDefaultHealthCheckService(false);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(ToString(listen), std::make_shared<CheckedServerCredentials>(files), &port);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients ping every 20 s, also without calls (channel.cc); more than one ping in 5 s is abuse.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                             static_cast<int>(std::chrono::milliseconds(kHandshakeTimeout).count()));
  for (const auto& [name, value] : kNoCompression) builder.AddChannelArgument(name, value);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<RpcServer> server(new RpcServer);
  builder.RegisterCallbackGenericService(server->health_.get());
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) return WhyNotBound(listen);
  server->port_ = port;
  server->address_ = ToString({listen.host, static_cast<uint16_t>(port)});
  return server;
}

RpcServer::RpcServer() : health_(std::make_unique<HealthService>()) {}
RpcServer::~RpcServer() { Stop(std::chrono::milliseconds(0)); }

void RpcServer::SetServing(bool serving) { health_->SetServing(serving); }

void RpcServer::Stop(std::chrono::milliseconds grace) {
  // grpc::Server ignores every Shutdown() after the first, and is thread-safe.
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now() + grace);
}

}  // namespace distill
