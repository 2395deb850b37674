#include "coordinator/cli/job_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/str_format.h"
#include "common/str_cat.h"
#include "coordinator/cli/text.h"

namespace distill::cli {

StatusOr<JobFile> ReadJobFile(const std::string& path) {
  JobFile file;
  file.name = path == "-" ? "<stdin>" : path;
  const auto close = [](std::FILE* stream) {
    if (stream != nullptr && stream != stdin) std::fclose(stream);
  };
  const std::unique_ptr<std::FILE, decltype(close)> stream(path == "-" ? stdin : std::fopen(path.c_str(), "rbe"),
                                                           close);
  if (stream == nullptr)
    return absl::NotFoundError(StrCat("cannot open job file '", path, "': ", std::strerror(errno)));
  char block[65536];
  size_t read = 0;
  while (file.content.size() <= kMaxJobFileBytes && (read = std::fread(block, 1, sizeof block, stream.get())) > 0) {
    file.content.append(block, read);
  }
  if (std::ferror(stream.get()) != 0) {
    return absl::NotFoundError(StrCat("cannot read job file '", file.name, "': ", std::strerror(errno)));
  }
  if (file.content.size() > kMaxJobFileBytes) {
    return absl::InvalidArgumentError(StrCat(file.name, ": larger than 1 MiB; is this a job file?"));
  }
  if (file.content.empty()) return absl::InvalidArgumentError(StrCat(file.name, ": the file is empty"));
  if (const auto bad = FindInvalidUtf8(file.content); bad.has_value()) {
    size_t line = 1, start = 0;
    for (size_t i = 0; i < *bad; ++i) {
      if (file.content[i] == '\n') ++line, start = i + 1;
    }
    return absl::InvalidArgumentError(StrCat(file.name, ":", line, ":", *bad - start + 1,
                                             absl::StrFormat(": byte 0x%02x is not UTF-8; save the file as UTF-8",
                                                             static_cast<unsigned char>(file.content[*bad]))));
  }
  return file;
}

}  // namespace distill::cli
