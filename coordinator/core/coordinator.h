// The coordinator itself: what users and workers ask, in plain types. RPC shells and main() sit on top of it.
//
// It holds the cluster's state, calls Decide() after every event and at every tick, stores what was decided and only
// then acts on it. A decision that cannot be stored is not acted on; it is taken again at the next tick.
//
// Thread-safe. One mutex; store writes happen under it (they are part of the decision), callbacks never. Blocks on the
// disk.
#ifndef DISTILL_COORDINATOR_CORE_COORDINATOR_H_
#define DISTILL_COORDINATOR_CORE_COORDINATOR_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics.h"
#include "common/status.h"
#include "coordinator/core/clock.h"
#include "coordinator/core/cluster_state.h"
#include "coordinator/core/coordinator_metrics.h"
#include "coordinator/core/decide.h"
#include "coordinator/core/job_feed.h"
#include "coordinator/core/rendezvous_store.h"
#include "coordinator/jobfile/job_file.h"
#include "coordinator/jobfile/model_taps.h"
#include "coordinator/store/job_store.h"

namespace distill {

struct SubmitRequest {
  std::string request_id;  // 1 to 128 printable bytes; may be empty for a dry run
  JobFileInput file;
  bool dry_run = false;
};
struct SubmitResult {
  std::string job_id;  // "" on a dry run
  JobPlan plan;
  bool existed = false;
  std::vector<JobProblem> problems;  // not empty: the job was refused, and nothing else is set
  std::vector<JobProblem> warnings;
};

// Mirrors v1.RegisterRequest.
struct RegisterInput {
  WorkerIdentity from;
  WorkerKind kind = WorkerKind::kStudent;
  std::string address;
  std::vector<ServedModelInfo> models;
  std::string device;
  std::string version;
  std::string current_job;
  uint64_t current_generation = 0;
};
struct RegisterResult {
  uint64_t epoch = 0;
  double heartbeat_seconds = 0;
  double lease_seconds = 0;
};

// Mirrors v1.HeartbeatRequest.
struct HeartbeatInput {
  WorkerIdentity from;
  std::string job_id;
  uint64_t generation = 0;
  std::optional<JobProgress> progress;
  std::vector<EventRecord> events;  // each with its job_id; source and incarnation are filled in
  bool draining = false;
  uint32_t queue_length = 0;
};
struct HeartbeatResult {
  uint64_t epoch = 0;
  std::optional<StudentAssignment> student;
  std::vector<TeacherJob> teacher_jobs;
  bool cancel = false;
};

// Mirrors v1.WorkerInfo.
struct WorkerStatus {
  Worker worker;
  std::string state;         // idle, serving, training, draining, lost
  double heartbeat_age = 0;  // seconds
  std::vector<std::string> jobs;
};

// The taps of a network, for people.
struct TapListing {
  ModelSpec spec;
  std::vector<ServedTap> taps;
};

class Coordinator {
 public:
  struct Options {
    double heartbeat_seconds = 1;
    double lease_seconds = 5;
    double hold_seconds = 60;
    uint32_t max_restarts = 10;
    std::string version;
  };
  // Loads the unfinished jobs of the store; running ones wait for their members for one lease.
  static StatusOr<std::unique_ptr<Coordinator>> Create(const Options& options, std::unique_ptr<JobStore> store,
                                                       const Clock& clock, MetricsRegistry* metrics);
  ~Coordinator();

