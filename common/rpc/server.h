// Server side of every gRPC port: listening, credentials, token check, health service, reflection, limits, orderly
// stop.
#ifndef DISTILL_COMMON_RPC_SERVER_H_
#define DISTILL_COMMON_RPC_SERVER_H_

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/rpc_options.h"
#include "common/status.h"
#include "common/wire/limits.h"

namespace distill {

class HealthService;

// Owns a running server. Thread-safe.
//
// With a token, every call but those of grpc.health.v1 needs `authorization: Bearer <token>` (reflection too); others
// get UNAUTHENTICATED before any handler runs, over TLS and plaintext alike. TLS when `cert_file` and `key_file` are
// given; with `ca_file` a client certificate is asked for and, if shown, must be valid.
//
// Limits. Strangers (no token): a connection has kHandshakeTimeout to become one of HTTP/2; headers of a call may have
// 8 KiB in all (gRPC's default); a call's message is not read before its token is checked, and health calls have none
// (health_service.h), so that a stream holds no more than HTTP/2's window. Callers: a message of at most
// `max_message_bytes` and at most kMaxStreams calls at a time on a connection (more wait at the client). Compressed
// messages are refused with UNIMPLEMENTED: a megabyte of them may stand for a gigabyte, and gRPC unpacks before it
// looks at its limits. There is no budget over all connections; gRPC's own (ResourceQuota) ends any stream, also a good
// one, so services bound what they keep themselves.
class RpcServer {
 public:
  static constexpr int kMaxStreams = 1000;
  static constexpr std::chrono::seconds kHandshakeTimeout{20};

  struct Options {
    std::string listen = "127.0.0.1:0";  // host:port; port 0 lets the kernel choose
    RpcSecurity security;
    int max_message_bytes = kMaxMessageBytes;  // of what is received and sent
  };
  // Starts serving `services` (not owned; they outlive the server). grpc.health.v1.Health/Check answers SERVING at
  // once. kInvalidArgument: bad address or certificate files, or a non-loopback address without TLS and token and
  // without `insecure`. kUnavailable: the port is in use (message names it). Two servers never share a port (no
  // SO_REUSEPORT).
  static StatusOr<std::unique_ptr<RpcServer>> Start(const Options& options,
                                                    const std::vector<grpc::Service*>& services);
  ~RpcServer();  // Stop(0)

  int port() const { return port_; }
  // host:port as bound.
  const std::string& address() const { return address_; }
  // Health answers NOT_SERVING from now on; running calls go on.
  void SetServing(bool serving);
  // Refuses new calls, waits for running ones at most `grace`, then cancels them and waits until their handlers return.
  // Idempotent.
  void Stop(std::chrono::milliseconds grace);

 private:
  RpcServer();
  int port_ = 0;
  std::string address_;
  const std::unique_ptr<HealthService> health_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_SERVER_H_
