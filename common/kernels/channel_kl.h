// Channel-wise distillation (CWD), forward and backward in one go: the heart of the loss, on raw memory, without torch.
//
// Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256. A row
// r = (n, c) is one channel's map over its H*W positions i; s and t are the student's and the teacher's values, T the
// temperature:
//     p = softmax_i(t / T),   q = softmax_i(s / T),   KL_r = sum_i p_i log(p_i / q_i)
//     loss = weight * T^2 / (N*C) * sum_r KL_r           gradient = d loss / d s = weight * T / (N*C) * (q - p)
// (other divergences, reductions and the factor T^2 by option). The division by N, which the paper's formula leaves
// out, is that of the authors' code.
//
// Shapes   student, teacher, gradient: N*C rows of H*W values, dense, either [N, C, H*W] or [N, H*W, C]; mask:
//          [N, H*W]. Each map is float32, bfloat16 or float16 on its own; everything inside is float32, sums across
//          blocks are double.
// Result   does not depend on the number of threads: every row is computed alone, and rows are summed in order. It
//          differs in the last bits between instruction sets (SimdLevel).
// Accuracy of kl_t_s: relative error about 1e-6 or better in loss and gradient also when the maps nearly agree or T is
//          large, where q - p and log p - log q cancel; equal maps give exactly 0. How: channel_kl_simd.h.
// Memory   extra: two float rows per thread ([N, C, H*W]); about 3 % of a map ([N, H*W, C]). The teacher and student
//          are read once from memory and the gradient written once where a row (or, channels last, a group of samples)
//          fits into the cache.
// Versions channel_kl_reference.h (plain loops, read this first); channel_kl_{portable,avx2,avx512}.cc (one source,
//          three instruction sets).
#ifndef DISTILL_COMMON_KERNELS_CHANNEL_KL_H_
#define DISTILL_COMMON_KERNELS_CHANNEL_KL_H_

#include <cstdint>

#include "common/kernels/element_type.h"
#include "common/kernels/map_layout.h"
#include "common/kernels/parallel_for.h"
#include "common/kernels/simd_level.h"
#include "common/status.h"

namespace distill {

// What is summed over the positions of a row. p: teacher, q: student, m = (p + q) / 2. All but the first two are
// computed row by row in double by the reference's code, about 30 times slower.
enum class Divergence : uint8_t {
  kTeacherStudent,  // kl_t_s: sum p log(p/q), the paper's
  kCrossEntropy,    // ce: -sum p log q; kl_t_s plus the teacher's entropy, hence the same gradient
  kStudentTeacher,  // kl_s_t: sum q log(q/p)
  kJensenShannon,   // js: (sum p log(p/m) + sum q log(q/m)) / 2
  kSquaredError,    // mse: sum (q - p)^2 (the authors' code uses T = 1 with it)
};

enum class MapReduction : uint8_t {
  kMean,         // over the N*C rows
  kSumChannels,  // sum over C, mean over N
  kSum,          // over all rows
};

struct ChannelKlOptions {
  double temperature = 4;  // in the maps' unit; 1e-6 <= T <= 1e6
  Divergence divergence = Divergence::kTeacherStudent;
  MapReduction reduction = MapReduction::kMean;
  bool scale_t2 = true;  // multiply by T^2, so that gradients keep their size when T changes
  double weight = 1;     // multiplies loss and gradient; finite
};

// The two maps. Pointers need only their element's alignment; 64-byte aligned rows are fastest.
struct ChannelKlMaps {
  int64_t n = 0, c = 0, hw = 0;  // any of them may be 0: the loss is 0 then
  MapLayout layout = MapLayout::kChannelsFirst;
  const void* student = nullptr;
  ElementType student_type = ElementType::kFloat32;
  const void* teacher = nullptr;
  ElementType teacher_type = ElementType::kFloat32;
  // [N, H*W], one byte per position; 0 takes the position out of both softmaxes of all channels (its gradient is 0, its
  // values may be anything, NaN too). A sample without any position left contributes 0; it still counts in the mean.
  // Null: all positions.
  const uint8_t* mask = nullptr;
};

// Where results go. All may be null. None may overlap the maps.
struct ChannelKlOutput {
  void* gradient = nullptr;                           // d loss / d student, in the maps' layout
  ElementType gradient_type = ElementType::kFloat32;  // float32 or the student's type
  double* row_divergence = nullptr;  // [N, C]: KL_r (or the chosen divergence), without T^2, weight and mean
};

struct ChannelKlResult {
  double loss = 0;
  // Rows that hold a NaN or an infinity at a position in use. Their gradient is 0, their row_divergence NaN, and so is
  // the loss: the caller skips the step and names the tap.
  int64_t nonfinite_rows = 0;
  int64_t first_nonfinite_row = -1;  // n * C + c, or -1
};

// kInvalidArgument, with nothing written: negative shape, null map, temperature or weight out of range, gradient type.
// Thread-safe, stateless; blocks until done. `level` is for tests: REQUIRES: one of AvailableSimdLevels().
StatusOr<ChannelKlResult> ChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options,
                                    const ChannelKlOutput& output, const ParallelFor& parallel_for,
                                    SimdLevel level = BestSimdLevel());

// Factor between the sum over rows of the divergence and the loss: weight * (T^2 or 1) / (N*C, N or 1).
inline double ChannelKlScale(const ChannelKlMaps& maps, const ChannelKlOptions& options) {
  double scale = options.weight;
  if (options.scale_t2) scale *= options.temperature * options.temperature;
  if (options.reduction != MapReduction::kSum) scale /= static_cast<double>(maps.n > 1 ? maps.n : 1);
  if (options.reduction == MapReduction::kMean) scale /= static_cast<double>(maps.c > 1 ? maps.c : 1);
  return scale;
}
// What ChannelKl refuses.
Status ValidateChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlOutput& output);

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_CHANNEL_KL_H_
