// How a weights file says which network it belongs to: string metadata inside the safetensors file. No torch here.
//
// Keys: distill.arch, distill.width, distill.num_classes, distill.in_channels, distill.image ("28x28", height first),
// distill.mean and distill.std ("0.286,0.3", empty for none), and `format` = "pt", which other tools look for.
#ifndef DISTILL_COMMON_ZOO_MODEL_METADATA_H_
#define DISTILL_COMMON_ZOO_MODEL_METADATA_H_

#include <map>
#include <string>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// SpecFromMetadata(SpecToMetadata(spec)) equals spec but for `weights`, which is not kept.
std::map<std::string, std::string> SpecToMetadata(const ModelSpec& spec);
// kInvalidArgument when a key is missing or malformed; names it. Sizes are checked by Architecture::Create, not here.
StatusOr<ModelSpec> SpecFromMetadata(const std::map<std::string, std::string>& metadata);

// The spec as text that is equal exactly when the network is: one "key=value" line per field that describes it (a path
// of weights says nothing about content). A served model's digest is the sha256 of this text, defaults filled in,
// followed by the bytes of the weights file.
std::string CanonicalText(const ModelSpec& spec);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_MODEL_METADATA_H_
