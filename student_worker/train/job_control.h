// What the outside wants of the job that is running: stop, checkpoint and stop, other teachers. The heartbeat and
// signal threads set it, the training thread reads it at step boundaries. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTROL_H_
#define DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTROL_H_

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"

namespace distill {

// Thread-safe. One object per assignment.
class JobControl {
 public:
  explicit JobControl(std::vector<TeacherEndpoint> teachers) : teachers_(std::move(teachers)) {}

  // The assignment is gone or has a newer generation: unwind at once, write nothing more. Calls the abort function.
  void Revoke();
  // A user cancelled the job: all ranks agree on a step, rank 0 writes a checkpoint, all stop.
  void Cancel() { cancelled_ = true; }
  // This process is asked to exit: as Cancel, and the other ranks wait for their next assignment.
  void Terminate() { terminating_ = true; }
  void SetTeachers(std::vector<TeacherEndpoint> teachers);

  // Atomics: read in every step, and nothing else hangs on their order.
  bool revoked() const { return revoked_; }
  bool cancelled() const { return cancelled_; }
  bool terminating() const { return terminating_; }

  // The newest list of teachers if it changed since `*version` (start with 0), which is updated then.
  bool TeachersChanged(uint64_t* version, std::vector<TeacherEndpoint>* teachers) const;

  // What Revoke() calls, from its thread, to wake a training thread that is inside a collective; null: nothing. Called
  // at once when already revoked. It must not block.
  void SetAbort(std::function<void()> abort);

 private:
  std::atomic<bool> revoked_{false};
  std::atomic<bool> cancelled_{false};
  std::atomic<bool> terminating_{false};
  mutable absl::Mutex mutex_;
  std::vector<TeacherEndpoint> teachers_ ABSL_GUARDED_BY(mutex_);
  uint64_t teachers_version_ ABSL_GUARDED_BY(mutex_) = 1;
  std::function<void()> abort_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTROL_H_
