#include "student_worker/data/gzip_file.h"

#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace distill {

StatusOr<std::unique_ptr<GzipFile>> GzipFile::Open(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat("cannot open '", path, "': ", error.message()));
  gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return absl::NotFoundError(absl::StrCat("cannot open '", path, "': ", std::strerror(errno)));
  gzbuffer(file, 256 << 10);
  return std::unique_ptr<GzipFile>(new GzipFile(path, file, bytes));
}

GzipFile::~GzipFile() { gzclose_r(file_); }

StatusOr<size_t> GzipFile::Read(void* out, size_t size) {
  size_t done = 0;
  while (done < size) {
    const unsigned chunk = static_cast<unsigned>(std::min<size_t>(size - done, 1u << 30));
    const int got = gzread(file_, static_cast<uint8_t*>(out) + done, chunk);
    int code = Z_OK;
    const char* text = gzerror(file_, &code);
    // Z_BUF_ERROR with some bytes delivered: the gzip stream ends in the middle.
    if (got < 0 || (code != Z_OK && code != Z_STREAM_END)) {
      return absl::DataLossError(absl::StrCat("'", path_, "' is damaged or truncated (", text, "); fetch it again"));
    }
    if (absl::EndsWith(path_, ".gz") && gzdirect(file_)) {
      return absl::DataLossError(absl::StrCat("'", path_, "' is not gzip data, though its name ends in .gz; fetch it again"));
    }
    if (got == 0) break;
    done += got;
  }
  return done;
}

Status GzipFile::ReadExact(void* out, size_t size, const std::string& what) {
  DISTILL_ASSIGN_OR_RETURN(const size_t got, Read(out, size));
  if (got == size) return OkStatus();
  return absl::DataLossError(
      absl::StrCat("'", path_, "' is truncated: ", what, " needs ", size, " bytes, ", got, " are there; fetch it again"));
}

}  // namespace distill
