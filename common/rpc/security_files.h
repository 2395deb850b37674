// The files of RpcSecurity, read and checked. For the gRPC port and for the coordinator's status page.
#ifndef DISTILL_COMMON_RPC_SECURITY_FILES_H_
#define DISTILL_COMMON_RPC_SECURITY_FILES_H_

#include <string>
#include <string_view>

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

// Compares secrets: takes the same time wherever the first difference is. REQUIRES: `expected` is not empty.
bool ConstantTimeEqual(std::string_view given, std::string_view expected);

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_SECURITY_FILES_H_
