// distill.v1.FleetService: what workers report and ask, over gRPC. Thin: translates and hands on to Coordinator.
// Thread-safe.
#ifndef DISTILL_COORDINATOR_SERVICES_FLEET_SERVICE_H_
#define DISTILL_COORDINATOR_SERVICES_FLEET_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "coordinator/core/coordinator.h"

namespace distill {

// `coordinator` is not owned and outlives the service.
std::unique_ptr<grpc::Service> MakeFleetService(Coordinator* coordinator);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_FLEET_SERVICE_H_
