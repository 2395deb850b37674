// A plain array of floats for the kernels' scratch.
#ifndef DISTILL_COMMON_KERNELS_FLOAT_ARRAY_H_
#define DISTILL_COMMON_KERNELS_FLOAT_ARRAY_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace distill {

constexpr int64_t RoundUp(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct FreeFloats {
  void operator()(float* p) const { std::free(p); }
};
using FloatArray = std::unique_ptr<float[], FreeFloats>;

// 64-byte aligned, whole cache lines, not initialised. Throws std::bad_alloc.
inline FloatArray NewFloats(int64_t count) {
  void* const p = std::aligned_alloc(64, std::max<int64_t>(64, RoundUp(count * 4, 64)));
  if (p == nullptr) throw std::bad_alloc();
  return FloatArray(static_cast<float*>(p));
}

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_FLOAT_ARRAY_H_
