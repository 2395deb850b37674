// A zoo architecture as a torch module, with taps and prefix execution.
//
// Parameter and buffer names equal Architecture::StateDict(), hence torchvision's, and come in its order. Frozen parts
// are made with torch's own means: FindModule("layer1")->eval() fixes the batch-norm statistics of a prefix while the
// rest trains. Thread-compatible; concurrent Forward() calls are safe when all modules are in eval mode.
#ifndef DISTILL_COMMON_ZOO_ZOO_NET_H_
#define DISTILL_COMMON_ZOO_ZOO_NET_H_

#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

class ZooNet : public torch::nn::Module {
 public:
  // Weights are uninitialised until InitWeights or LoadWeights (common/zoo/weights.h).
  static StatusOr<std::shared_ptr<ZooNet>> Create(const ModelSpec& spec);

  // x: floating point (N, C, H, W), of the weights' dtype and device, normalised, any memory format; C, H, W as in the
  // spec. Returns one tensor per tap, in the order asked for (a tap may be asked for twice); "" is the network's output
  // (N, K), of a dense network (N, K, H, W). Runs only until the last of them is known, and later modules' statistics
  // stay as they are. Tapped values are never overwritten by later layers. kInvalidArgument: unknown tap, no tap, wrong
  // input shape or dtype. kResourceExhausted: out of memory. kInternal: torch failed.
  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps);

  // The same, from the output of the top-level module `start` on, for which `value` (its shape, for N images) is taken;
  // `start` and what comes before it do not run, and taps there cannot be asked for. kInvalidArgument also: `start` is
  // no top-level module, or value has another shape.
  StatusOr<std::vector<torch::Tensor>> ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                    const std::vector<std::string>& taps);

  // Convolutions: Kaiming normal (fan out, ReLU); batch norm: weight 1, bias 0; linear, and the convolution with a bias
  // that gives an FCN's logits: torch's default, weight and bias uniform in +-1/sqrt(fan in). (Kaiming's fan out would
  // start logits of few classes at a standard deviation of several units.) Depends on the seed alone, not on the global
  // generator.
  void InitWeights(uint64_t seed);

  // Modules by dotted path, "" for the net itself. Null when unknown, and for those without parameters (relu, pools,
  // flatten, add), which are plain functions here.
  torch::nn::Module* FindModule(const std::string& path);
  const Architecture& architecture() const { return arch_; }

 private:
  struct Node;
  struct Run;
  Status CheckTaps(const std::vector<std::string>& taps) const;
  explicit ZooNet(Architecture arch);
  Architecture arch_;
  std::shared_ptr<Node> root_;  // shared only because Node is incomplete here
};

// uint8 (N, C, H, W) -> float32 on the same device, (x/255 - mean) / std per channel, channels_last when
// `channels_last`. REQUIRES: spec.mean and spec.std have C entries (or are empty: 0 and 1).
torch::Tensor NormalizePixels(const torch::Tensor& pixels, const ModelSpec& spec, bool channels_last);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ZOO_NET_H_
