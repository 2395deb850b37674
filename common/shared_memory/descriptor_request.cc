#include "common/shared_memory/descriptor_request.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "common/shared_memory/meeting_place_internal.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<DescriptorRequest> DescriptorRequest::Start(const std::string& folder, const std::string& name,
                                                     const std::string& secret) {
  DISTILL_ASSIGN_OR_RETURN(const PlaceAddress place, AddressOf(folder, name));
  if (secret.size() != kNonceBytes) {
    return absl::InvalidArgumentError(StrCat("a secret of ", secret.size(), " bytes; it has ", kNonceBytes));
  }
  OwnedFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return absl::UnavailableError(StrCat("cannot make a Unix socket: ", std::strerror(errno)));
  if (connect(socket.get(), place.get(), place.size) != 0) {
    return absl::UnavailableError(
        StrCat("the Unix socket cannot be reached: ", std::strerror(errno),
               folder.empty() ? " (in containers: give both programs one --shared-memory-folder)" : ""));
  }
  DISTILL_RETURN_IF_ERROR(CheckSameUser(socket.get()));
  if (send(socket.get(), secret.data(), secret.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(secret.size())) {
    return absl::UnavailableError(StrCat("the Unix socket takes nothing: ", std::strerror(errno)));
  }
  return DescriptorRequest(std::move(socket));
}

StatusOr<std::optional<OwnedFd>> DescriptorRequest::Poll() {
  char byte;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t size = recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return std::nullopt;
  // Padding leaves room for a second one: all that came are ours to close.
  std::vector<OwnedFd> came;
  if (size >= 0) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < count; ++i) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        came.emplace_back(fd);
      }
    }
  }
  if (size <= 0) return absl::PermissionDeniedError("the server of the Unix socket does not accept the secret");
  if (came.size() != 1 || (message.msg_flags & MSG_CTRUNC) != 0) {
    return absl::DataLossError(StrCat(came.size(), " descriptors came over the Unix socket, one was due"));
  }
  return std::move(came[0]);
}

}  // namespace distill
