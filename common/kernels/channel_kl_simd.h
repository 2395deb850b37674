// The vector parts of channel_kl, one set per instruction set. Private to channel_kl_*.cc; plain types only, because
// the files that implement it must not share inline functions with the rest of the program (see simd_vector.inc).
//
// The arithmetic ("near" form). With any shift c near the mean of (s - t)/T under p,
//     y_i = (s_i - t_i)/T - c,   u = e^y - 1,   w = e^y - 1 - y >= 0,   A = E_p[y],   B = E_p[w],   Y = A + B = E_p[u]
//     KL = log1p(Y) - A          (q - p)_i = p_i (u_i - Y) / (1 + Y)
// Nothing cancels: u and w are computed directly, B is a sum of terms >= 0, and an error in A enters KL only multiplied
// by Y. The sums are kept per block of positions with the block's own maximum m and shift c, and merged exactly when
// the row is complete; where the blocks' p and u are still in the cache, the gradient is p (alpha u + beta) with two
// factors per block. For |y| > kNearLimit, where e^y could overflow against a vanishing p, the row is done again in the
// max-relative ("far") form
//     KL = sum p (log p - log q),   log p = (t - max t)/T - log Z_t,   log q likewise,
// in which such rows lose nothing because their KL is large.
#ifndef DISTILL_COMMON_KERNELS_CHANNEL_KL_SIMD_H_
#define DISTILL_COMMON_KERNELS_CHANNEL_KL_SIMD_H_

#include <cstdint>

#include "common/kernels/element_type.h"

namespace distill::channel_kl {

inline constexpr int64_t kBlock = 2048;  // positions per block of a row: its four arrays stay in the first-level cache
inline constexpr int64_t kColumnBlock = 256;  // channels last: most positions per block
inline constexpr int64_t kMaxLanes = 16;      // every float row a kernel is given has room for a multiple of this
inline constexpr float kNearLimit = 60;
inline constexpr float kExcluded = -3.40282347e+38f;  // marks a position outside the mask in float rows

// T, prepared. `offset` is subtracted from the student first, so that a large constant between the maps costs no
// accuracy.
struct Scale {
  float exponent;   // log2(e) / T
  float lowest;     // -125 / exponent
  float inverse_t;  // 1 / T
  float offset;
};

// Sums over one block, with p relative to the block's maximum: z = sum p, zy = sum p y, zw = sum p w.
struct Block {
  double z, zy, zw;  // z = 0: no position in use
  float m;           // max t
  float c;           // the shift
  float spread;      // max |y|
};

struct FarSums {
  double z_teacher, z_student;  // sum p, sum q, relative to the maxima
  double a;                     // sum p ((t - max t) - (s - max s)) / T
};

// Channels last: per channel the same sums over a run of positions. Arrays of C rounded up to kMaxLanes.
struct Columns {
  float *m, *c, *z, *zy, *zw, *spread;
};
struct ColumnMaps {
  const void* student;  // at the run's first position
  const void* teacher;
  ElementType student_type;
  ElementType teacher_type;
  const uint8_t* mask;  // at the run's first position, or null
  int64_t positions;
  int64_t channels;     // REQUIRES: >= lanes
  const float* offset;  // [C], instead of Scale::offset
};

// Callers hold a FlushDenormals: products of tiny probabilities would be denormal and cost a hundred cycles each.
struct Kernels {
  int64_t lanes;

  // Sums of each block of a row of n positions into blocks[ceil(n / kBlock)], and p and u of every position (p = 0
  // outside the mask).
  void (*row_stats)(const void* student, ElementType student_type, const void* teacher, ElementType teacher_type,
                    const uint8_t* mask, int64_t n, Scale scale, float* p, float* u, Block* blocks);
  // gradient = p (alpha u + beta), alpha and beta of the block. `stream`: write past the caches.
  void (*row_gradient)(const float* p, const float* u, int64_t n, const float* alpha, const float* beta, void* gradient,
                       ElementType gradient_type, bool stream);

  // A row as float, kExcluded outside the mask and up to the next multiple of kMaxLanes. False if a value in use is NaN
  // or infinite.
  bool (*row_to_float)(const void* map, ElementType type, const uint8_t* mask, int64_t n, float* out);
  // Replaces t by p and s by q, both relative to their maxima and 0 where excluded.
  FarSums (*row_far)(float* t, float* s, int64_t n, Scale scale);
  // gradient = q_factor * q - p_factor * p.
  void (*row_far_gradient)(const float* p, const float* q, int64_t n, float p_factor, float q_factor, void* gradient,
                           ElementType gradient_type);
  // log Z - E_p[(t - max t)/T]: the entropy of softmax(t / T). t as made by row_to_float, with at least one position in
  // use.
  double (*row_entropy)(const float* t, int64_t n, Scale scale);

  // Adds a run of positions to `sums`; `first` means that sums holds nothing yet. Returns false, and adds nothing, if
  // the mask leaves no position. scratch: kColumnBlock * (2 * kMaxLanes) + 6 * (C rounded up) floats.
  bool (*column_stats)(const ColumnMaps& maps, Scale scale, bool first, const Columns& sums, float* scratch);
  // into += from.
  void (*column_merge)(int64_t channels, Scale scale, const Columns& from, const Columns& into);
  // gradient of a run: p (alpha u + beta) with m, c, alpha, beta per channel; 0 outside the mask.
  void (*column_gradient)(const ColumnMaps& maps, Scale scale, const float* m, const float* c, const float* alpha,
                          const float* beta, void* gradient, ElementType gradient_type, bool stream);
};

const Kernels& PortableKernels();
#ifdef DISTILL_KERNELS_X86
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
#endif

}  // namespace distill::channel_kl

#endif  // DISTILL_COMMON_KERNELS_CHANNEL_KL_SIMD_H_
