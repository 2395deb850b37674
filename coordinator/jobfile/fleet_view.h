// What the fleet serves right now, as far as a job file needs to know. Plain data.
#ifndef DISTILL_COORDINATOR_JOBFILE_FLEET_VIEW_H_
#define DISTILL_COORDINATOR_JOBFILE_FLEET_VIEW_H_

#include <vector>

#include "common/fleet/fleet_client.h"

namespace distill {

struct FleetView {
  // Models of live teachers; the same model may occur several times, once per teacher.
  std::vector<ServedModelInfo> models;
  // Archives that live students can train; likewise.
  std::vector<ServedModelInfo> archives;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_FLEET_VIEW_H_
