// KL divergence between softmax distributions row by row, with its gradient in closed form: the inside of CWD and of
// Hinton's KD.
//
// For rows r = 1..R of length L, temperature T, p = softmax(teacher_r / T), q = softmax(student_r / T):
//     loss           = scale * sum over r of KL(p_r || q_r)
//     d loss / d s_r = scale / T * (q_r - p_r)
// The value and the gradient are computed together, because p and q are at hand then; backward only multiplies by the
// incoming scalar, and on the CPU not even that where the caller knew it (RowKlOptions::weight). Tensors of at most 32
// bits go through the fused kernels of common/kernels/channel_kl.h (CPU) and common/cuda/channel_kl_cuda.h (GPU), which
// read each row once and keep their accuracy where p and q nearly agree; others (float64 for checks) through torch's
// operators.
//
// Rows are shifted by their maximum before the division by T, so a constant added to a row, of any size, changes
// nothing but the rounding of the inputs themselves. Everything is log-softmax: no probability is ever divided or put
// through log.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_ROW_SOFTMAX_KL_H_
#define DISTILL_STUDENT_WORKER_LOSSES_ROW_SOFTMAX_KL_H_

#include <torch/types.h>

namespace distill {

struct RowKlOptions {
  double temperature = 1;      // > 0
  double scale = 1;            // of loss and gradient
  bool cross_entropy = false;  // leave the teacher's entropy in: scale * sum of H(p, q). Same gradient
  bool fused = true;           // false: torch's operators do it all
  double weight = 1;           // LossInputs::weight: what backward's incoming scalar is going to be; not 0
};

// log softmax(rows / T) over the last axis. rows: float32 or float64, temperature > 0.
torch::Tensor LogSoftmaxAtTemperature(const torch::Tensor& rows, double temperature);

// student, teacher: [R, L], floating point, same device; the teacher gets no gradient. Returns a scalar of float32
// (float64 for a float64 student). Bitwise equal rows give exactly 0 and a gradient of exactly 0.
torch::Tensor RowSoftmaxKl(const torch::Tensor& student, const torch::Tensor& teacher, const RowKlOptions& options);

// The same with one row for each (n, c) of maps [N, C, H, W], over its H*W positions. Contiguous and channels_last maps
// are read as they lie in memory; a teacher's map in the other layout than the student's is transposed first. `mask`:
// bool [N, H, W], undefined for all; positions where it is false leave both distributions and get no gradient, and a
// sample without any position contributes 0.
torch::Tensor MapSoftmaxKl(const torch::Tensor& student, const torch::Tensor& teacher, const RowKlOptions& options,
                           const torch::Tensor& mask = {});

// Takes the positions that `mask` (bool, the rows' shape) leaves out to a number so low that their probability is 0 and
// stays 0 in every product.
torch::Tensor MaskRows(const torch::Tensor& rows, const torch::Tensor& mask);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_LOSSES_ROW_SOFTMAX_KL_H_
