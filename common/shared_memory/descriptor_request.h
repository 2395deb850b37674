// Fetches a file descriptor from a DescriptorServer of the same host and user, without waiting: whoever owns a loop
// asks now and then.
#ifndef DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_REQUEST_H_
#define DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_REQUEST_H_

#include <optional>
#include <string>

#include "common/shared_memory/owned_fd.h"
#include "common/status.h"

namespace distill {

// Thread-compatible.
class DescriptorRequest {
 public:
  // Connects and shows the secret. `folder` is this process's own, as of DescriptorServer::Start; `name` and `secret`
  // may come from anybody: they decide about no path, and a server of another user is told nothing. kInvalidArgument:
  // they are not of the right form. kUnavailable: nobody is there (another network namespace without a folder in
  // common, as a rule), or too busy. kPermissionDenied: a server of another user.
  static StatusOr<DescriptorRequest> Start(const std::string& folder, const std::string& name,
                                           const std::string& secret);
  // The descriptor; nothing while there is no answer. No call after an answer or an error. kPermissionDenied: the
  // secret is not (any more) good. kDataLoss: what came is no descriptor.
  StatusOr<std::optional<OwnedFd>> Poll();

 private:
  explicit DescriptorRequest(OwnedFd socket) : socket_(std::move(socket)) {}
  OwnedFd socket_;
};

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_DESCRIPTOR_REQUEST_H_
