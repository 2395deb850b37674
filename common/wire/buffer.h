// A reference-counted block of bytes that outlives whoever made it: how tensors cross the border between torch and gRPC
// without a copy. A torch tensor's storage, a grpc::Slice or a plain allocation can stand behind it.
//
// Immutable bytes, thread-safe reference count. `data` is valid as long as `owner` (or a copy of it) lives.
#ifndef DISTILL_COMMON_WIRE_BUFFER_H_
#define DISTILL_COMMON_WIRE_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace distill {

struct Buffer {
  const uint8_t* data = nullptr;
  size_t size = 0;                    // bytes
  std::shared_ptr<const void> owner;  // keeps data alive

  // Takes the bytes over.
  static Buffer FromVector(std::vector<uint8_t> bytes) {
    auto held = std::make_shared<const std::vector<uint8_t>>(std::move(bytes));
    return Buffer{held->data(), held->size(), held};
  }
};

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_BUFFER_H_
