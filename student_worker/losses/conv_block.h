// The layer that losses bring along between student and teacher: convolution, optional batch norm, optional activation.
// Adapters, the channel-wise transformation, TaT's embeddings and MGD's generator are made of these.
//
// They are trained with the stage (optimizer, gradient synchronisation, checkpoint), dropped at its end and never
// exported: the next stage reads the raw map.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_CONV_BLOCK_H_
#define DISTILL_STUDENT_WORKER_LOSSES_CONV_BLOCK_H_

#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

class NormRanks;

// Thread-compatible.
class ConvBlock : public torch::nn::Module {
 public:
  enum class Norm {
    kNone,
    kBatch,      // over N, H, W, as torch.nn.BatchNorm2d in training
    kPerSample,  // over H, W of each sample: batch norm fed one sample at a time
    kFrozen,     // mean 0 and variance 1 for ever: only scale and shift
  };
  enum class Activation { kNone, kRelu, kGelu };
  struct Options {
    int64_t in = 0;
    int64_t out = 0;
    int64_t kernel = 1;  // odd; padded so that height and width stay
    bool bias = false;
    Norm norm = Norm::kNone;
    Activation activation = Activation::kNone;
  };
  // Weight [out, in, kernel, kernel] and bias uniform in +-1/sqrt(in * kernel^2) (torch's default for convolutions),
  // norm weight 1 and bias 0. They depend on the arguments alone, not on torch's global generator, so every rank and
  // every restart gets the same ones. Names: weight, bias, norm_weight, norm_bias.
  ConvBlock(const Options& options, uint64_t seed);

  // (N, in, H, W) -> (N, out, H, W), computed in the input's dtype.
  torch::Tensor forward(const torch::Tensor& x);
  const Options& options() const { return options_; }
  // While gradients are on, Norm::kBatch takes the images of all `ranks` together (common/zoo/batch_norm.h); without
  // gradients, when one rank measures alone, its own. Null: always its own, as at first. Not owned: outlives its use.
  void SetNormRanks(NormRanks* ranks) { norm_ranks_ = ranks; }

  torch::Tensor weight, bias, norm_weight, norm_bias;  // undefined when the options leave them out

 private:
  const Options options_;
  NormRanks* norm_ranks_ = nullptr;
};

// A stable 64-bit hash, to give every layer of a job its own seed.
uint64_t SeedFor(std::string_view name, uint64_t job_seed);

// The adapter a loss asks for, or null for "none". kInvalidArgument: unknown kind, or channel counts of zero.
StatusOr<std::shared_ptr<ConvBlock>> MakeAdapter(const LossPlan& loss, uint64_t seed);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_LOSSES_CONV_BLOCK_H_
