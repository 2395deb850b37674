// The vector parts of tat_attention, one set per instruction set. Private to tat_attention_*.cc; plain types only (see
// simd_vector.inc). Matrices lie channel by channel, tokens along the rows: [features][t], t a multiple of 16 >= the
// number of tokens, 0 beyond it.
#ifndef DISTILL_COMMON_KERNELS_TAT_ATTENTION_SIMD_H_
#define DISTILL_COMMON_KERNELS_TAT_ATTENTION_SIMD_H_

#include <cstdint>

#include "common/kernels/element_type.h"

namespace distill::tat {

inline constexpr int64_t kPad = 16;    // tokens per row are rounded up to this
inline constexpr int64_t kPanel = 32;  // columns of b that gemm packs at a time

// kStream: past the caches, for maps that these do not hold (the line need not be fetched first).
enum class WriteMode : uint8_t { kSet, kStream };

struct Kernels {
  int64_t lanes;

  // c (+)= a b for one thread: c [m, n] with row stride ldc, b [k, n] with row stride ldb, a[i, p] at a[i * a_row + p *
  // a_column]. n is a multiple of 16 and c, b have whole rows of it. `panel` has room for k * kPanel floats.
  void (*gemm)(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_column, const float* b,
               int64_t ldb, float* c, int64_t ldc, bool accumulate, float* panel);

  // A tile of logits s [keys][t], queries in the lanes, becomes e = exp(scale * s - m) with the running maxima m [t]
  // raised to cover it; l = sum e and h = sum e * (scale * s - m) are carried on, and rescale [t] gets what earlier
  // sums have to be multiplied by. Before the first tile m = -1e30, l = h = 0.
  void (*softmax_update)(float* s, int64_t keys, int64_t t, float scale, float* m, float* l, float* h, float* rescale);
  // x [rows][t] *= factor [t].
  void (*scale_columns)(float* x, int64_t rows, int64_t t, const float* factor);
  // o [rows][t] and f [rows][t]: r = o - f into f (0 from column `count` on), dot [t] += sum over rows of r * o;
  // returns sum of r^2.
  double (*residual)(const float* o, float* f, int64_t rows, int64_t t, int64_t count, float* dot);
  // d [keys][t] = scale * w * (d - dot [t]): the softmax's derivative.
  void (*softmax_backward)(const float* w, float* d, int64_t keys, int64_t t, float scale, const float* dot);
  // to [columns][ld_to] = from [rows][ld_from]^T.
  void (*transpose)(const float* from, int64_t rows, int64_t columns, int64_t ld_from, float* to, int64_t ld_to);
  // to [count] = factor * from + extra_factor * extra (null: 0). After kStream, stream_fence before another thread
  // reads.
  void (*write)(const float* from, float factor, const float* extra, float extra_factor, int64_t count, WriteMode mode,
                float* to);
  void (*stream_fence)();
};

const Kernels& PortableKernels();
#ifdef DISTILL_KERNELS_X86
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
#endif

}  // namespace distill::tat

#endif  // DISTILL_COMMON_KERNELS_TAT_ATTENTION_SIMD_H_
