// Hands file descriptors to processes of the same host and user. A descriptor is offered under a secret of 32 random
// bytes, which its one receiver gets by another way (its feature stream); whoever shows the secret gets the descriptor,
// once. The other end is DescriptorRequest.
//
// Strangers of the host may connect to an abstract socket: who is of another user is sent away before a byte is read,
// who shows no secret that is offered gets nothing. At most 64 connections wait, for two seconds.
#ifndef DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_SERVER_H_
#define DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_SERVER_H_

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/shared_memory/owned_fd.h"
#include "common/status.h"

namespace distill {

// Thread-safe. One thread, "shm-pass".
class DescriptorServer {
 public:
  // `folder`: "" for an abstract socket; otherwise an existing folder, in which FOLDER/distill-<uid> is made, and
  // cleared of sockets that nobody listens to any more. kFailedPrecondition: that is there, and belongs to somebody
  // else or is open to others. kInvalidArgument: the path is too long. kUnavailable: all others.
  static StatusOr<std::unique_ptr<DescriptorServer>> Start(const std::string& folder);
  ~DescriptorServer();
  DescriptorServer(const DescriptorServer&) = delete;
  DescriptorServer& operator=(const DescriptorServer&) = delete;

  // For DescriptorRequest, with the folder.
  const std::string& name() const { return name_; }
  // The secret for a copy of `fd`. kResourceExhausted: no descriptor is left. kUnavailable: no random numbers.
  StatusOr<std::string> Offer(int fd);
  // It is not to be had any more; nothing happens when it was fetched.
  void Withdraw(const std::string& secret);
  // Connections that were sent away, for whatever reason.
  uint64_t refused() const { return refused_; }

 private:
  using Clock = std::chrono::steady_clock;
  struct Caller {
    OwnedFd socket;
    Clock::time_point deadline;
  };

  DescriptorServer(std::string name, std::string path, OwnedFd listener, OwnedFd stop);
  void Run();
  void Accept(std::vector<Caller>* callers);
  // What a caller has sent: the descriptor or the door.
  void Answer(int socket);
  void Refuse(const std::string& why);

  const std::string name_;
  const std::string path_;  // of the socket; "": abstract
  const OwnedFd listener_;
  const OwnedFd stop_;                // an eventfd: readable when the thread is to end
  std::atomic<uint64_t> refused_{0};  // counted by the thread, read by any
  std::atomic<bool> told_{false};     // the first refusal is in the log as a warning
  absl::Mutex mutex_;
  std::map<std::string, OwnedFd> offers_ ABSL_GUARDED_BY(mutex_);  // by secret
  std::thread thread_;                                             // joined by the destructor; last: it reads all above
};

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_SERVER_H_
