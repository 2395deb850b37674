// The student process between jobs: takes assignments from the coordinator one after another, runs each, reports how it
// ended.
//
// One thread ("trainer") runs the jobs:  idle -> running -> idle -> ... -> stopped. Callbacks of the fleet client
// (heartbeat thread) only store what they bring and poke the running job's JobControl. Another thread ("unwind-watch")
// looks whether the trainer leaves a job that is over: one that is stuck in a system call (a network disk that hangs)
// or in a GPU cannot be helped, and a process that seems alive but does nothing keeps its job from everybody else.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"
#include "common/status.h"
#include "student_worker/train/job_runner.h"

namespace distill {

struct StudentAgentOptions {
  // How long the trainer may take to leave a job whose assignment was revoked; covers what cannot be broken off, such
  // as writing and fsyncing a checkpoint that has begun.
  std::chrono::milliseconds unwind_limit{120000};
  // Called from the watching thread when that was too long, with the reason in words. The process should end, so that
  // whoever supervises it starts a new one: the default logs the reason and ends it with kExitTemporary.
  std::function<void(const std::string& reason)> on_stuck;
};

// Thread-safe.
class StudentAgent {
 public:
  // `environment.fleet` is ignored; the fleet client set by Start takes its place.
  explicit StudentAgent(JobEnvironment environment, StudentAgentOptions options = {});
  // REQUIRES: Shutdown() returned true when Start() succeeded.
  ~StudentAgent();
  StudentAgent(const StudentAgent&) = delete;
  StudentAgent& operator=(const StudentAgent&) = delete;

  // What the fleet client has to call; valid as long as the agent.
  FleetClient::Callbacks callbacks();
  // Begins to run jobs. The client is not owned and outlives Shutdown().
  void Start(FleetClient* fleet);
  // What jobs that begin from now on find in the worker's model folder, in place of environment.archives.
  void SetArchives(std::shared_ptr<const StudentArchives> archives);

  // An orderly end: the running job checkpoints at its next step and the trainer ends. A job that has not stopped after
  // `grace` is broken off, which loses its steps since the last checkpoint, and has `unwind` to leave; the coordinator
  // is told within that time. True: the trainer has ended and was joined. False: it is stuck; call again later (after
  // FleetClient::Stop(), which ends waits for the coordinator) or end the process by _exit(): no destructor may run.
  // Idempotent.
  [[nodiscard]] bool Shutdown(std::chrono::milliseconds grace, std::chrono::milliseconds unwind);

 private:
  struct Work {
    StudentAssignment assignment;
    std::shared_ptr<JobControl> control;  // shared by the trainer and the callbacks that poke it outside the lock
  };
  void Run();
  void Watch();
  void Report(const StudentAssignment& assignment, const JobOutcome& outcome);
  std::shared_ptr<JobControl> CurrentControl();

  JobEnvironment environment_;  // constant after Start, but for archives, which mutex_ guards
  const StudentAgentOptions options_;
  std::thread trainer_, watch_;
  absl::Mutex mutex_;
  std::optional<Work> next_ ABSL_GUARDED_BY(mutex_);
  std::optional<Work> running_ ABSL_GUARDED_BY(mutex_);
  bool unwinding_ ABSL_GUARDED_BY(mutex_) = false;                 // what runs was revoked
  uint64_t ended_ ABSL_GUARDED_BY(mutex_) = 0;                     // jobs that the trainer has left
  std::pair<std::string, uint64_t> last_ ABSL_GUARDED_BY(mutex_);  // job and generation that ended last
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // the trainer has left its loop
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_
