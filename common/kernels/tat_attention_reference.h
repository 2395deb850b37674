// TaT's attention loss in plain loops: one line of code per line of the paper, all in double, the whole attention
// matrix held. What the tiled kernel is checked against, and what a newcomer reads first. Semantics, shapes and errors:
// tat_attention.h.
#ifndef DISTILL_COMMON_KERNELS_TAT_ATTENTION_REFERENCE_H_
#define DISTILL_COMMON_KERNELS_TAT_ATTENTION_REFERENCE_H_

#include <vector>

#include "common/kernels/tat_attention.h"

namespace distill {

struct TatReferenceResult {
  TatResult result;
  std::vector<double> gamma, phi, theta;  // gradients, the maps' shapes and layouts
};

StatusOr<TatReferenceResult> TatAttentionReference(const TatMaps& maps, const TatOptions& options);

}  // namespace distill

#endif  // DISTILL_COMMON_KERNELS_TAT_ATTENTION_REFERENCE_H_
