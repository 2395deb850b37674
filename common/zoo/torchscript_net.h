// A frozen teacher from a TorchScript archive: forward(x) returns a tensor (the output) or a Dict[str, Tensor] of taps,
// in which the key "output", when present, is the network's output; where there is none, the key "out", which is what
// torchvision's segmentation networks call it, is a tap of that name and the output too. The output is [N, K], or
// [N, K, H, W] of a network that answers per pixel.
//
// A TorchScript archive is a program: only load archives from a folder that the operator owns. torch does not harden
// the loader against hostile files.
//
// Immutable after loading; Forward() may run on several threads.
#ifndef DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_
#define DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

class TorchScriptNet {
 public:
  // Loads the archive to `device` ("cpu", "cuda:0") in eval mode and runs it once on two blank images of spec's
  // channels and size (other fields of the spec are not read) to learn its taps. kNotFound: no such file. kDataLoss:
  // not an archive, damaged. kFailedPrecondition: it runs, but does not return floating-point tensors with the batch as
  // first axis, or fails on that input.
  static StatusOr<std::unique_ptr<TorchScriptNet>> Load(const std::string& path, const ModelSpec& spec,
                                                        const std::string& device = "cpu");
  virtual ~TorchScriptNet() = default;

  // As ZooNet::Forward, under no-grad; always runs the whole archive. "" is the output.
  virtual StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x,
                                                       const std::vector<std::string>& taps) = 0;
  // Sorted by path; the output has path "" and comes first. Kind is kOpaque. Shapes as measured.
  virtual const std::vector<TapInfo>& taps() const = 0;
  virtual uint64_t ParameterCount() const = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_
