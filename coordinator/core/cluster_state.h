// Everything the coordinator's decisions depend on, as plain data. Times are seconds on a monotonic clock.
#ifndef DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_
#define DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "coordinator/store/job_record.h"

namespace distill {

// A registered process. It is alive while its last sign of life is at most a lease old.
struct Worker {
  std::string id;
  std::string incarnation;  // random per process start
  WorkerKind kind = WorkerKind::kStudent;
  std::string address;
  std::string device;
  std::string version;
  std::vector<ServedModelInfo> models;  // teachers
  double last_seen = 0;
  bool draining = false;  // shutting down: gets no new work
  uint32_t queue_length = 0;
  // What a student says it acts on; "" when idle.
  std::string job_id;
  uint64_t generation = 0;
  double job_since = 0;  // since when it has said so
};

// A rank's report that its attempt failed, about the job's present generation.
struct FailureReport {
  std::string worker_id;
  std::string message;
  FailureKind kind = FailureKind::kPassing;
};

// A job that has not ended.
struct ActiveJob {
  std::string id;
  std::string name;
  std::shared_ptr<const JobPlan> plan;  // shared with snapshots; never changes
  // While queued, `generation` is the one that the next group will have: nobody has been given it yet.
  JobStatus status;
  std::vector<StageRecord> stages;      // committed, in order
  std::optional<JobProgress> progress;  // newest, as stored
  std::optional<FailureReport> failure;
  double assigned_at = 0;         // when this coordinator last gave (or, after a restart, found) the ranks
  std::optional<double> lost_at;  // when the job last lost its group, under this coordinator
  std::set<std::string> noted;    // things that were reported once already and need no second event

  uint32_t current_stage() const { return static_cast<uint32_t>(stages.size()); }
};

struct ClusterState {
  double started = 0;  // when this coordinator started; members of running jobs may return for one lease
  std::map<std::string, Worker> workers;  // by id
  std::vector<ActiveJob> jobs;            // in order of submission
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_
