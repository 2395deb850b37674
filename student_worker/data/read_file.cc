#include "student_worker/data/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<std::string> ReadFileHead(const std::string& path, uint64_t limit, uint64_t offset) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return absl::DataLossError(StrCat("it cannot be opened: ", std::strerror(errno)));
  const absl::Cleanup closer = [file] { close(file); };
  struct stat about = {};
  std::string bytes;
  // One byte more than it has, so that its end is seen; a file that grows meanwhile is read on.
  if (fstat(file, &about) == 0 && static_cast<uint64_t>(about.st_size) >= offset) {
    bytes.resize(std::min<uint64_t>(limit, static_cast<uint64_t>(about.st_size) - offset + 1));
  }
  size_t done = 0;
  while (done < limit) {
    if (done == bytes.size()) bytes.resize(std::min<uint64_t>(limit, bytes.size() + (64 << 10)));
    const ssize_t got = pread(file, bytes.data() + done, bytes.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::UnavailableError(StrCat("it cannot be read: ", std::strerror(errno)));
    if (got == 0) break;
    done += got;
  }
  bytes.resize(done);
  return bytes;
}

}  // namespace distill
