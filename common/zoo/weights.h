// Weights of zoo networks from and to files.
#ifndef DISTILL_COMMON_ZOO_WEIGHTS_H_
#define DISTILL_COMMON_ZOO_WEIGHTS_H_

#include <map>
#include <string>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/zoo/zoo_net.h"

namespace distill {

// Copies tensors into the net by name. Every parameter and buffer must be there with the right shape, and nothing else
// (num_batches_tracked may be missing, as in old torchvision files). kFailedPrecondition names the first mismatch and the counts.
Status LoadWeights(const SafetensorsFile& file, ZooNet* net);
// The net's state (float32 parameters and buffers, contiguous NCHW), with the spec in the metadata (see SpecToMetadata).
SafetensorsFile SaveWeights(const ZooNet& net);

// How a model file describes itself: metadata keys distill.arch, distill.width, distill.num_classes, distill.in_channels,
// distill.image ("28x28"), distill.mean, distill.std ("0.286,..."); `format` = "pt".
std::map<std::string, std::string> SpecToMetadata(const ModelSpec& spec);
// kInvalidArgument when a key is missing or malformed; names it.
StatusOr<ModelSpec> SpecFromMetadata(const std::map<std::string, std::string>& metadata);

// A TorchScript archive of the net in eval mode: forward(x: float (N,C,H,W), normalised) -> (N,K), or, with taps, a
// Dict[str, Tensor] of the output ("output") and the taps. Loads in plain Python (torch.jit.load); its state_dict has the
// net's names. Written atomically.
Status SaveTorchScript(ZooNet* net, const std::string& path, const std::vector<std::string>& taps = {});

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_WEIGHTS_H_
