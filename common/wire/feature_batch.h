// Plain types of the feature stream: what a student asks of a teacher and what comes back. The mirror of
// proto/distill/v1/features.proto for code that must not see protobuf (the teacher engine, the trainer).
#ifndef DISTILL_COMMON_WIRE_FEATURE_BATCH_H_
#define DISTILL_COMMON_WIRE_FEATURE_BATCH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/wire/buffer.h"
#include "common/wire/dtype.h"

namespace distill {

// One tap as a client wants it. tap "" is the network's output.
struct TapRequest {
  std::string tap;
  WireDtype dtype = WireDtype::kF32;
  bool subtract_row_max = false;
  bool operator==(const TapRequest&) const = default;
};

// uint8 pixels, [N, C, H, W] row-major.
struct ImageBatch {
  uint32_t n = 0, c = 0, h = 0, w = 0;
  Buffer pixels;  // n*c*h*w bytes
};

// One tensor on the wire: row-major, little-endian.
struct WireTensor {
  std::vector<uint32_t> shape;  // [N, C, H, W] or [N, K]
  WireDtype dtype = WireDtype::kF32;
  Buffer bytes;  // product(shape) * SizeOf(dtype)
};

// The answer to one ImageBatch: one tensor per requested tap, in the order asked for.
struct FeatureBatch {
  std::vector<WireTensor> taps;
  std::string model_digest;
  double queue_seconds = 0;    // waiting on the teacher
  double compute_seconds = 0;  // forward, on the teacher
};

// Bytes of a tensor of this shape and dtype; 0-sized axes give 0.
inline uint64_t ByteSize(const std::vector<uint32_t>& shape, WireDtype dtype) {
  uint64_t n = SizeOf(dtype);
  for (uint32_t d : shape) n *= d;
  return n;
}

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_FEATURE_BATCH_H_
