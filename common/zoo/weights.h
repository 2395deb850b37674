// Weights of students from and to files. Stateless; any thread that may use the net.
#ifndef DISTILL_COMMON_ZOO_WEIGHTS_H_
#define DISTILL_COMMON_ZOO_WEIGHTS_H_

#include <string>
#include <vector>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/zoo/model_metadata.h"
#include "common/zoo/zoo_net.h"

namespace distill {

// Copies tensors into the net by name. Floating-point tensors may be F32, F16, BF16 or F64 and are converted; a missing
// num_batches_tracked becomes 0, another missing integer buffer stays as it is. kFailedPrecondition as CheckWeightsFit
// (common/zoo/weights_file.h); the net is unchanged then.
Status LoadWeights(const SafetensorsFile& file, StudentNet* net);
// The net's state (float32 parameters and buffers, contiguous NCHW, copied), with the spec in the metadata
// (model_metadata.h).
SafetensorsFile SaveWeights(const StudentNet& net);

// A TorchScript archive of the net in eval mode: forward(x: float (N,C,H,W), normalised) -> (N,K), of a dense net
// (N,K,H,W) for images of any size, or, with taps, a Dict[str, Tensor] of the output ("output") and the taps. Loads in
// plain Python (torch.jit.load); its state_dict has the net's names, and the archive's parameters need no gradient.
// Written atomically, with WriteFileAtomically's errors. kInvalidArgument: unknown tap.
Status SaveTorchScript(const ZooNet& net, const std::string& path, const std::vector<std::string>& taps = {});

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_WEIGHTS_H_
