// The student process between jobs: takes assignments from the coordinator one after another, runs each, reports how it
// ended.
//
// One thread ("trainer") runs the jobs:  idle -> running -> idle -> ... -> stopped. Callbacks of the fleet client
// (heartbeat thread) only store what they bring and poke the running job's JobControl.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_

#include <chrono>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/fleet/fleet_client.h"
#include "common/status.h"
#include "student_worker/train/job_runner.h"

namespace distill {

// Thread-safe.
class StudentAgent {
 public:
  // `environment.fleet` is ignored; the fleet client set by Start takes its place.
  explicit StudentAgent(JobEnvironment environment) : environment_(std::move(environment)) {}
  // REQUIRES: Shutdown() was called when Start() succeeded.
  ~StudentAgent();
  StudentAgent(const StudentAgent&) = delete;
  StudentAgent& operator=(const StudentAgent&) = delete;

  // What the fleet client has to call; valid as long as the agent.
  FleetClient::Callbacks callbacks();
  // Begins to run jobs. The client is not owned and outlives Shutdown().
  void Start(FleetClient* fleet);

  // An orderly end: the running job checkpoints at its next step, the coordinator is told that this worker is going. A
  // job that has not stopped after `grace` is broken off, which loses its steps since the last checkpoint. Joins the
  // trainer.
  void Shutdown(std::chrono::milliseconds grace);

 private:
  struct Work {
    StudentAssignment assignment;
    std::shared_ptr<JobControl> control;  // shared by the trainer and the callbacks that poke it outside the lock
  };
  void Run();
  void Report(const StudentAssignment& assignment, const JobOutcome& outcome);
  std::shared_ptr<JobControl> CurrentControl();

  JobEnvironment environment_;  // constant after Start
  std::thread trainer_;
  absl::Mutex mutex_;
  std::optional<Work> next_ ABSL_GUARDED_BY(mutex_);
  std::optional<Work> running_ ABSL_GUARDED_BY(mutex_);
  std::pair<std::string, uint64_t> last_ ABSL_GUARDED_BY(mutex_);  // job and generation that ended last
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;  // the trainer has left its loop
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STUDENT_AGENT_H_
