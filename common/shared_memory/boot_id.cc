#include "common/shared_memory/boot_id.h"

#include <fstream>

namespace distill {

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

}  // namespace distill
