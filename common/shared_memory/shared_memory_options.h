// Whether a program shares memory with its peers on the same host, and where they meet. One struct for both ends.
#ifndef DISTILL_COMMON_SHARED_MEMORY_SHARED_MEMORY_OPTIONS_H_
#define DISTILL_COMMON_SHARED_MEMORY_SHARED_MEMORY_OPTIONS_H_

#include <string>

namespace distill {

struct SharedMemoryOptions {
  bool enabled = true;
  // "": an abstract Unix socket. A folder that containers have in common, which do not see each other's.
  std::string folder;
};

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_SHARED_MEMORY_OPTIONS_H_
