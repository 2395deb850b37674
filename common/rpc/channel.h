// Client side of every gRPC connection: credentials, limits, keepalive.
#ifndef DISTILL_COMMON_RPC_CHANNEL_H_
#define DISTILL_COMMON_RPC_CHANNEL_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>

#include <memory>
#include <string>

#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

// Largest message either side accepts, in bytes. Bigger ones fail with kResourceExhausted; the process goes on.
inline constexpr int kMaxMessageBytes = 64 << 20;

// A channel to host:port of its own (gRPC would silently share connections between equal channels).
// kInvalidArgument: bad address, unreadable or unparsable file, plaintext to a non-loopback address without `insecure`.
StatusOr<std::shared_ptr<grpc::Channel>> MakeChannel(const std::string& address, const RpcSecurity& security);

// gRPC's answer as a Status with the same code; `what` names the call and `address` the peer, for the message.
Status FromGrpc(const grpc::Status& status, std::string_view what, std::string_view address);
grpc::Status ToGrpc(const Status& status);

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_CHANNEL_H_
