#include "student_worker/data/gzip_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "common/str_cat.h"

namespace distill {
namespace {

constexpr size_t kBufferBytes = 256 << 10;
constexpr int kGzipOnly = 15 + 16;  // zlib's window bits: the largest window, a gzip header and checksum

}  // namespace

struct GzipFile::Stream {
  enum class State { kBegin, kPlain, kMember, kEnd };
  State state = State::kBegin;
  bool any_member = false;
  std::vector<uint8_t> buffer = std::vector<uint8_t>(kBufferBytes);
  size_t begin = 0, end = 0;  // unread part of `buffer`
  bool at_end = false;        // of the file
  z_stream zlib = {};
  size_t unread() const { return end - begin; }
};

GzipFile::GzipFile(std::string path, int file, uint64_t file_bytes)
    : path_(std::move(path)), file_(file), file_bytes_(file_bytes), stream_(std::make_unique<Stream>()) {}

StatusOr<std::unique_ptr<GzipFile>> GzipFile::Open(const std::string& path) {
  std::error_code error;
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(StrCat("cannot open '", path, "': ", error.message()));
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return absl::NotFoundError(StrCat("cannot open '", path, "': ", std::strerror(errno)));
  std::unique_ptr<GzipFile> opened(new GzipFile(path, file, bytes));
  if (inflateInit2(&opened->stream_->zlib, kGzipOnly) != Z_OK) {
    return absl::ResourceExhaustedError(StrCat("no memory to decompress '", path, "'"));
  }
  return opened;
}

GzipFile::~GzipFile() {
  inflateEnd(&stream_->zlib);
  close(file_);
}

Status GzipFile::Fill(size_t least) {
  Stream& s = *stream_;
  if (s.unread() >= least) return OkStatus();
  std::copy(s.buffer.begin() + s.begin, s.buffer.begin() + s.end, s.buffer.begin());
  s.end -= s.begin;
  s.begin = 0;
  while (s.unread() < least && !s.at_end) {
    const ssize_t got = read(file_, s.buffer.data() + s.end, s.buffer.size() - s.end);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::UnavailableError(StrCat("cannot read '", path_, "': ", std::strerror(errno)));
    s.at_end = got == 0;
    s.end += got;
  }
  return OkStatus();
}

Status GzipFile::BeginMember() {
  Stream& s = *stream_;
  DISTILL_RETURN_IF_ERROR(Fill(2));
  const bool magic = s.unread() >= 2 && s.buffer[s.begin] == 0x1F && s.buffer[s.begin + 1] == 0x8B;
  if (magic) {
    inflateReset(&s.zlib);
    s.state = Stream::State::kMember;
    s.any_member = true;
    return OkStatus();
  }
  if (!s.any_member) {
    if (path_.ends_with(".gz")) {
      return absl::DataLossError(StrCat("'", path_, "' is not gzip data, though its name ends in .gz; fetch it again"));
    }
    s.state = Stream::State::kPlain;
    return OkStatus();
  }
  // Some tools fill up to a block with zeros.
  while (s.unread() > 0) {
    if (std::any_of(s.buffer.begin() + s.begin, s.buffer.begin() + s.end, [](uint8_t byte) { return byte != 0; })) {
      return absl::DataLossError(
          StrCat("'", path_, "' holds bytes behind its gzip data that are none; fetch it again, or pack it anew"));
    }
    s.begin = s.end;
    DISTILL_RETURN_IF_ERROR(Fill(1));
  }
  s.state = Stream::State::kEnd;
  return OkStatus();
}

StatusOr<size_t> GzipFile::Inflate(uint8_t* out, size_t size) {
  Stream& s = *stream_;
  const auto damaged = [&](const char* text) {
    return absl::DataLossError(StrCat("'", path_, "' is damaged or truncated (", text, "); fetch it again"));
  };
  DISTILL_RETURN_IF_ERROR(Fill(1));
  if (s.unread() == 0) return damaged("its gzip data end in the middle");
  s.zlib.next_in = s.buffer.data() + s.begin;
  s.zlib.avail_in = static_cast<uInt>(s.unread());
  s.zlib.next_out = out;
  s.zlib.avail_out = static_cast<uInt>(std::min<size_t>(size, 1u << 30));
  const uInt room = s.zlib.avail_out;
  const int code = inflate(&s.zlib, Z_NO_FLUSH);
  s.begin = s.end - s.zlib.avail_in;
  if (code == Z_STREAM_END) {
    s.state = Stream::State::kBegin;
  } else if (code == Z_MEM_ERROR) {
    return absl::ResourceExhaustedError(StrCat("no memory to decompress '", path_, "'"));
  } else if (code != Z_OK && code != Z_BUF_ERROR) {
    return damaged(s.zlib.msg != nullptr ? s.zlib.msg : "no gzip data");
  }
  return room - s.zlib.avail_out;
}

StatusOr<size_t> GzipFile::Read(void* out, size_t size) {
  Stream& s = *stream_;
  uint8_t* const bytes = static_cast<uint8_t*>(out);
  size_t done = 0;
  while (done < size && s.state != Stream::State::kEnd) {
    if (s.state == Stream::State::kBegin) {
      DISTILL_RETURN_IF_ERROR(BeginMember());
    } else if (s.state == Stream::State::kMember) {
      DISTILL_ASSIGN_OR_RETURN(const size_t got, Inflate(bytes + done, size - done));
      done += got;
    } else {
      DISTILL_RETURN_IF_ERROR(Fill(1));
      const size_t part = std::min(s.unread(), size - done);
      std::memcpy(bytes + done, s.buffer.data() + s.begin, part);
      s.begin += part;
      done += part;
      if (part == 0) s.state = Stream::State::kEnd;
    }
  }
  position_ += done;
  return done;
}

bool GzipFile::compressed() const { return stream_->any_member; }

Status GzipFile::ReadExact(void* out, size_t size, const std::string& what) {
  DISTILL_ASSIGN_OR_RETURN(const size_t got, Read(out, size));
  if (got == size) return OkStatus();
  return absl::DataLossError(
      StrCat("'", path_, "' is truncated: ", what, " needs ", size, " bytes, ", got, " are there; fetch it again"));
}

}  // namespace distill
