#include "coordinator/services/fleet_codec.h"

#include "coordinator/store/record_codec.h"

namespace distill {

v1::GetFleetResponse DescribeFleet(Coordinator* coordinator) {
  v1::GetFleetResponse response;
  for (const WorkerStatus& status : coordinator->Fleet()) {
    v1::WorkerInfo* info = response.add_workers();
    info->set_id(status.worker.id);
    info->set_kind(status.worker.kind == WorkerKind::kTeacher ? "teacher" : "student");
    info->set_address(status.worker.address);
    info->set_state(status.state);
    info->set_heartbeat_age(status.heartbeat_age);
    for (const ServedModelInfo& model : status.worker.models) ToProto(model, info->add_models());
    for (const std::string& job : status.jobs) info->add_jobs(job);
    info->set_device(status.worker.device);
    info->set_version(status.worker.version);
    info->set_reason(status.reason);
  }
  response.set_coordinator_epoch(coordinator->epoch());
  response.set_coordinator_version(coordinator->options().version);
  return response;
}

}  // namespace distill
