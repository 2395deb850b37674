// Channel-wise distillation in plain loops: one line of code per line of the paper, sums in double. What the fast
// kernels are checked against, and what a newcomer reads first. Semantics, shapes and errors: channel_kl.h.
#ifndef DISTILL_COMMON_KERNELS_CHANNEL_KL_REFERENCE_H_
#define DISTILL_COMMON_KERNELS_CHANNEL_KL_REFERENCE_H_

#include <vector>

#include "common/kernels/channel_kl.h"

namespace distill {

// KL(p || q) of one row, or with `cross_entropy` -sum p log q, and its gradient by the student's values.
//   teacher, student: `count` finite values; temperature > 0; Real is double or long double.
//   gradient: `count` values, d divergence / d student (no weight), or null.
// REQUIRES: count >= 0; 0 gives 0.
template <typename Real>
Real RowDivergence(bool cross_entropy, Real temperature, const Real* teacher, const Real* student, int64_t count,
                   Real* gradient);

struct ChannelKlReferenceResult {
  ChannelKlResult result;
  std::vector<double> gradient;        // the maps' shape and layout
  std::vector<double> row_divergence;  // [N, C]
};

// The whole loss. `Real` is the type of all arithmetic: long double where maps nearly agree and double itself would
// cancel.
template <typename Real = double>
StatusOr<ChannelKlReferenceResult> ChannelKlReference(const ChannelKlMaps& maps, const ChannelKlOptions& options);

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_CHANNEL_KL_REFERENCE_H_
