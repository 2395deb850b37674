// The ring of shared memory of one stream: memory that the server made, on the books of its budget, and what the client
// needs to get it.
//
//   offered -> mapped (the client said so), or dropped
//
// Thread-compatible: the stream's lock guards it.
#ifndef DISTILL_TEACHER_SERVER_STREAM_RING_H_
#define DISTILL_TEACHER_SERVER_STREAM_RING_H_

#include <cstdint>
#include <memory>
#include <string>

#include "common/shared_memory/descriptor_server.h"
#include "common/shared_memory/memory_ring.h"
#include "common/status.h"
#include "teacher_server/memory_budget.h"
#include "teacher_server/stream_open.h"

namespace distill {

// Mirrors v1.SharedMemoryOffer.
struct RingOffer {
  std::string socket;
  std::string secret;
  uint64_t bytes = 0;
};

// The client is on this kernel, `boot_id`, and would share enough memory.
bool WantsRing(const StreamOpen& open, const std::string& boot_id);

class StreamRing {
 public:
  // A ring of as much as the client wishes, kMostRingBytes at most. Neither pointer is owned, both outlive the ring.
  // kResourceExhausted: the budget has no room for it, or the machine has none. kUnavailable: all else.
  static StatusOr<std::unique_ptr<StreamRing>> Create(DescriptorServer* server, MemoryBudget* budget,
                                                      const StreamOpen& open);
  // The memory is freed when the client has let go of it too.
  ~StreamRing();
  StreamRing(const StreamRing&) = delete;
  StreamRing& operator=(const StreamRing&) = delete;

  const RingOffer& offer() const { return offer_; }
  bool mapped() const { return mapped_; }
  void SetMapped() { mapped_ = true; }
  // Shared with whoever fills a piece when the stream ends.
  const std::shared_ptr<RingWriter>& writer() const { return writer_; }
  // Most bytes of one message: a quarter of the ring, so that writing, messages and reading go on at the same time, and
  // messages, which cost more than the bytes, are few.
  uint64_t piece_bytes() const { return writer_->bytes() / 4; }

 private:
  StreamRing(DescriptorServer* server, MemoryBudget* budget, std::shared_ptr<RingWriter> writer, std::string secret);

  DescriptorServer* const server_;
  MemoryBudget* const budget_;
  const std::shared_ptr<RingWriter> writer_;
  const RingOffer offer_;
  bool mapped_ = false;
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_STREAM_RING_H_
