#include "common/service/shared_memory_flags.h"

#include <CLI/CLI.hpp>
#include <string>

namespace distill {

void AddSharedMemoryFlags(CLI::App* app, SharedMemoryOptions* options) {
  app->add_option_function<std::string>(
         "--shared-memory", [options](const std::string& choice) { options->enabled = choice == "auto"; },
         "How features travel between a teacher and a student of one host: auto (through shared memory, where the two "
         "can share it) or off (over gRPC, as between hosts)")
      ->check(CLI::IsMember({"auto", "off"}))
      ->default_str("auto");
  app->add_option("--shared-memory-folder", options->folder,
                  "Folder in which teachers and students of one host meet to share memory; for containers, which have "
                  "to have it in common. Default: they meet without a folder")
      ->check(CLI::ExistingDirectory)
      ->type_name("FOLDER");
}

}  // namespace distill
