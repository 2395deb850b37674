#include "common/shared_memory/descriptor_server.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "common/log.h"
#include "common/shared_memory/meeting_place_internal.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr size_t kMostCallers = 64;
constexpr std::chrono::seconds kPatience{2};

Status SystemError(const std::string& what, int error) {
  return absl::UnavailableError(StrCat(what, ": ", std::strerror(error)));
}

OwnedFd MakeSocket() { return OwnedFd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

// Those of servers that were killed: nobody answers there.
void RemoveDeadSockets(const std::string& folder, const std::string& private_folder) {
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(private_folder, ignored)) {
    const std::string name = entry.path().filename().string();
    if (!IsPlaceName(name)) continue;
    const StatusOr<PlaceAddress> place = AddressOf(folder, name);
    const OwnedFd probe = MakeSocket();
    if (!place.ok() || !probe.valid()) continue;
    if (connect(probe.get(), place->get(), place->size) != 0 && errno == ECONNREFUSED) unlink(entry.path().c_str());
  }
}

Status MakePrivateFolder(const std::string& folder) {
  const std::string own = PrivateFolder(folder);
  if (mkdir(own.c_str(), 0700) != 0 && errno != EEXIST) {
    return SystemError(StrCat("cannot make the folder '", own, "' (--shared-memory-folder)"), errno);
  }
  struct stat about;
  if (lstat(own.c_str(), &about) != 0) return SystemError(StrCat("cannot look at '", own, "'"), errno);
  if (!S_ISDIR(about.st_mode) || about.st_uid != geteuid() || (about.st_mode & 077) != 0) {
    return absl::FailedPreconditionError(StrCat("'", own, "' must be a folder of user ", geteuid(),
                                                " that is closed to others (mode 0700); remove it, or choose another "
                                                "--shared-memory-folder"));
  }
  RemoveDeadSockets(folder, own);
  return OkStatus();
}

// Takes as long wherever the first difference is. REQUIRES: equal sizes.
bool SameSecret(const std::string& a, const char* b) {
  uint8_t difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<uint8_t>(a[i] ^ b[i]);
  return difference == 0;
}

bool SendDescriptor(int socket, int fd) {
  char byte = 0;
  iovec data{&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == 1;
}

}  // namespace

StatusOr<std::unique_ptr<DescriptorServer>> DescriptorServer::Start(const std::string& folder) {
  DISTILL_ASSIGN_OR_RETURN(std::string name, RandomPlaceName());
  DISTILL_ASSIGN_OR_RETURN(const PlaceAddress place, AddressOf(folder, name));
  if (!folder.empty()) DISTILL_RETURN_IF_ERROR(MakePrivateFolder(folder));
  std::string path = folder.empty() ? "" : StrCat(PrivateFolder(folder), "/", name);
  OwnedFd listener = MakeSocket();
  OwnedFd stop(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!listener.valid() || !stop.valid()) return SystemError("cannot make a Unix socket", errno);
  if (bind(listener.get(), place.get(), place.size) != 0 || listen(listener.get(), kMostCallers) != 0) {
    const int error = errno;
    if (!path.empty()) unlink(path.c_str());
    return SystemError(StrCat("cannot listen at the Unix socket ", path.empty() ? "@" + name : "'" + path + "'"),
                       error);
  }
  return std::unique_ptr<DescriptorServer>(
      new DescriptorServer(std::move(name), std::move(path), std::move(listener), std::move(stop)));
}

DescriptorServer::DescriptorServer(std::string name, std::string path, OwnedFd listener, OwnedFd stop)
    : name_(std::move(name)), path_(std::move(path)), listener_(std::move(listener)), stop_(std::move(stop)) {
  thread_ = std::thread([this] { Run(); });
}

DescriptorServer::~DescriptorServer() {
  const uint64_t one = 1;
  // An eventfd of which nothing was read takes it.
  if (write(stop_.get(), &one, sizeof one) != sizeof one) LogError("the thread shm-pass cannot be ended");
  thread_.join();
  if (!path_.empty()) unlink(path_.c_str());
}

