// The baselines: the losses as one writes them with PyTorch's operators, with autograd's backward.
#ifndef DISTILL_BENCH_LOSSES_EAGER_LOSSES_H_
#define DISTILL_BENCH_LOSSES_EAGER_LOSSES_H_

#include <torch/torch.h>

#include <cstdint>

namespace distill {

// T^2 / (N*C) * sum KL(softmax(teacher / T) || softmax(student / T)) over positions; maps [N, C, H, W].
torch::Tensor EagerChannelKl(const torch::Tensor& student, const torch::Tensor& teacher, double temperature);

// [N, C, H, W] each.
struct EagerTatMaps {
  torch::Tensor gamma, phi, theta, target;
};
// Copies in float64 that learn what `maps` learn, to check against.
EagerTatMaps InDouble(const EagerTatMaps& maps);
struct EagerTatPatches {
  int64_t grid, groups;  // grid x grid patches
};

// teacher_query: mean((softmax(theta gamma^T) phi - target)^2) over all pixels.
torch::Tensor EagerPlainTat(const EagerTatMaps& maps);
// The same in every group of patches, stacked along the channels. REQUIRES: the grid divides H and W.
torch::Tensor EagerPatchGroupTat(const EagerTatMaps& maps, EagerTatPatches patches);
// The same after average pooling.
torch::Tensor EagerAnchorTat(const EagerTatMaps& maps, int64_t kernel);

}  // namespace distill

#endif  // DISTILL_BENCH_LOSSES_EAGER_LOSSES_H_
