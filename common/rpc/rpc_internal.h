// Shared by channel.cc and server.cc: the libraries' own logs.
#ifndef DISTILL_COMMON_RPC_RPC_INTERNAL_H_
#define DISTILL_COMMON_RPC_RPC_INTERNAL_H_

#include "common/rpc/security_files.h"

namespace distill {

// Messages of gRPC and protobuf become records of common/log.h. Harmless to repeat.
void InstallGrpcLogging();

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_RPC_INTERNAL_H_
