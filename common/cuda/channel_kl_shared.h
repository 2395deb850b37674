// What channel_kl's device side and its plan on the host must agree on.
#ifndef DISTILL_COMMON_CUDA_CHANNEL_KL_SHARED_H_
#define DISTILL_COMMON_CUDA_CHANNEL_KL_SHARED_H_

#include <cstdint>

#include "common/kernels/element_type.h"

namespace distill::cuda_channel_kl {

inline constexpr int kThreads = 512;
inline constexpr int kWarp = 32;

// Sums of a part of a row, relative to m = max t and the shift c: z = sum p, zx = sum p (t - m)/T, zy = sum p y,
// zw = sum p w. z = 0: no position in use, and nothing else is read.
struct Near {
  double z, zx, zy, zw, c;
  float m;
  float spread;  // max |y|
  int32_t bad;   // values in use that are not finite
};
// The same in the far form: zt = sum p, zs = sum q relative to their maxima, a = sum p ((t - mt) - (s - ms))/T.
struct Far {
  double zt, zs, a;
  float mt, ms;
};
inline constexpr int64_t kStateBytes = sizeof(Near) + sizeof(Far);

// A block's shared memory: the sums of its lanes, room for a reduction over its threads, and two floats per value.
DISTILL_HOST_DEVICE constexpr int64_t SharedBytesPerPosition(int lanes) {
  return 2 * lanes * static_cast<int64_t>(sizeof(float));
}
DISTILL_HOST_DEVICE constexpr int64_t ReductionBytes(int lanes) {
  return kThreads / kWarp * lanes * static_cast<int64_t>(sizeof(double));
}
DISTILL_HOST_DEVICE constexpr int64_t SharedBytes(int64_t positions, int lanes) {
  return lanes * kStateBytes + ReductionBytes(lanes) + positions * SharedBytesPerPosition(lanes);
}

}  // namespace distill::cuda_channel_kl

#endif  // DISTILL_COMMON_CUDA_CHANNEL_KL_SHARED_H_
