// The fleet as a message: for the RPC and for the status page.
#ifndef DISTILL_COORDINATOR_SERVICES_FLEET_CODEC_H_
#define DISTILL_COORDINATOR_SERVICES_FLEET_CODEC_H_

#include "coordinator/core/coordinator.h"
#include "distill/v1/job.pb.h"

namespace distill {

// Registered workers, the coordinator's epoch and version. Thread-safe.
v1::GetFleetResponse DescribeFleet(Coordinator* coordinator);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_FLEET_CODEC_H_
