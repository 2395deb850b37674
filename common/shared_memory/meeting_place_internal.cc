#include "common/shared_memory/meeting_place_internal.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "common/str_cat.h"

namespace distill {
namespace {

constexpr std::string_view kPrefix = "distill-";
constexpr size_t kRandomBytes = 16;
constexpr std::string_view kDigits = "0123456789abcdef";

}  // namespace

StatusOr<std::string> RandomBytes(size_t bytes) {
  std::string random(bytes, '\0');
  // Up to 256 bytes come whole.
  if (getrandom(random.data(), bytes, 0) != static_cast<ssize_t>(bytes)) {
    return absl::UnavailableError(StrCat("no random numbers: ", std::strerror(errno)));
  }
  return random;
}

StatusOr<std::string> RandomPlaceName() {
  DISTILL_ASSIGN_OR_RETURN(const std::string random, RandomBytes(kRandomBytes));
  std::string name(kPrefix);
  for (const char byte : random) {
    name += kDigits[static_cast<uint8_t>(byte) >> 4];
    name += kDigits[static_cast<uint8_t>(byte) & 15];
  }
  return name;
}

bool IsPlaceName(std::string_view name) {
  return name.size() == kPrefix.size() + 2 * kRandomBytes && name.starts_with(kPrefix) &&
         name.find_first_not_of(kDigits, kPrefix.size()) == std::string_view::npos;
}

std::string PrivateFolder(const std::string& folder) { return StrCat(folder, "/distill-", geteuid()); }

StatusOr<PlaceAddress> AddressOf(const std::string& folder, const std::string& name) {
  if (!IsPlaceName(name)) {
    return absl::InvalidArgumentError(StrCat("a socket's name of ", name.size(), " bytes that is not of our form"));
  }
  PlaceAddress place;
  place.address.sun_family = AF_UNIX;
  // An abstract name begins with a zero byte, and is as long as its size says.
  const std::string path = folder.empty() ? std::string(1, '\0') + name : StrCat(PrivateFolder(folder), "/", name);
  if (path.size() >= sizeof place.address.sun_path) {
    return absl::InvalidArgumentError(StrCat("'", path, "' is too long for a socket, which may have ",
                                             sizeof place.address.sun_path - 1,
                                             " bytes; choose a shorter --shared-memory-folder"));
  }
  std::copy(path.begin(), path.end(), place.address.sun_path);
  place.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + (folder.empty() ? 0 : 1));
  return place;
}

Status CheckSameUser(int socket) {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) {
    return absl::PermissionDeniedError(StrCat("the user at the other end is unknown: ", std::strerror(errno)));
  }
  if (peer.uid != geteuid()) {
    return absl::PermissionDeniedError(
        StrCat("process ", peer.pid, " at the other end is of user ", peer.uid, ", this one is of user ", geteuid()));
  }
  return OkStatus();
}

}  // namespace distill
