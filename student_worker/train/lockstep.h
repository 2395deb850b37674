// How ranks stay together: every decision that all of them must take at the same step goes through one small
// all-reduce.
//
// A rank that is late on its own (waits for a teacher, writes a checkpoint, talks to a coordinator that is restarting)
// keeps meeting the others meanwhile, so that a collective's timeout means a dead or stopped peer and never a slow one.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_LOCKSTEP_H_
#define DISTILL_STUDENT_WORKER_TRAIN_LOCKSTEP_H_

#include <torch/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/status.h"
#include "student_worker/train/job_control.h"

namespace distill {

// Owned by the training thread. All ranks call the same methods in the same order.
class Lockstep {
 public:
  // `group` and `control` are not owned: the job runner owns them and outlives this. `beat`: how long a late rank works
  // or waits between two meetings; well below the group's timeout.
  Lockstep(CollectiveGroup* group, const JobControl* control, torch::Device device,
           std::chrono::milliseconds beat = std::chrono::milliseconds(500));

  // What one rank brings to a meeting.
  struct Report {
    bool failed = false;         // this rank cannot go on
    bool waiting = false;        // this rank is not ready yet: meet again
    std::vector<double> values;  // to be summed; the same number on all ranks
  };
  // What all ranks learn, the same on each.
  struct Round {
    uint32_t failed = 0;     // ranks
    uint32_t waiting = 0;    // ranks
    bool cancel = false;     // some rank was told that the job is cancelled
    bool terminate = false;  // some rank is asked to exit
    std::vector<double> sums;
  };
  // Throws nothing. kAborted: a peer is lost or the group was aborted; kCancelled: this rank's assignment was revoked;
  // otherwise what went wrong on this rank alone (kResourceExhausted: no memory for the few numbers): it has aborted
  // the group then, so that the others do not wait for it.
  StatusOr<Round> Meet(const Report& report);

  // Runs `work` (null on ranks that have none) while all ranks keep meeting, until every rank's work is done. With more
  // than one rank it runs on a helper thread called `thread_name` (at most 15 letters), which is joined before this
  // returns, whatever happens. Returns this rank's own error, also for an exception of `work` or a thread that cannot
  // be started; kAborted when another rank failed (peer_failed() is true then) or the group broke. Throws nothing.
  //
  // A stop (cancel, SIGTERM) does not break off the meetings: the ranks must part at the same step. `work` that can
  // take long looks at stopping() and returns kCancelled.
  Status Together(const char* thread_name, const std::function<Status()>& work);

  // True after a meeting in which another rank reported failure and this one did not: that rank tells the coordinator
  // why, this one need not.
  bool peer_failed() const { return peer_failed_; }
  // True once this rank's job was revoked or cancelled or this process is asked to exit, or another rank has said so of
  // itself in a meeting. From any thread.
  bool stopping() const { return stopping_ || control_->revoked() || control_->cancelled() || control_->terminating(); }
  // Whether a meeting has told all ranks that the job is cancelled: the same on each.
  bool cancel_asked() const { return cancel_asked_; }
  std::chrono::milliseconds beat() const { return beat_; }
  CollectiveGroup* group() const { return group_; }

 private:
  // Sums `values` over the ranks in place. May throw.
  Status Sum(std::vector<double>* values);

  CollectiveGroup* const group_;
  const JobControl* const control_;
  const torch::Device device_;
  const std::chrono::milliseconds beat_;
  bool peer_failed_ = false;
  bool cancel_asked_ = false;
  std::atomic<bool> stopping_{false};  // set in meetings, read by the work that goes on meanwhile
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_LOCKSTEP_H_
