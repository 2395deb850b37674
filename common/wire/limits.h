// Limits of what goes over the wire, for both ends and for whoever plans what is sent.
#ifndef DISTILL_COMMON_WIRE_LIMITS_H_
#define DISTILL_COMMON_WIRE_LIMITS_H_

#include <cstdint>

namespace distill {

// Largest message either side of a gRPC connection accepts, in bytes. Bigger ones fail with kResourceExhausted; the
// process goes on.
inline constexpr int kMaxMessageBytes = 64 << 20;
// Pixels of one batch, which travels in one message.
inline constexpr uint64_t kMaxPixelBytes = kMaxMessageBytes - 1024;
// Largest N of one batch.
inline constexpr uint32_t kMaxBatchImages = 4096;
// A teacher's answers to one batch, over all taps.
inline constexpr uint64_t kMaxAnswerBytes = 1 << 30;

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_LIMITS_H_
