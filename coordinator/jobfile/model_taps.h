// The taps of a network, wherever their description comes from: a zoo architecture, or what a teacher measured of a
// TorchScript archive. Immutable after construction.
#ifndef DISTILL_COORDINATOR_JOBFILE_MODEL_TAPS_H_
#define DISTILL_COORDINATOR_JOBFILE_MODEL_TAPS_H_

#include <string>
#include <string_view>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/status.h"
#include "common/zoo/architecture.h"

namespace distill {

struct ModelTaps {
  // In execution order. `type` is the module's class name.
  std::vector<ServedTap> taps;
  // [K], or [K, H, W] of a network that answers for every pixel; empty: an archive that has none.
  TapShape output;

  // Null when unknown; "" is not a tap here.
  const ServedTap* Find(std::string_view path) const;
  std::vector<std::string> Paths() const;
  // Taps that end a stage and have a height and width, in order.
  std::vector<ServedTap> StageEnds() const;
};

ModelTaps TapsOf(const Architecture& architecture);
// kInvalidArgument: the model's architecture is neither in the zoo nor described by measured taps.
StatusOr<ModelTaps> TapsOf(const ServedModelInfo& model);

// The network of a student's archive as it was registered. kInvalidArgument: it describes itself wrongly.
StatusOr<Architecture> ArchitectureOf(const ServedModelInfo& archive);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_MODEL_TAPS_H_
