// What one feature stream, and all of a teacher's together, may hold.
#ifndef DISTILL_TEACHER_SERVER_STREAM_LIMITS_H_
#define DISTILL_TEACHER_SERVER_STREAM_LIMITS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/wire/limits.h"

namespace distill {

// Payload bytes of one message to a client. Large enough that per-message work does not count, small enough that a
// stream's pixels and credits are not stuck behind it.
inline constexpr uint64_t kChunkBytes = 1 << 20;
// Largest message on a teacher's port, in bytes: whoever speaks the Open Inference Protocol has whole tensors in one.
// It is the most that gRPC can be told; the feature stream holds its messages to kMaxMessageBytes.
inline constexpr int kMaxInferenceMessageBytes = std::numeric_limits<int>::max();
// Most taps of one stream.
inline constexpr int kMaxTaps = 256;
// Longest model name, digest, client name and tap path, in bytes: they go into logs and messages.
inline constexpr size_t kMaxNameBytes = 256;

struct StreamLimits {
  // Of one stream.
  uint32_t max_unanswered = 256;           // batches; one more gets RESOURCE_EXHAUSTED in band
  uint64_t max_waiting_bytes = 256 << 20;  // pixels of unanswered batches; more gets RESOURCE_EXHAUSTED in band
  // Feature bytes being computed or computed and unsent. Batches beyond it wait before they are computed (unless the
  // stream has nothing else under way), so a client that grants no credit does not fill the server's memory.
  uint64_t max_unsent_bytes = 256 << 20;
  uint64_t max_answer_bytes = kMaxAnswerBytes;  // one batch's features; more gets RESOURCE_EXHAUSTED in band
  // Of all streams together. Raising the budget lets more clients be ahead of their readers at once.
  uint64_t memory_budget = uint64_t{2} << 30;  // pixels and features, as above
  uint32_t max_streams = 1000;                 // one more gets UNAVAILABLE at once
  // A stream without `open` is ended after this.
  std::chrono::milliseconds open_timeout{30000};
  // While others wait for memory, a stream that takes none of its features for this long is ended.
  std::chrono::milliseconds slow_client_timeout{10000};
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_STREAM_LIMITS_H_
