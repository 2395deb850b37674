// Client side of every gRPC connection: credentials, limits, keepalive.
#ifndef DISTILL_COMMON_RPC_CHANNEL_H_
#define DISTILL_COMMON_RPC_CHANNEL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>
#include <string_view>

#include "common/rpc/rpc_options.h"
#include "common/status.h"
#include "common/wire/limits.h"

namespace distill {

// A channel to host:port of its own (gRPC would silently share connections between equal channels). It connects at the
// first call and reconnects within about a second of a server's return; a dead peer is noticed within 30 s (keepalive).
// Proxy variables of the environment are ignored. Compressed answers are refused, as servers refuse compressed
// requests. TLS when `ca_file` or `cert_file` is given: the server's certificate must chain to ca_file (the system's
// roots without one) and carry the host of `address`. The token, if any, goes with every call, also over plaintext.
// kInvalidArgument: bad address, unreadable or unparsable file, plaintext to a non-loopback address without `insecure`.
StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& address, const RpcSecurity& security);

// gRPC's answer as a Status with the same code and the message "<what> at <address>: <gRPC's text>"; `what` names the
// call.
Status FromGrpc(const grpc::Status& status, std::string_view what, std::string_view address);
// Same code, same message.
grpc::Status ToGrpc(const Status& status);

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_CHANNEL_H_
