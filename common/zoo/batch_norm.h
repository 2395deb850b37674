// Batch normalisation over the images of all ranks of a job (SyncBN): what a rank computes on its part of the batch is
// what one rank would compute on the whole.
#ifndef DISTILL_COMMON_ZOO_BATCH_NORM_H_
#define DISTILL_COMMON_ZOO_BATCH_NORM_H_

#include <torch/types.h>

#include <cstdint>

namespace distill {

// The ranks whose images a batch norm sees together. Batch norms talk to them in the forward pass, and autograd does in
// the backward pass: all ranks run the same ones in the same order.
class NormRanks {
 public:
  virtual ~NormRanks() = default;
  virtual uint32_t rank() const = 0;
  virtual uint32_t size() const = 0;
  // In place: the sum over the ranks, the same bits on each. Throws c10::DistError where a rank is lost.
  virtual void Sum(const torch::Tensor& tensor) = 0;
};

// y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and variance over N, H, W of all ranks' x; running
// statistics, where they are defined, move by `momentum` towards the mean and the unbiased variance, as
// torch.nn.BatchNorm2d's do, and are the same bits on all ranks afterwards.
//
// The gradient for x is that of the sum of all ranks' objectives; those for weight and bias are this rank's share of
// it, which data-parallel training averages over ranks with all others.
//
// Each rank sends 2C numbers times the number of ranks forward, and 2C backward.
// Shapes:  x [N, C, H, W], the same on all ranks; float32, or bfloat16 with float32 parameters. Returns x's dtype and
//          memory format.
// Threads: the caller's, and the one that runs backward, which uses `ranks` (not owned; outlives the graph).
// Errors:  exceptions, torch's and those of NormRanks::Sum.
torch::Tensor BatchNormOverRanks(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias,
                                 const torch::Tensor& running_mean, const torch::Tensor& running_var, double momentum,
                                 double eps, NormRanks* ranks);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_BATCH_NORM_H_
