// Channel-wise distillation (CWD), forward and backward in one go: the heart of the loss, on raw memory, without torch.
//
// Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, arXiv:2011.13256. A row
// r = (n, c) is one channel's map over its H*W positions i; s and t are the student's and the teacher's values, T the
// temperature:
// clang-format off
//     p = softmax_i(t / T),   q = softmax_i(s / T),   KL_r = sum_i p_i log(p_i / q_i)
//     loss = weight * sum_r KL_r           gradient = d loss / d s = weight / T * (q - p)
// clang-format on
// The paper's weight is T^2 / C; with the authors' code, which divides by N too, it is T^2 / (N*C). With cross_entropy
// the teacher's entropy stays in: -sum_i p_i log q_i, and the same gradient.
//
// Shapes   student, teacher, gradient: N*C rows of H*W values, dense, either [N, C, H*W] or [N, H*W, C]; mask:
//          [N, H*W]. Each map is float32, bfloat16 or float16 on its own; everything inside is float32, sums across
//          blocks are double.
// Result   does not depend on the number of threads: every row is computed alone, and rows are summed in order. It
//          differs in the last bits between instruction sets (SimdLevel).
// Accuracy relative error about 1e-6 or better in loss and gradient also when the maps nearly agree or T is
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

struct ChannelKlOptions {
  double temperature = 4;      // in the maps' unit; 1e-6 <= T <= 1e6
  bool cross_entropy = false;  // with the teacher's entropy
  double weight = 1;           // multiplies loss and gradient; finite
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
  // values may be anything, NaN too). A sample without any position left contributes 0.
  // Null: all positions.
  const uint8_t* mask = nullptr;
};

// Where results go. All may be null. None may overlap the maps.
struct ChannelKlOutput {
  void* gradient = nullptr;                           // d loss / d student, in the maps' layout
  ElementType gradient_type = ElementType::kFloat32;  // float32 or the student's type
  double* row_divergence = nullptr;                   // [N, C]: KL_r, without the weight
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

// What ChannelKl refuses.
Status ValidateChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlOutput& output);

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_CHANNEL_KL_H_
