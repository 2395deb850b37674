// Reading a file that may be gzipped: one sequential pass, with truncation and checksum errors reported.
#ifndef DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_
#define DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"

struct gzFile_s;

namespace distill {

// Thread-compatible. Errors name the file.
class GzipFile {
 public:
  // Plain files are read as they are; a name ending in ".gz" must hold gzip data (found at the first read).
  // kNotFound: cannot be opened.
  static StatusOr<std::unique_ptr<GzipFile>> Open(const std::string& path);
  ~GzipFile();
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  // Up to `size` bytes; fewer only at the end of the data, 0 there. kDataLoss: damaged or truncated gzip stream.
  StatusOr<size_t> Read(void* out, size_t size);
  // Exactly `size` bytes. kDataLoss: the data ends before; `what` names the part that is missing.
  Status ReadExact(void* out, size_t size, const std::string& what);

  const std::string& path() const { return path_; }
  // Size of the file on disk, and the most it can decompress to (deflate expands at most 1032 times).
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t MaxDataBytes() const { return file_bytes_ * 1040; }

 private:
  GzipFile(std::string path, gzFile_s* file, uint64_t file_bytes) : path_(std::move(path)), file_(file), file_bytes_(file_bytes) {}
  const std::string path_;
  gzFile_s* const file_;
  const uint64_t file_bytes_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_
