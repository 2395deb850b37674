// host:port, as users and processes write addresses.
#ifndef DISTILL_COMMON_RPC_ADDRESS_H_
#define DISTILL_COMMON_RPC_ADDRESS_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

struct HostPort {
  std::string host;  // without the brackets of an IPv6 address
  uint16_t port = 0;
  bool operator==(const HostPort&) const = default;
};

// "host:port", "1.2.3.4:port" or "[::1]:port". kInvalidArgument: anything else, naming the text.
StatusOr<HostPort> ParseHostPort(std::string_view address);
// With brackets around an IPv6 host.
std::string ToString(const HostPort& address);
// 127.0.0.0/8, ::1 or "localhost". Other names count as not loopback: they are not looked up.
bool IsLoopback(std::string_view host);

}  // namespace distill

#endif  // DISTILL_COMMON_RPC_ADDRESS_H_
