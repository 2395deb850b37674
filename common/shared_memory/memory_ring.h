// A ring of memory that one process writes and another one reads. It holds bytes and nothing else: where they lie, and
// which of them have been read, both sides tell each other by another way (the feature stream's messages), so that
// nothing that is found in the memory has to be believed.
//
// The writer makes the memory (memfd) at its full size and seals that size: a reader can never be made to touch pages
// that are not there any more. Pages exist from the start, so that a full machine is an error of Create() and no signal
// later. They count as the writer's (its cgroup's), and are freed when both sides have let go, or died.
#ifndef DISTILL_COMMON_SHARED_MEMORY_MEMORY_RING_H_
#define DISTILL_COMMON_SHARED_MEMORY_MEMORY_RING_H_

#include <cstdint>
#include <memory>
#include <span>

#include "common/shared_memory/owned_fd.h"
#include "common/status.h"

namespace distill {

// Sizes of a ring, in bytes. A ring stays in a processor's cache: what is written is read again before it goes to
// memory. More is slower; less leaves too few pieces on their way to cover the time that a message takes.
inline constexpr uint64_t kLeastRingBytes = 64 << 10;
inline constexpr uint64_t kMostRingBytes = 8 << 20;

// A run of bytes of a ring; it never goes around the end.
struct RingPiece {
  uint64_t offset = 0;
  uint64_t size = 0;
};

// Thread-compatible, except Fill().
class RingWriter {
 public:
  // `bytes` is rounded down to whole pages. kInvalidArgument: it is not between the two sizes above.
  // kResourceExhausted: no memory or no descriptor. kUnavailable: the kernel does not do it (Linux before 3.17, a
  // sandbox).
  static StatusOr<std::shared_ptr<RingWriter>> Create(uint64_t bytes);
  ~RingWriter();
  RingWriter(const RingWriter&) = delete;
  RingWriter& operator=(const RingWriter&) = delete;

  uint64_t bytes() const { return bytes_; }
  // For the reader. Whoever gets it can read, not write (Linux 5.1 and later).
  int fd() const { return fd_.get(); }

  // Most bytes that the next piece may have; 0: all are waiting to be read.
  uint64_t room() const;
  // The next piece. REQUIRES: 0 < size <= room().
  RingPiece Take(uint64_t size);
  // The reader is done with the `size` oldest bytes. False: it cannot be, and nothing is changed.
  bool Return(uint64_t size);
  // Writes a piece that was taken and not returned; any thread. `bytes` has piece.size of them.
  void Fill(const RingPiece& piece, const uint8_t* bytes) const;

 private:
  RingWriter(OwnedFd fd, uint8_t* memory, uint64_t bytes) : fd_(std::move(fd)), memory_(memory), bytes_(bytes) {}
  const OwnedFd fd_;
  uint8_t* const memory_;  // mapped; unmapped by the destructor
  const uint64_t bytes_;
  uint64_t taken_ = 0, returned_ = 0;  // since the beginning
};

// Immutable, thread-safe.
class RingReader {
 public:
  // Maps the memory for reading and closes the descriptor. kFailedPrecondition: it is no memory of `bytes` bytes whose
  // size is sealed. kResourceExhausted: it cannot be mapped.
  static StatusOr<std::shared_ptr<const RingReader>> Open(OwnedFd fd, uint64_t bytes);
  ~RingReader();
  RingReader(const RingReader&) = delete;
  RingReader& operator=(const RingReader&) = delete;

  uint64_t bytes() const { return bytes_; }
  // The bytes of a piece. The writer may change them at any time: copy first, then look. kDataLoss: an empty piece, or
  // one that is not inside the ring.
  StatusOr<std::span<const uint8_t>> At(const RingPiece& piece) const;

 private:
  RingReader(const uint8_t* memory, uint64_t bytes) : memory_(memory), bytes_(bytes) {}
  const uint8_t* const memory_;  // mapped; unmapped by the destructor
  const uint64_t bytes_;
};

}  // namespace distill

#endif  // DISTILL_COMMON_SHARED_MEMORY_MEMORY_RING_H_
