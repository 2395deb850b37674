// Weights files against the architecture they are meant for, before any network is built. No torch here.
//
// What a description says is compared with what the file holds while both are still a few kilobytes: a file of 1 MB
// whose description asks for 200 G parameters costs an error text and no memory.
//
// Names that a wrapper changed are understood: DistributedDataParallel puts `module.` before each name, torch.compile
// `_orig_mod.`, a LightningModule the name of its field (`model.`, `net.`). A prefix that every tensor of the file
// carries is taken off; one that only some carry is named in the error.
// Stateless; any thread.
#ifndef DISTILL_COMMON_ZOO_WEIGHTS_FILE_H_
#define DISTILL_COMMON_ZOO_WEIGHTS_FILE_H_

#include <string>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

// Takes off the prefix that stands before every name of the file when the architecture's names follow it, and returns
// it; "" when there is none, and the file is unchanged.
std::string StripWrapperPrefix(SafetensorsFile* file, const Architecture& arch);

// ReadSafetensors for a network's weights: a file of another kind is called what it is (common/zoo/file_kind.h), and a
// wrapper's prefix is taken off, which is logged. The tensors are not compared with the architecture.
StatusOr<SafetensorsFile> ReadWeightsFile(const std::string& path, const Architecture& arch);

// Every parameter and buffer must be there with the right shape, and nothing else (num_batches_tracked may be missing,
// as in old torchvision files); floating-point tensors are F32, F16, BF16 or F64. kFailedPrecondition names the first
// misfit of each sort and their counts.
Status CheckWeightsFit(const SafetensorsFile& file, const Architecture& arch);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_WEIGHTS_FILE_H_
