// The flags of teachers and students about shared memory on one host.
#ifndef DISTILL_COMMON_SERVICE_SHARED_MEMORY_FLAGS_H_
#define DISTILL_COMMON_SERVICE_SHARED_MEMORY_FLAGS_H_

#include <CLI/App.hpp>

#include "common/shared_memory/shared_memory_options.h"

namespace distill {

// Adds --shared-memory and --shared-memory-folder. `options` is written when the app parses and must live until then.
// Call before AddServiceFlags().
void AddSharedMemoryFlags(CLI::App* app, SharedMemoryOptions* options);

}  // namespace distill

#endif  // DISTILL_COMMON_SERVICE_SHARED_MEMORY_FLAGS_H_
