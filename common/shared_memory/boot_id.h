// Which running kernel this is: two processes that read the same id can share memory, if they can find each other.
#ifndef DISTILL_COMMON_SHARED_MEMORY_BOOT_ID_H_
#define DISTILL_COMMON_SHARED_MEMORY_BOOT_ID_H_

#include <string>

namespace distill {

// The kernel's random id of this boot, the same in all containers of a host; "" where it cannot be read. Any thread.
std::string BootId();

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_BOOT_ID_H_
