// How processes find and trust each other: addresses, TLS files, the bearer token. One struct for all programs.
#ifndef DISTILL_COMMON_RPC_RPC_OPTIONS_H_
#define DISTILL_COMMON_RPC_RPC_OPTIONS_H_

#include <string>

namespace distill {

// All files are PEM. Empty strings: not used.
struct RpcSecurity {
  // Clients: whom they trust. Servers: a client that shows a certificate must have one from here; showing one is
  // optional.
  std::string ca_file;
  std::string cert_file;   // this process's certificate ...
  std::string key_file;    // ... and private key
  std::string token_file;  // bearer token, one line; sent by clients, required by servers that have one
  bool insecure = false;   // allow plaintext on addresses other than loopback
};

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_RPC_OPTIONS_H_
