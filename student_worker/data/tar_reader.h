// Reads a tar archive (ustar, GNU long names, pax paths) front to back. Nothing is ever written to disk.
#ifndef DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_
#define DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_

#include <cstdint>
#include <string>

#include "common/status.h"
#include "student_worker/data/gzip_file.h"

namespace distill {

struct TarEntry {
  std::string name;   // as stored; a leading "./" is removed
  bool is_file = false;
  uint64_t size = 0;  // bytes of content
};

// Thread-compatible.
class TarReader {
 public:
  explicit TarReader(GzipFile* file) : file_(file) {}  // not owned; outlives the reader

  // Advances to the next entry, skipping unread content. False at the archive's end. kDataLoss: damaged or truncated.
  StatusOr<bool> Next(TarEntry* entry);
  // Content of the present entry. REQUIRES: Next() gave it and it was not read yet.
  StatusOr<std::string> ReadContent();

 private:
  Status Skip(uint64_t bytes);
  StatusOr<std::string> ReadPadded(uint64_t size);

  GzipFile* const file_;
  uint64_t content_ = 0;  // unread bytes of the present entry, without padding
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_TAR_READER_H_
