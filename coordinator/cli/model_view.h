// What a network of the zoo costs, for people and for programs. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_MODEL_VIEW_H_
#define DISTILL_COORDINATOR_CLI_MODEL_VIEW_H_

#include <string>

#include "coordinator/cli/text.h"

namespace distill {
class Architecture;
}  // namespace distill

namespace distill::cli {

// The network's line, its parameters and multiply-adds, and which of them a prefix up to each end of a stage has.
std::string RenderModel(const Architecture& network, const TextOptions& options);
// {"arch": ..., "width": ..., "num_classes": ..., "in_channels": ..., "image": [H, W], "parameters": ...,
//  "multiply_adds": ..., "stages": [{"tap": ..., "shape": [C, H, W], "parameters": ..., "multiply_adds": ...}, ...]}
std::string ModelJson(const Architecture& network);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_MODEL_VIEW_H_
