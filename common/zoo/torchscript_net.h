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
  // Loads the archive to `device` ("cpu", "cuda:0") in eval mode and probes it with pictures of spec's channels, size,
  // mean and std (other fields are not read) to learn its taps (common/zoo/archive_probe.h). kNotFound: no such file.
  // kDataLoss: damaged, or torch cannot read it. kFailedPrecondition: it is another kind of file, or a program whose
  // answers are not the images'.
  static StatusOr<std::unique_ptr<TorchScriptNet>> Load(const std::string& path, const ModelSpec& spec,
                                                        const std::string& device = "cpu");
  virtual ~TorchScriptNet() = default;

  // As ZooNet::Forward, under no-grad; always runs the whole archive. "" is the output. Every value has x's number of
  // images as first axis and the shape of taps() behind it; kInternal, with both shapes, when the archive returns
  // something else this time.
  virtual StatusOr<std::vector<torch::Tensor>> Forward(const torch::Tensor& x,
                                                       const std::vector<std::string>& taps) = 0;
  // Sorted by path; the output has path "" and comes first. Kind is kOpaque. Shapes as measured.
  virtual const std::vector<TapInfo>& taps() const = 0;
  virtual uint64_t ParameterCount() const = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_TORCHSCRIPT_NET_H_
