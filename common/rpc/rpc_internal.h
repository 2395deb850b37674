// Shared by channel.cc and server.cc: the libraries' own logs, what both sides switch off.
#ifndef DISTILL_COMMON_RPC_RPC_INTERNAL_H_
#define DISTILL_COMMON_RPC_RPC_INTERNAL_H_

#include <grpc/grpc.h>

#include <utility>

namespace distill {

// Messages of gRPC and protobuf become records of common/log.h. Harmless to repeat.
void InstallGrpcLogging();

// Channel arguments: nobody here compresses, and a compressed message is refused before it is unpacked (that it may not
// be unpacked is said twice: the second one gives the peer a reason).
inline constexpr std::pair<const char*, int> kNoCompression[] = {
    {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
    {GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE},
};

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_RPC_INTERNAL_H_
