// Reading a file that may be gzipped: one sequential pass, with truncation, checksum errors and foreign bytes reported.
#ifndef DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_
#define DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/status.h"

namespace distill {

// Thread-compatible. Errors name the file.
class GzipFile {
 public:
  // Files that begin with gzip's magic bytes are decompressed, all members one after another (as `cat a.gz b.gz` makes
  // them), others are read as they are. A name ending in ".gz" must hold gzip data (found at the first read).
  // kNotFound: cannot be opened.
  static StatusOr<std::unique_ptr<GzipFile>> Open(const std::string& path);
  ~GzipFile();
  GzipFile(const GzipFile&) = delete;
  GzipFile& operator=(const GzipFile&) = delete;

  // Up to `size` bytes; fewer only at the end of the data, 0 there. kDataLoss: a damaged or truncated gzip stream, or
  // bytes behind it that are neither gzip data nor zeros. kUnavailable: the disk failed.
  StatusOr<size_t> Read(void* out, size_t size);
  // Exactly `size` bytes. kDataLoss: the data ends before; `what` names the part that is missing.
  Status ReadExact(void* out, size_t size, const std::string& what);

  const std::string& path() const { return path_; }
  // Bytes of data read so far. In a file that is not compressed they are those of the file.
  uint64_t position() const { return position_; }
  // Whether it is compressed; known after the first read.
  bool compressed() const;
  // Size of the file on disk, and the most it can decompress to (deflate expands at most 1032 times).
  uint64_t file_bytes() const { return file_bytes_; }
  uint64_t MaxDataBytes() const { return file_bytes_ * 1040; }

 private:
  struct Stream;  // zlib's state and the bytes read from the file that it has not taken yet
  GzipFile(std::string path, int file, uint64_t file_bytes);
  // Makes at least `least` (at most 2) unread bytes available unless the file ends before.
  Status Fill(size_t least);
  // Looks at the beginning of the file, or of what follows a gzip member.
  Status BeginMember();
  StatusOr<size_t> Inflate(uint8_t* out, size_t size);

  const std::string path_;
  const int file_;
  const uint64_t file_bytes_;
  const std::unique_ptr<Stream> stream_;
  uint64_t position_ = 0;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_GZIP_FILE_H_
