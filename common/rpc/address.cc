#include "common/rpc/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <strings.h>

#include <algorithm>
#include <charconv>

#include "absl/strings/ascii.h"
#include "common/str_cat.h"

namespace distill {
namespace {

bool IsHostCharacter(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '.' || c == '_';
}

}  // namespace

StatusOr<HostPort> ParseHostPort(std::string_view address) {
  const auto bad = [&](std::string_view why) {
    return absl::InvalidArgumentError(StrCat("bad address '", address, "': ", why, "; write HOST:PORT or [IPV6]:PORT"));
  };
  std::string_view host, port;
  if (address.starts_with('[')) {
    const size_t end = address.find(']');
    if (end == std::string_view::npos) return bad("']' is missing");
    host = address.substr(1, end - 1);
    in6_addr parsed;
    // A zone ("fe80::1%eth0") follows the address and is not part of what inet_pton reads.
    if (inet_pton(AF_INET6, std::string(host.substr(0, host.find('%'))).c_str(), &parsed) != 1)
      return bad("no IPv6 address between the brackets");
    port = address.substr(end + 1);
    if (!port.starts_with(':')) return bad("the port is missing");
    port.remove_prefix(1);
  } else {
    const size_t colon = address.rfind(':');
    if (colon == std::string_view::npos) return bad("the port is missing");
    host = address.substr(0, colon);
    port = address.substr(colon + 1);
    if (host.empty()) return bad("the host is missing");
    if (!std::all_of(host.begin(), host.end(), IsHostCharacter))
      return bad("the host has characters that no host name has");
  }
  uint32_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc() || end != port.data() + port.size() || number > 65535) {
    return bad("the port is not a number from 0 to 65535");
  }
  return HostPort{std::string(host), static_cast<uint16_t>(number)};
}

std::string ToString(const HostPort& address) {
  if (address.host.find(':') != std::string::npos) return StrCat("[", address.host, "]:", address.port);
  return StrCat(address.host, ":", address.port);
}

bool IsLoopback(std::string_view host) {
  const std::string text(host);
  if (strcasecmp(text.c_str(), "localhost") == 0) return true;
  in_addr v4;
  if (inet_pton(AF_INET, text.c_str(), &v4) == 1) return (ntohl(v4.s_addr) >> 24) == 127;
  in6_addr v6;
  return inet_pton(AF_INET6, text.c_str(), &v6) == 1 && IN6_IS_ADDR_LOOPBACK(&v6);
}

}  // namespace distill
