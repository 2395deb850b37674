// The inner loops of decoded pictures' way to a batch. One source file per level of vector instructions, each with its
// own compiler flags, chosen at run time (common/kernels/simd_level.h); all levels give the same bytes.
#ifndef DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_H_
#define DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "common/kernels/simd_level.h"

namespace distill {

// Weights of a resampled line are whole numbers of 2^-kWeightBits: with 8 bits of value a sum stays below 2^31.
inline constexpr int kWeightBits = 32 - 8 - 2;

// A line of `out` values, each a weighted sum of `count` neighbours from `first` on: out[i] = sum over k of
// weights[i * most + k] * in[first[i] + k], rounded and cut to 8 bits. Views of the caller's arrays.
struct LineFilter {
  uint32_t out = 0;
  uint32_t most = 0;  // >= each count
  const uint32_t* first = nullptr;
  const uint32_t* count = nullptr;
  const int32_t* weights = nullptr;
};

// Stateless; any thread.
struct PixelKernels {
  // `n` pixels of three interleaved bytes into three planes.
  void (*split_colours)(const uint8_t* pixels, size_t n, uint8_t* first, uint8_t* second, uint8_t* third);
  // Each of `rows` rows of `width` values, `stride` apart, by `filter`: out [rows, filter.out]. `scratch` has room for
  // kRowsAtOnce * width bytes.
  void (*resize_rows)(const uint8_t* in, uint64_t stride, uint32_t rows, uint32_t width, const LineFilter& filter,
                      uint8_t* scratch, uint8_t* out);
  // Each of `width` columns of `in`, whose rows are `stride` apart, by `filter`: out [filter.out, width].
  void (*resize_columns)(const uint8_t* in, uint64_t stride, uint32_t width, const LineFilter& filter, uint8_t* out);
};
inline constexpr uint32_t kRowsAtOnce = 16;

// REQUIRES: `level` is one of AvailableSimdLevels().
const PixelKernels& PixelKernelsFor(SimdLevel level);
inline const PixelKernels& BestPixelKernels() { return PixelKernelsFor(BestSimdLevel()); }

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_H_
