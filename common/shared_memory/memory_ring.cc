#include "common/shared_memory/memory_ring.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "common/str_cat.h"

// Newer than Debian 12's headers promise everywhere; the kernel says whether it knows it.
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace distill {
namespace {

// Without these a reader's access could raise SIGBUS.
constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW;

Status Failed(const char* what, uint64_t bytes, int error) {
  const std::string text = StrCat(what, " ", bytes, " bytes of shared memory: ", std::strerror(error));
  if (error == ENOMEM || error == ENOSPC || error == EMFILE || error == ENFILE) {
    return absl::ResourceExhaustedError(text);
  }
  return absl::UnavailableError(text);
}

}  // namespace

StatusOr<std::shared_ptr<RingWriter>> RingWriter::Create(uint64_t bytes) {
  if (bytes < kLeastRingBytes || bytes > kMostRingBytes) {
    return absl::InvalidArgumentError(
        StrCat("a ring of ", bytes, " bytes; it may have ", kLeastRingBytes, " to ", kMostRingBytes));
  }
  bytes -= bytes % static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  OwnedFd fd(memfd_create("distill-features", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd.valid()) return Failed("cannot make", bytes, errno);
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return Failed("cannot make", bytes, errno);
  if (const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(bytes)); error != 0) {
    return Failed("cannot get", bytes, error);
  }
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (memory == MAP_FAILED) return Failed("cannot map", bytes, errno);
  const int raw = fd.get();
  std::shared_ptr<RingWriter> ring(new RingWriter(std::move(fd), static_cast<uint8_t*>(memory), bytes));
  fcntl(raw, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);  // where the kernel has it; the mapping made above stays writable
  if (fcntl(raw, F_ADD_SEALS, kSizeSeals | F_SEAL_SEAL) != 0) return Failed("cannot seal", bytes, errno);
  return ring;
}

RingWriter::~RingWriter() { munmap(memory_, bytes_); }

uint64_t RingWriter::room() const {
  const uint64_t free = bytes_ - (taken_ - returned_);
  return std::min(free, bytes_ - taken_ % bytes_);
}

RingPiece RingWriter::Take(uint64_t size) {
  const RingPiece piece{taken_ % bytes_, size};
  taken_ += size;
  return piece;
}

bool RingWriter::Return(uint64_t size) {
  if (size > taken_ - returned_) return false;
  returned_ += size;
  return true;
}

void RingWriter::Fill(const RingPiece& piece, const uint8_t* bytes) const {
  std::memcpy(memory_ + piece.offset, bytes, piece.size);
}

StatusOr<std::shared_ptr<const RingReader>> RingReader::Open(OwnedFd fd, uint64_t bytes) {
  struct stat about;
  struct statfs system;
  if (fstat(fd.get(), &about) != 0 || fstatfs(fd.get(), &system) != 0) {
    return absl::FailedPreconditionError(StrCat("shared memory cannot be looked at: ", std::strerror(errno)));
  }
  if (!S_ISREG(about.st_mode) || system.f_type != TMPFS_MAGIC) {
    return absl::FailedPreconditionError("the descriptor that came for shared memory is something else");
  }
  const int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals) {
    return absl::FailedPreconditionError("the size of the shared memory is not sealed");
  }
  if (bytes == 0 || about.st_size < 0 || static_cast<uint64_t>(about.st_size) != bytes) {
    return absl::FailedPreconditionError(
        StrCat("the shared memory has ", about.st_size, " bytes, and was announced with ", bytes));
  }
  void* const memory = mmap(nullptr, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd.get(), 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        StrCat("cannot map ", bytes, " bytes of shared memory: ", std::strerror(errno)));
  }
  return std::shared_ptr<const RingReader>(new RingReader(static_cast<const uint8_t*>(memory), bytes));
}

RingReader::~RingReader() { munmap(const_cast<uint8_t*>(memory_), bytes_); }

StatusOr<std::span<const uint8_t>> RingReader::At(const RingPiece& piece) const {
  if (piece.size == 0 || piece.offset > bytes_ || piece.size > bytes_ - piece.offset) {
    return absl::DataLossError(StrCat("a piece of ", piece.size, " bytes at offset ", piece.offset,
                                      " of shared memory, which has ", bytes_, " bytes"));
  }
  return std::span<const uint8_t>(memory_ + piece.offset, piece.size);
}

}  // namespace distill
