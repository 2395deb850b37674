// Where a DescriptorServer listens and a DescriptorRequest looks for it: a Unix socket of a random name. What crosses
// the wire between hosts that trust each other little is the name alone, in one form; never a path.
//
// Abstract (the network namespace's own names) as a rule. Containers, which have network namespaces of their own, share
// a folder instead: the socket is then in FOLDER/distill-<uid>, which belongs to that user alone (mode 0700).
//
// Private to this room.
#ifndef DISTILL_COMMON_SHARED_MEMORY_MEETING_PLACE_INTERNAL_H_
#define DISTILL_COMMON_SHARED_MEMORY_MEETING_PLACE_INTERNAL_H_

#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <string>
#include <string_view>

#include "common/status.h"

namespace distill {

inline constexpr size_t kNonceBytes = 32;

// `bytes` of the kernel's random numbers. kUnavailable: there are none.
StatusOr<std::string> RandomBytes(size_t bytes);
// "distill-" and 32 hexadecimal digits.
StatusOr<std::string> RandomPlaceName();
bool IsPlaceName(std::string_view name);

struct PlaceAddress {
  sockaddr_un address{};
  socklen_t size = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};
// `folder`: "" for an abstract name. kInvalidArgument: the name is none, or the path is too long for a socket.
StatusOr<PlaceAddress> AddressOf(const std::string& folder, const std::string& name);
// FOLDER/distill-<uid of this process>.
std::string PrivateFolder(const std::string& folder);

// Who is at the other end of a connected Unix socket is of this process's user. kPermissionDenied: of another one.
Status CheckSameUser(int socket);

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_MEETING_PLACE_INTERNAL_H_
