// Plain types of the feature stream: what a student asks of a teacher and what comes back. The mirror of
// proto/distill/v1/features.proto for code that must not see protobuf (the teacher engine, the trainer).
#ifndef DISTILL_COMMON_WIRE_FEATURE_BATCH_H_
#define DISTILL_COMMON_WIRE_FEATURE_BATCH_H_

#include <cstdint>
#include <string>
#include <vector>

#include "common/wire/buffer.h"
#include "common/wire/tap_encoding.h"

namespace distill {

// One tap as a client wants it; a client may want one tap in several encodings. tap "" is the network's output.
struct TapRequest {
  std::string tap;
  TapEncoding encoding;
  bool operator==(const TapRequest&) const = default;
};

// uint8 pixels, [N, C, H, W] row-major.
struct ImageBatch {
  uint32_t n = 0, c = 0, h = 0, w = 0;
  Buffer pixels;  // n*c*h*w bytes
};

// One tensor on the wire.
struct WireTensor {
  std::vector<uint32_t> shape;  // [N, C, H, W] or [N, K], whatever the layout
  TapEncoding encoding;
  TensorLayout layout = TensorLayout::kRowMajor;
  Buffer bytes;  // LayoutOf(shape, encoding).bytes
  // Of a tensor that was received: LargestValue of its elements, not finite if one of them is not.
  float largest = 0;
};

// The answer to one ImageBatch: one tensor per requested tap, in the order asked for.
struct FeatureBatch {
  std::vector<WireTensor> taps;
  std::string model_digest;
  double queue_seconds = 0;    // waiting on the teacher
  double compute_seconds = 0;  // forward, on the teacher
};

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_FEATURE_BATCH_H_
