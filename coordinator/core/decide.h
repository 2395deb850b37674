// What should happen to each job now, and why: pure functions over the cluster's state, with time as an argument.
//
// States and moves (a job that ended is not looked at again):
//   from      to         when                                               then
//   queued    cancelled  a user asked                                       nobody holds a rank, so at once
//   queued    running    enough free students, and a teacher when the       all ranks at once (a gang); half a group
//   could only wait
//                        current stage reads one
//   running   failed     a rank reported a failure that no retry mends      before losses are looked at: the cause, not
//   its consequence running   queued     a member is lost, or a retryable failure           generation + 1 at once:
//   reports of the old group are refused running   failed     that happened more than max_restarts times running
//   cancelled  a user asked, and no member works on it any more   members write a checkpoint first running   succeeded
//   (FinishJob; not decided here)
// A job that lost its group is re-formed from students that have called since: the one that died would otherwise be
// taken again until its lease runs out. That costs at most one heartbeat.
//
// Lost: silent for more than a lease; restarted (another incarnation); shutting down; or doing something else for
// idle_limit though it holds a rank. After the coordinator's own restart, members that have not called yet count as
// present for one lease.
//
// The queue is first in, first out, where a job that the fleet cannot run at all (more students than are alive, no
// teacher) does not hold up those behind it.
#ifndef DISTILL_COORDINATOR_CORE_DECIDE_H_
#define DISTILL_COORDINATOR_CORE_DECIDE_H_

#include <string>
#include <vector>

#include "coordinator/core/cluster_state.h"

namespace distill {

struct DecideOptions {
  double lease = 5;            // seconds of silence after which a worker is lost
  double idle_limit = 10;      // seconds a member may do something else than its rank
  double hold = 60;            // seconds a job that lost its group keeps its students from later jobs
  uint32_t max_restarts = 10;  // more fail the job
};

struct DecidedEvent {
  EventLevel level = EventLevel::kInfo;
  EventType type = EventType::kGeneral;
  std::string text;
  uint64_t generation = 0;  // of kGroupFormed and kGroupLost
};

struct JobDecision {
  std::string job_id;
  JobStatus status;               // what it should be now, reason included; times are filled in by the caller
  std::optional<double> lost_at;  // when the job last lost its group
  std::vector<DecidedEvent> events;
  std::vector<std::string> noted;  // additions to ActiveJob.noted
  // True when ranks were given in this decision.
  bool assigned = false;
};

// One decision per job, in the order of state.jobs.
std::vector<JobDecision> Decide(double now, const ClusterState& state, const DecideOptions& options);

// True while the worker's last sign of life is at most a lease old.
bool IsAlive(double now, const Worker& worker, const DecideOptions& options);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_DECIDE_H_
