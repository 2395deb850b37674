// What should happen to each job now, and why: pure functions over the cluster's state, with time as an argument.
//
// clang-format off
// States and moves (a job that ended is not looked at again, unless a user resumes it: then it is queued):
//   from      to         when                                              then
//   queued    cancelled  a user asked                                      nobody holds a rank, so at once
//   queued    failed     every live student that could do it has failed    the reason names what each said
//                        it by a fault of its own
//   queued    failed     for set_aside_limit nothing but students that     whoever mends those may resume it
//                        it has set aside was missing
//   queued    running    enough free students, and a teacher when the      all ranks at once (a gang); half a group
//                        current stage reads one                           could only wait
//   running   failed     a rank reported that the job itself is at fault   before losses are looked at: the cause, not
//                                                                          its consequence
//   running   queued     a member is lost, a passing failure, or a         generation + 1 at once: reports of the old
//                        worker's own fault                                group are refused; a worker at fault is set
//                                                                          aside for this job
//   running   queued     for hang_limit there was no news from its ranks,  generation + 1: ranks that wait for the one
//                        and no teacher was missing                        that hangs take the new one; it does not, and
//                                                                          is lost after stuck_limit (below)
//   running   failed     max_restarts attempts in a row were lost          leaving in good order and a worker's own
//                        without any progress                              fault do not count
//   running   cancelled  a user asked, and no member works on it any       members write a checkpoint first
//                        more, or cancel_grace is over                     who did not answer is named, and fenced
//   running   succeeded  (FinishJob; not decided here)
// clang-format on
//
// A job that lost its group is re-formed from students that have called since: the one that died would otherwise be
// taken again until its lease runs out. That costs at most one heartbeat.
//
// Lost: silent for more than a lease; restarted (another incarnation); shutting down; doing something else for
// idle_limit though it holds a rank, or still acting on an older generation of the job after stuck_limit. After the
// coordinator's own restart, members that have not called yet count as present until grace_until.
//
// A student that acts on something that it holds no rank for unwinds it; after stuck_limit it is stuck, and neither
// free nor counted as live. A student that failed three jobs by its own fault is cordoned, likewise.
//
// The queue is first in, first out for each student: a job that waits for students reserves all that it could have,
// free or at work, and those behind it may use the others (which are set aside for it, or of the wrong device). So
// nobody overtakes a job that this would delay. One that the fleet cannot run at all (more students than are alive, no
// teacher) reserves nothing. Ranks of one job have one kind of device: a plan for "cuda" takes students with a GPU, one
// for "cpu" those without before others, "auto" those with a GPU before others.
#ifndef DISTILL_COORDINATOR_CORE_DECIDE_H_
#define DISTILL_COORDINATOR_CORE_DECIDE_H_

#include <string>
#include <vector>

#include "coordinator/core/cluster_state.h"

namespace distill {

struct DecideOptions {
  double lease = 5;               // seconds of silence after which a worker is lost
  double restart_grace = 30;      // seconds members may take to return after the coordinator's restart; for messages
  double idle_limit = 10;         // seconds a member may do something else than its rank
  double stuck_limit = 60;        // seconds a student may take to leave what it holds no rank for
  double cancel_grace = 60;       // seconds the ranks of a cancelled job may take to write a checkpoint and stop
  double stall_limit = 900;       // seconds without any news from the ranks after which a running job is said to stall
  double hang_limit = 14400;      // ... and its group is re-formed; 0: never
  double set_aside_limit = 3600;  // seconds a job waits for others than the students that it has set aside
  double hold = 60;               // seconds a job that lost its group keeps its students from later jobs
  uint32_t max_restarts = 10;     // more attempts in a row without progress fail the job
};

struct DecidedEvent {
  EventLevel level = EventLevel::kInfo;
  EventType type = EventType::kGeneral;
  std::string text;
  uint64_t generation = 0;  // of kGroupFormed and kGroupLost
};

struct JobDecision {
  std::string job_id;
  JobStatus status;                   // what it should be now, reason included; times are filled in by the caller
  std::optional<double> lost_at;      // when the job last lost its group
  std::optional<double> short_since;  // since when only students that it has set aside are missing
  double no_teacher_at = 0;           // when the running job last lacked a teacher
  std::vector<DecidedEvent> events;
  std::vector<std::string> noted;  // additions to ActiveJob.noted
  // True when ranks were given in this decision.
  bool assigned = false;
};

// One decision per job, in the order of state.jobs.
std::vector<JobDecision> Decide(double now, const ClusterState& state, const DecideOptions& options);

// Brings Worker.astray_since up to date; part of every look at the clock.
void NoteAstray(double now, ClusterState* state);
bool IsStuck(double now, const Worker& worker, const DecideOptions& options);

// After `missed` seconds in which the coordinator did not listen: who was alive gets a whole lease to call. Only once
// for a worker that has not called since, so that one that is dead is found although the coordinator is often late.
void ExcuseSilence(double now, double lease, ClusterState* state);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_DECIDE_H_
