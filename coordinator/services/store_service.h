// distill.v1.StoreService: the ranks' rendezvous, over gRPC. Waiting calls hold no thread. Thread-safe.
#ifndef DISTILL_COORDINATOR_SERVICES_STORE_SERVICE_H_
#define DISTILL_COORDINATOR_SERVICES_STORE_SERVICE_H_

#include <grpcpp/impl/codegen/service_type.h>

#include <memory>

#include "coordinator/core/rendezvous_store.h"

namespace distill {

// `store` is not owned and outlives the service; `epoch` is the coordinator's.
std::unique_ptr<grpc::Service> MakeStoreService(RendezvousStore* store, uint64_t epoch);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_SERVICES_STORE_SERVICE_H_
