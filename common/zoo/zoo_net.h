// A zoo architecture as a torch module, with taps and prefix execution.
//
// Parameter and buffer names equal Architecture::StateDict(), hence torchvision's. Thread-compatible.
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

  // x: float32 (N, C, H, W), normalised, any memory format. Returns one tensor per tap, in the order asked for; "" is the network's
  // output (N, K). Runs only until the last of them is known. kInvalidArgument: unknown tap, wrong input shape.
  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps);

  // Convolutions: Kaiming normal (fan out, ReLU); batch norm: weight 1, bias 0; linear: torch's default uniform. Depends on the seed
  // alone, not on the global generator.
  void InitWeights(uint64_t seed);

  // Modules by dotted path; null when unknown.
  torch::nn::Module* FindModule(const std::string& path);
  const Architecture& architecture() const { return arch_; }

 private:
  explicit ZooNet(Architecture arch);
  Architecture arch_;
  struct Node;
  std::shared_ptr<Node> root_;
};

// uint8 (N, C, H, W) -> float32, (x/255 - mean) / std per channel, channels_last when `channels_last`.
// REQUIRES: spec.mean and spec.std have C entries (or are empty: 0 and 1).
torch::Tensor NormalizePixels(const torch::Tensor& pixels, const ModelSpec& spec, bool channels_last);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ZOO_NET_H_
