// Shared by channel.cc and server.cc: the files of RpcSecurity, read and checked, and the libraries' own logs.
#ifndef DISTILL_COMMON_RPC_RPC_INTERNAL_H_
#define DISTILL_COMMON_RPC_RPC_INTERNAL_H_

#include <string>

#include "common/rpc/rpc_options.h"
#include "common/status.h"

namespace distill {

// Contents of RpcSecurity's files; empty: not given.
struct SecurityFiles {
  std::string ca, cert, key;  // PEM
  std::string token;
};

// kInvalidArgument, naming the flag and the file: unreadable, not PEM, certificate without key or the other way round,
// a key that does not belong to the certificate, a token that is empty or cannot stand in a header.
StatusOr<SecurityFiles> ReadSecurityFiles(const RpcSecurity& security);

// Messages of gRPC and protobuf become records of common/log.h. Harmless to repeat.
void InstallGrpcLogging();

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_RPC_INTERNAL_H_