  // --- users (coordinator_jobs.cc) ---
  // What is wrong with the file is in the result's `problems`. kInvalidArgument bad request id; kAlreadyExists it came
  // with other content; kResourceExhausted too many unfinished jobs.
  StatusOr<SubmitResult> Submit(const SubmitRequest& request) ABSL_LOCKS_EXCLUDED(mutex_);
  // Jobs are named by id or name (JobStore::Get). Ended jobs: no effect. Returns the job as it is afterwards.
  StatusOr<JobRecord> Cancel(const std::string& job, const std::string& reason) ABSL_LOCKS_EXCLUDED(mutex_);
  StatusOr<JobRecord> Get(const std::string& job);
  // With `yaml` filled in.
  StatusOr<JobRecord> GetWithFile(const std::string& job);
  StatusOr<std::vector<JobRecord>> List(size_t limit, const std::vector<JobState>& states = {});
  StatusOr<std::vector<EventRecord>> Events(const std::string& job_id, uint64_t after, size_t limit);
  StatusOr<std::vector<JobProgress>> History(const std::string& job);
  // Points of the curve of the job with this id (JobStore::Curve).
  StatusOr<std::vector<CurvePoint>> Curve(const std::string& job_id, uint64_t from, size_t limit);
  std::vector<WorkerStatus> Fleet() ABSL_LOCKS_EXCLUDED(mutex_);
  // Taps of a zoo architecture (spec.arch; zeros take the architecture's defaults) or of the served model of that name.
  StatusOr<TapListing> ListTaps(const ModelSpec& spec) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- workers (coordinator_workers.cc, coordinator_reports.cc) ---
  StatusOr<RegisterResult> Register(const RegisterInput& input) ABSL_LOCKS_EXCLUDED(mutex_);
  // kNotFound: not registered here (any more); register again. kAborted: another process has taken the id over.
  // kFailedPrecondition (of Register() too): the worker has heard of a newer coordinator, nothing was noted.
  StatusOr<HeartbeatResult> Heartbeat(const HeartbeatInput& input) ABSL_LOCKS_EXCLUDED(mutex_);
  // Reports of ranks. kAborted: the generation is over, or another process has taken the id over. kUnavailable: not
  // stored, or the worker has heard of a newer coordinator; say it again.
  // kFailedPrecondition: not rank 0. Committed stages from `stage` on are dropped; see ReportResumeRequest.
  Status ReportResume(const WorkerIdentity& from, const std::string& job_id, uint64_t generation, uint32_t stage,
                      uint64_t step, const std::string& checkpoint_digest) ABSL_LOCKS_EXCLUDED(mutex_);
  // kFailedPrecondition: not rank 0, or a stage is missing before this one.
  Status CommitStage(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                     const JobStageResult& result) ABSL_LOCKS_EXCLUDED(mutex_);
  Status FinishJob(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                   const JobArtifacts& artifacts) ABSL_LOCKS_EXCLUDED(mutex_);
  Status ReportFailure(const WorkerIdentity& from, const std::string& job_id, uint64_t generation, FailureKind kind,
                       const std::string& message) ABSL_LOCKS_EXCLUDED(mutex_);

  // Looks at the clock: leases, holds, retries of decisions that could not be stored. Call it at least once per
  // heartbeat interval.
  void Tick() ABSL_LOCKS_EXCLUDED(mutex_);
  // Not ok once another coordinator owns the store, or the store is damaged: this process must stop.
  Status health() ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t epoch() const { return store_->epoch(); }
  const Options& options() const { return options_; }
  RendezvousStore& rendezvous() { return rendezvous_; }
  JobFeed& feed() { return feed_; }

 private:
  Coordinator(const Options& options, std::unique_ptr<JobStore> store, const Clock& clock, MetricsRegistry* metrics);

  // What is to be done once mutex_ is released.
  struct Effects {
    RendezvousStore::Deferred calls;
    std::set<std::string> changed_jobs;
  };
  void Perform(const Effects& effects) ABSL_LOCKS_EXCLUDED(mutex_);
  // Writes to the store, in one transaction, and counts.
  Status Write(const std::vector<JobChange>& changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Remembers failures of the store after which this process must not go on. Returns its argument.
  Status NoteHealth(const Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Decides, stores and takes over into state_.
  void DecideAndStore(Effects* effects) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeOver(const JobDecision& decision, double now, ActiveJob* job, Effects* effects)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ForgetSilentWorkers(double now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  EventRecord OwnEvent(EventLevel level, EventType type, std::string text) const;
  DecideOptions decide_options() const;

  ActiveJob* FindJob(const std::string& job_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  FleetView SnapshotFleet() ABSL_LOCKS_EXCLUDED(mutex_);
  // kFailedPrecondition when the worker has heard of a newer coordinator.
  Status FenceEpoch(const WorkerIdentity& from) const;
  // The running job if the process holds a rank in its `generation`; else kAborted with what is the case.
  StatusOr<ActiveJob*> Fence(const WorkerIdentity& from, const std::string& job_id, uint64_t generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Status FenceRankZero(const ActiveJob& job, const std::string& worker_id) const;
  // Progress and events of a heartbeat. Failures are logged, not returned.
  void StoreReports(const HeartbeatInput& input, const Worker& worker, Effects* effects)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  HeartbeatResult Answer(const Worker& worker, double now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  StatusOr<SubmitResult> FindSubmitted(const SubmitRequest& request, const std::string& digest, bool* found);

  const Options options_;
  const std::unique_ptr<JobStore> store_;  // thread-safe
  const Clock& clock_;                     // outlives the coordinator
  CoordinatorMetrics metrics_;             // thread-safe
  RendezvousStore rendezvous_;             // thread-safe; its lock is taken inside mutex_, never the other way round
  JobFeed feed_;                           // thread-safe; called without mutex_

  absl::Mutex mutex_;
  ClusterState state_ ABSL_GUARDED_BY(mutex_);
  Status health_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_COORDINATOR_H_
