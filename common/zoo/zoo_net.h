// A zoo architecture as a torch module, with taps and prefix execution.
//
// Parameter and buffer names equal Architecture::StateDict(), hence torchvision's, and come in its order. Frozen parts
// are made with torch's own means: FindModule("layer1")->eval() fixes the batch-norm statistics of a prefix while the
// rest trains. Thread-compatible; concurrent Forward() calls are safe when all modules are in eval mode.
#ifndef DISTILL_COMMON_ZOO_ZOO_NET_H_
#define DISTILL_COMMON_ZOO_ZOO_NET_H_

#include <ATen/core/Generator.h>
#include <torch/nn/module.h>

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/student_net.h"

namespace distill {

class ZooNet : public torch::nn::Module, public StudentNet {
 public:
  // Weights are uninitialised until InitWeights or LoadWeights (common/zoo/weights.h).
  static StatusOr<std::shared_ptr<ZooNet>> Create(const ModelSpec& spec);

  // Runs until the last of the taps is known.
  StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x, const std::vector<std::string>& taps) override;
  StatusOr<std::vector<torch::Tensor>> ForwardAfter(const std::string& start, const torch::Tensor& value,
                                                    const std::vector<std::string>& taps) override;
  StatusOr<torch::Tensor> ForwardAtAnySize(const torch::Tensor& x) override;

  // Convolutions and linear layers: ModuleDef::init, which is the reference's; batch norm: weight 1, bias 0. Depends on
  // the seed alone, not on the global generator.
  void InitWeights(uint64_t seed) override;

  // Modules by dotted path, "" for the net itself. Null when unknown, and for plain functions (relu, pools, flatten,
  // add).
  torch::nn::Module* FindModule(const std::string& path);
  const Architecture& architecture() const override { return arch_; }
  std::vector<StateTensor> State() const override;
  void SetTraining(std::string_view path, bool training) override;
  std::vector<bool> Modes() const override;
  void SetModes(const std::vector<bool>& modes) override;
  Status SetNormRanks(NormRanks* ranks) override;
  void MoveTo(const torch::Device& device) override { to(device); }
  Status Export(const std::string& path) const override;

 private:
  struct Node;
  struct Run;
  StatusOr<std::vector<torch::Tensor>> RunFrom(const torch::Tensor& x, const std::vector<std::string>& taps);
  Status CheckTaps(const std::vector<std::string>& taps) const;
  void InitNode(const Node& node, at::Generator* generator);
  explicit ZooNet(Architecture arch);
  Architecture arch_;
  std::shared_ptr<Node> root_;       // shared only because Node is incomplete here
  NormRanks* norm_ranks_ = nullptr;  // not owned
};

// uint8 (N, C, H, W) -> float32 on the same device, (x/255 - mean) / std per channel, channels_last when
// `channels_last`. REQUIRES: spec.mean and spec.std have C entries (or are empty: 0 and 1).
torch::Tensor NormalizePixels(const torch::Tensor& pixels, const ModelSpec& spec, bool channels_last);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_ZOO_NET_H_
