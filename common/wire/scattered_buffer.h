// Bytes in pieces, as a transport receives them: whoever needs them gathers them where they have to be, once.
#ifndef DISTILL_COMMON_WIRE_SCATTERED_BUFFER_H_
#define DISTILL_COMMON_WIRE_SCATTERED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "common/wire/buffer.h"

namespace distill {

// Immutable bytes, thread-safe reference count. The pieces are valid as long as `owner` (or a copy of it) lives.
struct ScatteredBuffer {
  std::vector<std::span<const uint8_t>> pieces;  // none of them empty
  size_t size = 0;                               // of all pieces, bytes
  std::shared_ptr<const void> owner;             // keeps the pieces alive

  static ScatteredBuffer From(const Buffer& buffer) {
    ScatteredBuffer scattered;
    if (buffer.size > 0) scattered.pieces.emplace_back(buffer.data, buffer.size);
    scattered.size = buffer.size;
    scattered.owner = buffer.owner;
    return scattered;
  }
  // In one piece: the bytes where they are when they lie together, else one copy.
  Buffer Joined() const {
    if (pieces.empty()) return Buffer{};
    if (pieces.size() == 1) return Buffer{pieces[0].data(), size, owner};
    std::shared_ptr<uint8_t[]> bytes(new uint8_t[size]);  // not zeroed first
    size_t at = 0;
    for (std::span<const uint8_t> piece : pieces) {
      std::memcpy(bytes.get() + at, piece.data(), piece.size());
      at += piece.size();
    }
    const uint8_t* const data = bytes.get();
    return Buffer{data, size, std::move(bytes)};
  }
};

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_SCATTERED_BUFFER_H_
