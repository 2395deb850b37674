// One assignment from start to end: data, network, group, newest checkpoint, stages, export.
//
// The ranks stay in lock-step (lockstep.h). Rank 0 alone reads and writes checkpoints; what it resumed from is
// broadcast, so the other ranks need no access to the work folder (job_checkpoints.h). Each stage is a StageLoop; after
// it: evaluation, checkpoint, commit at the coordinator, and only then the next stage. While rank 0 waits for the
// coordinator the others keep meeting it, so a restart of the coordinator costs nothing but time: ranks that have lost
// it train on, up to the end of the stage, which it has to confirm. Should it meanwhile have given the job to others,
// this generation ends at its next checkpoint, where it finds their mark (checkpoint_store.h).
//
// Headers of torch stay in the .cc.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_JOB_RUNNER_H_
#define DISTILL_STUDENT_WORKER_TRAIN_JOB_RUNNER_H_

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "common/fleet/fleet_client.h"
#include "common/metrics/metrics.h"
#include "common/rendezvous/kv_client.h"
#include "common/rpc/rpc_options.h"
#include "common/shared_memory/shared_memory_options.h"
#include "common/status.h"
#include "student_worker/data/data_options.h"
#include "student_worker/train/job_control.h"
#include "student_worker/train/student_archives.h"
#include "student_worker/train/train_metrics.h"

namespace distill {

class CollectiveGroup;  // common/collective/collective_group.h

// What a worker brings to every job.
struct JobEnvironment {
  FleetClient* fleet = nullptr;         // not owned; reports go here
  TrainMetrics* metrics = nullptr;      // not owned
  MetricsRegistry* registry = nullptr;  // not owned; for the teacher pool
  // The rendezvous store of (job, generation).
  std::function<StatusOr<std::shared_ptr<KvClient>>(const std::string& job_id, uint64_t generation)> make_store;
  RpcSecurity security;               // towards teachers
  SharedMemoryOptions shared_memory;  // with teachers of this host
  std::string worker_id;
  std::string data_root;  // DataPlan.path is below it
  DataOptions data;
  std::string work_dir;    // <work_dir>/<job_id>/ holds checkpoints and results
  std::string model_root;  // ModelSpec.weights is below it; empty: jobs with initial weights are refused
  // What its model folder holds beside that; null: jobs that train an archive are refused.
  std::shared_ptr<const StudentArchives> archives;
  std::string host = "127.0.0.1";  // at which other ranks reach this one
  std::string device = "auto";     // "auto": as the plan says; "cpu", "cuda", "cuda:N"
  std::chrono::milliseconds collective_timeout{20000};
  // Called by the agent after a job that this process cannot follow with another one (EndsProcess(), a GPU whose
  // context is lost, say), when it has been reported. Null: nothing.
  std::function<void(const Status& why)> on_unusable;
  // What the job uses in place of the group that was formed; null: that itself. For tests, which break groups.
  std::function<std::shared_ptr<CollectiveGroup>(std::shared_ptr<CollectiveGroup>)> wrap_group;
  // How long rank 0 tries to write what the job cannot go on without: the checkpoint at a stage's end, the results.
  std::chrono::milliseconds write_patience{300000};
};

enum class JobEnd {
  kFinished,    // all stages committed, student exported, FinishJob acknowledged
  kCancelled,   // by a user; checkpoint written, if the disk let it
  kTerminated,  // some rank is exiting; likewise. The next assignment goes on from the newest checkpoint
  kRevoked,     // the assignment is over; nothing to report
  kPeerFailed,  // another rank failed and reports why
  kFailed,      // this rank failed; JobOutcome says how
};
struct JobOutcome {
  JobEnd end = JobEnd::kFailed;
  Status status;                            // kFailed: why, with the remedy; otherwise OK or a remark
  FailureKind kind = FailureKind::kWorker;  // kFailed: whose fault it is
};

// Blocks until the job ends for this rank. Runs on the caller's thread (the training thread) and sets the process's
// number of arithmetic threads and torch's determinism switches from the plan. Never throws.
JobOutcome RunJob(const StudentAssignment& assignment, const JobEnvironment& environment, JobControl* control);

// What jobs would run on that leave it to the worker: "cpu", or "cuda:0 NVIDIA H200". Errors as ChooseDevice()
// (common/cuda/cuda_runtime.h).
StatusOr<std::string> DescribeJobDevice(const std::string& device);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_JOB_RUNNER_H_
