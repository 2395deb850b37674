// Who speaks to the coordinator.
#ifndef DISTILL_COMMON_FLEET_WORKER_IDENTITY_H_
#define DISTILL_COMMON_FLEET_WORKER_IDENTITY_H_

#include <cstdint>
#include <string>

namespace distill {

// Goes with every message.
struct WorkerIdentity {
  std::string worker_id;
  std::string incarnation;         // random per process start
  uint64_t coordinator_epoch = 0;  // highest one heard of; 0: none yet
};

}  // namespace distill

#endif  // DISTILL_COMMON_FLEET_WORKER_IDENTITY_H_
