// Everything the coordinator's decisions depend on, as plain data. Times are seconds of the coordinator's attention
// (attention.h): a monotonic clock that stands still while the coordinator itself does.
#ifndef DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_
#define DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "coordinator/store/job_record.h"

namespace distill {

// A registered process.
struct Worker {
  // Jobs that failed by a worker's own fault before it gets no work at all.
  static constexpr size_t kMostFaults = 3;

  std::string id;
  std::string incarnation;  // random per process start
  WorkerKind kind = WorkerKind::kStudent;
  std::string address;
  std::string device;
  std::string version;
  std::vector<ServedModelInfo> models;  // teachers: served; students: archives that jobs may train
  double last_seen = 0;                 // when it last called
  double excused = 0;                   // the coordinator was not listening until then, so its lease counts from there
  bool draining = false;                // shutting down: gets no new work
  std::string drained_incarnation;      // the process before this one, if that had said that it was shutting down
  uint32_t queue_length = 0;
  // What a student says it acts on; "" when idle.
  std::string job_id;
  uint64_t generation = 0;
  double job_since = 0;                // since when it has said so
  std::optional<double> astray_since;  // since when it has acted on something that it holds no rank for
  // Jobs that this process could not do by its own fault, with what it said.
  std::map<std::string, std::string> faults;
  uint64_t asked = 0;  // number of the decision that its last news asked for (Coordinator)
  // Numbers of its events: the highest that waits to be stored, and the highest that is stored.
  uint64_t events_queued = 0, events_stored = 0;

  bool cordoned() const { return faults.size() >= kMostFaults; }
};

// True while the worker's last sign of life is at most a lease old. The one definition of being alive.
inline bool IsAlive(double now, double lease, const Worker& worker) {
  return now - std::max(worker.last_seen, worker.excused) <= lease;
}

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
  std::optional<JobProgress> progress;  // newest
  std::vector<FailureReport> failures;  // of the present generation, in order
  double assigned_at = 0;               // when this coordinator last gave (or, after a restart, found) the ranks
  double progress_at = 0;               // when it last heard something new of them
  std::optional<double> cancel_at;      // when the cancellation was asked for (or, after a restart, found)
  std::optional<double> lost_at;        // when the job last lost its group, under this coordinator
  double no_teacher_at = 0;             // when, while it ran, it last lacked a teacher
  std::optional<double> short_since;    // since when it lacks students only because it has set some aside
  std::set<std::string> noted;          // things that were reported once already and need no second event
  std::set<std::string> members;        // workers that have held a rank: they may write to the job's log

  uint32_t current_stage() const { return static_cast<uint32_t>(stages.size()); }
};

struct ClusterState {
  // Until then, members of running jobs that have not called since this coordinator's start may return.
  double grace_until = 0;
  std::map<std::string, Worker> workers;  // by id
  std::vector<ActiveJob> jobs;            // in order of submission
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_CLUSTER_STATE_H_
