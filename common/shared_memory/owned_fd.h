// A file descriptor that is closed when its owner goes.
#ifndef DISTILL_COMMON_SHARED_MEMORY_OWNED_FD_H_
#define DISTILL_COMMON_SHARED_MEMORY_OWNED_FD_H_

#include <unistd.h>

#include <utility>

namespace distill {

// Thread-compatible.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  ~OwnedFd() { Close(); }
  OwnedFd(OwnedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }

  int get() const { return fd_; }  // -1: none
  bool valid() const { return fd_ >= 0; }

 private:
  void Close() {
    if (fd_ >= 0) close(fd_);
  }
  int fd_ = -1;
};

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_OWNED_FD_H_