StatusOr<std::string> DescriptorServer::Offer(int fd) {
  DISTILL_ASSIGN_OR_RETURN(std::string secret, RandomBytes(kNonceBytes));
  OwnedFd copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!copy.valid()) return absl::ResourceExhaustedError(StrCat("no file descriptor: ", std::strerror(errno)));
  absl::MutexLock lock(&mutex_);
  offers_[secret] = std::move(copy);
  return secret;
}

void DescriptorServer::Withdraw(const std::string& secret) {
  OwnedFd withdrawn;  // closed under no lock
  absl::MutexLock lock(&mutex_);
  const auto found = offers_.find(secret);
  if (found == offers_.end()) return;
  withdrawn = std::move(found->second);
  offers_.erase(found);
}

void DescriptorServer::Run() {
  pthread_setname_np(pthread_self(), "shm-pass");
  std::vector<Caller> callers;
  while (true) {
    std::vector<pollfd> fds = {{stop_.get(), POLLIN, 0}};
    // With as many as may wait, the next ones stay in the kernel's queue.
    fds.push_back({callers.size() < kMostCallers ? listener_.get() : -1, POLLIN, 0});
    int timeout = -1;
    for (const Caller& caller : callers) {
      fds.push_back({caller.socket.get(), POLLIN, 0});
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(caller.deadline - Clock::now()).count();
      const int wait = static_cast<int>(std::max<int64_t>(0, left));
      timeout = timeout < 0 ? wait : std::min(timeout, wait);
    }
    if (poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) {
      LogError("no shared memory is handed out any more", {{"reason", std::strerror(errno)}});
      return;
    }
    if (fds[0].revents != 0) return;
    const Clock::time_point now = Clock::now();
    for (size_t i = 0; i < callers.size(); ++i) {
      Caller& caller = callers[i];
      if (fds[i + 2].revents != 0) {
        Answer(caller.socket.get());
        caller.socket = OwnedFd();
      } else if (now >= caller.deadline) {
        Refuse("nothing came from the caller");
        caller.socket = OwnedFd();
      }
    }
    std::erase_if(callers, [](const Caller& caller) { return !caller.socket.valid(); });
    if (fds[1].revents != 0) Accept(&callers);
  }
}

void DescriptorServer::Accept(std::vector<Caller>* callers) {
  OwnedFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid()) {
    // Without a descriptor to be had, the caller stays in the queue: no busy loop until there is one.
    if (errno == EMFILE || errno == ENFILE) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return;
  }
  if (const Status same = CheckSameUser(socket.get()); !same.ok()) return Refuse(std::string(same.message()));
  callers->push_back({std::move(socket), Clock::now() + kPatience});
}

void DescriptorServer::Answer(int socket) {
  char secret[kNonceBytes + 1];  // one more, so that a longer message is seen
  const ssize_t size = recv(socket, secret, sizeof secret, MSG_DONTWAIT);
  if (size == 0) return;  // it only looked whether anybody is here (RemoveDeadSockets), or died
  if (size != kNonceBytes) return Refuse("the caller shows no secret");
  OwnedFd fd;
  {
    absl::MutexLock lock(&mutex_);
    auto found = offers_.end();
    for (auto it = offers_.begin(); it != offers_.end(); ++it) {
      if (SameSecret(it->first, secret)) found = it;
    }
    if (found != offers_.end()) {
      fd = std::move(found->second);
      offers_.erase(found);
    }
  }
  if (!fd.valid()) return Refuse("the caller shows a secret that is not offered");
  if (!SendDescriptor(socket, fd.get())) Refuse("the caller went away");
}

void DescriptorServer::Refuse(const std::string& why) {
  ++refused_;
  // Whoever wants to can make any number of these.
  Log(told_.exchange(true) ? LogLevel::kDebug : LogLevel::kWarning, "a request for shared memory was refused",
      {{"reason", why}});
}

}  // namespace distill
