// The coordinator itself: what users and workers ask, in plain types. RPC shells and main() sit on top of it.
//
// It holds the cluster's state, calls Decide() after every event and at every tick, stores what was decided and only
// then acts on it. A decision that cannot be stored is not acted on; it is taken again at the next tick.
//
// Two things never wait for the disk, since leases hang on them: Register() and Heartbeat(). They note who called,
// answer from what was decided last, put what is to be stored into a queue, and ask for a decision where one may be
// due; the next Tick() takes it. All other calls may block on the disk.
//
// Thread-safe. `deciding_` is held while something is decided and written: jobs change under it alone. `mutex_` guards
// the state and is held for moments only, never while the disk is asked. Callbacks run under neither.
#ifndef DISTILL_COORDINATOR_CORE_COORDINATOR_H_
#define DISTILL_COORDINATOR_CORE_COORDINATOR_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/metrics/metrics.h"
#include "common/status.h"
#include "coordinator/core/attention.h"
#include "coordinator/core/clock.h"
#include "coordinator/core/cluster_state.h"
#include "coordinator/core/coordinator_metrics.h"
#include "coordinator/core/decide.h"
#include "coordinator/core/job_feed.h"
#include "coordinator/core/rendezvous_store.h"
#include "coordinator/core/report_queue.h"
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
  // The process was displaced from its id by another one: it takes the id back only when that one is lost.
  bool displaced = false;
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
  bool has_plan = false;              // of (job_id, generation): need not be sent again
  std::vector<JobProgress> progress;  // oldest first
  std::vector<EventRecord> events;    // each with its job_id; source and incarnation are filled in
  bool draining = false;
  uint32_t queue_length = 0;
};
struct HeartbeatResult {
  uint64_t epoch = 0;
  std::optional<StudentAssignment> student;  // its plan is empty if the worker has it
  std::vector<TeacherJob> teacher_jobs;
  bool cancel = false;
  uint64_t events_stored = 0;  // the worker's events up to this number are durable
  bool soon = false;           // a decision about this worker is due: call again in a moment
};

// Mirrors v1.WorkerInfo.
struct WorkerStatus {
  Worker worker;
  std::string state;         // idle, serving, training, stuck, cordoned, draining, lost
  std::string reason;        // of stuck and cordoned, in words
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
    double set_aside_limit_seconds = 3600;
    double cancel_grace_seconds = 60;
    double stuck_limit_seconds = 60;
    double stall_limit_seconds = 900;
    double hang_limit_seconds = 14400;
    uint32_t max_restarts = 10;
    // Called, on any thread and under no lock, when a decision may be due before the next Tick().
    std::function<void()> decision_due;
    std::string version;
  };
  // How long members of running jobs may take to return after a restart: a lease, but at least this. It counts from the
  // first call, because workers may reach a new coordinator only once its address has been published.
  static constexpr double kLeastRestartGrace = 30;

  // Loads the unfinished jobs of the store; running ones wait for their members. A job whose row is damaged fails.
  static StatusOr<std::unique_ptr<Coordinator>> Create(const Options& options, std::unique_ptr<JobStore> store,
                                                       const Clock& clock, MetricsRegistry* metrics);
  ~Coordinator();

  // --- users (coordinator_jobs.cc) ---
  // What is wrong with the file is in the result's `problems`. kInvalidArgument bad request id; kAlreadyExists it came
  // with other content; kResourceExhausted too many unfinished jobs.
  StatusOr<SubmitResult> Submit(const SubmitRequest& request) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // Jobs are named by id or name (JobStore::Get). Ended jobs: no effect. Returns the job as it is afterwards.
  StatusOr<JobRecord> Cancel(const std::string& job, const std::string& reason) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // Puts a failed or cancelled job back into the queue, under the next generation and with a fresh budget of attempts;
  // it goes on from its newest checkpoint. A job that is queued or running already is returned as it is.
  // kFailedPrecondition: it succeeded, is still being cancelled, or its plan is damaged.
  StatusOr<JobRecord> Resume(const std::string& job) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // Lets a cordoned worker work again. kNotFound: nobody of that id.
  Status Uncordon(const std::string& worker_id) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  StatusOr<JobRecord> Get(const std::string& job);
  // With `yaml` filled in.
  StatusOr<JobRecord> GetWithFile(const std::string& job);
  StatusOr<std::vector<JobRecord>> List(size_t limit, const std::vector<JobState>& states = {});
  StatusOr<std::vector<EventRecord>> Events(const std::string& job_id, uint64_t after, size_t limit);
  StatusOr<std::vector<JobProgress>> History(const std::string& job);
  // Points of the curve of the job with this id (JobStore::Curve).
  StatusOr<std::vector<CurvePoint>> Curve(const std::string& job_id, uint64_t from, size_t limit);
  std::vector<WorkerStatus> Fleet() ABSL_LOCKS_EXCLUDED(mutex_);
  // Taps of a zoo architecture (spec.arch; zeros take the architecture's defaults), or of the served model or the
  // students' archive of that name.
  StatusOr<TapListing> ListTaps(const ModelSpec& spec) ABSL_LOCKS_EXCLUDED(mutex_);

  // --- workers (coordinator_workers.cc, coordinator_reports.cc) ---
  StatusOr<RegisterResult> Register(const RegisterInput& input) ABSL_LOCKS_EXCLUDED(mutex_);
  // kNotFound: not registered here (any more); register again. kAborted: another process has taken the id over.
  // kFailedPrecondition (of Register() too): the worker has heard of a newer coordinator, nothing was noted. kAborted
  // of Register(): a displaced process, and the other one lives.
  StatusOr<HeartbeatResult> Heartbeat(const HeartbeatInput& input) ABSL_LOCKS_EXCLUDED(mutex_);
  // Reports of ranks. kAborted: the generation is over, or another process has taken the id over. kUnavailable: not
  // stored, or the worker has heard of a newer coordinator; say it again.
  // kFailedPrecondition: not rank 0. Committed stages from `stage` on are dropped; see ReportResumeRequest.
  Status ReportResume(const WorkerIdentity& from, const std::string& job_id, uint64_t generation, uint32_t stage,
                      uint64_t step, const std::string& checkpoint_digest) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // kFailedPrecondition: not rank 0, or a stage is missing before this one.
  Status CommitStage(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                     const JobStageResult& result) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  Status FinishJob(const WorkerIdentity& from, const std::string& job_id, uint64_t generation,
                   const JobArtifacts& artifacts) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  Status ReportFailure(const WorkerIdentity& from, const std::string& job_id, uint64_t generation, FailureKind kind,
                       const std::string& message) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);

  // Looks at the clock: leases, holds, retries of decisions that could not be stored. Call it at least once per
  // heartbeat interval.
  void Tick() ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // Not ok once another coordinator owns the store, or the store is damaged: this process must stop.
  Status health() ABSL_LOCKS_EXCLUDED(mutex_);

  uint64_t epoch() const { return store_->epoch(); }
  const Options& options() const { return options_; }
  RendezvousStore& rendezvous() { return rendezvous_; }
  JobFeed& feed() { return feed_; }

 private:
  Coordinator(const Options& options, std::unique_ptr<JobStore> store, const Clock& clock, MetricsRegistry* metrics);

  // What is to be done once no lock is held.
  struct Effects {
    RendezvousStore::Deferred calls;
    std::set<std::string> changed_jobs;
  };
  void Perform(const Effects& effects) ABSL_LOCKS_EXCLUDED(deciding_, mutex_);

  // The coordinator's time. Excuses everybody's silence after a time in which it did not look.
  double Look() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Somebody has called: a grace after a restart begins to count.
  double NoteCall() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Writes to the store, in one transaction, and counts.
  Status Write(const std::vector<JobChange>& changes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // Remembers failures of the store after which this process must not go on. Returns its argument.
  Status NoteHealth(const Status& status) ABSL_LOCKS_EXCLUDED(mutex_);
  // Decides, stores and takes over into state_. Not ok: it could not be stored, and nothing has changed.
  Status DecideAndStore(Effects* effects) ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_) ABSL_LOCKS_EXCLUDED(mutex_);
  void TakeOver(const JobDecision& decision, double now, ActiveJob* job, Effects* effects)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_, mutex_);
  // Stores progress and events that heartbeats brought. What cannot be stored stays in the queue.
  void FlushReports(Effects* effects) ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_) ABSL_LOCKS_EXCLUDED(mutex_);
  void StoreReports() ABSL_LOCKS_EXCLUDED(deciding_, mutex_);
  // Whether the worker holds or held a rank of the job, ended or not.
  bool MayReport(const std::string& worker_id, const std::string& job_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_)
      ABSL_LOCKS_EXCLUDED(mutex_);
  void ForgetSilentWorkers(double now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  EventRecord OwnEvent(EventLevel level, EventType type, std::string text) const;
  DecideOptions decide_options() const;

  static ActiveJob MakeActive(JobRecord record, double now);
  void RememberEnded(const ActiveJob& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // kResourceExhausted: too many unfinished jobs. kUnavailable: stopping.
  Status CheckRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether this call of the worker is the first since a job that waits for students lost its group.
  bool MayBeTaken(const Worker& worker) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  ActiveJob* FindJob(const std::string& job_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  FleetView SnapshotFleet() ABSL_LOCKS_EXCLUDED(mutex_);
  // kFailedPrecondition when the worker has heard of a newer coordinator.
  Status FenceEpoch(const WorkerIdentity& from) const;
  // The running job if the process holds a rank in its `generation`; else kAborted with what is the case.
  StatusOr<ActiveJob*> Fence(const WorkerIdentity& from, const std::string& job_id, uint64_t generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(deciding_, mutex_);
  // Whether the process held a rank in `generation`, which was the job's last group: it waits for another one now.
  bool JustLeft(const WorkerIdentity& from, const std::string& job_id, uint64_t generation)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Status FenceRankZero(const ActiveJob& job, const std::string& worker_id) const;
  // Puts progress and events of a heartbeat into the queue.
  void QueueReports(const HeartbeatInput& input, double now, Worker* worker) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  HeartbeatResult Answer(const Worker& worker, bool has_plan, double now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AskForDecision() ABSL_LOCKS_EXCLUDED(mutex_);
  StatusOr<SubmitResult> FindSubmitted(const SubmitRequest& request, const std::string& digest, bool* found);

  const Options options_;
  const std::unique_ptr<JobStore> store_;  // thread-safe
  const Clock& clock_;                     // outlives the coordinator
  CoordinatorMetrics metrics_;             // thread-safe
  RendezvousStore rendezvous_;             // thread-safe; its lock is taken inside mutex_, never the other way round
  JobFeed feed_;                           // thread-safe; called without mutex_

  absl::Mutex deciding_ ABSL_ACQUIRED_BEFORE(mutex_);
  absl::Mutex mutex_;
  Attention attention_ ABSL_GUARDED_BY(mutex_);
  bool called_ ABSL_GUARDED_BY(mutex_) = false;  // by anybody, since the start
  // Decisions that calls have asked for, and those taken: the last one begun, the last one acted on.
  uint64_t asked_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t decided_ ABSL_GUARDED_BY(mutex_) = 0;
  ClusterState state_ ABSL_GUARDED_BY(mutex_);  // its jobs change under deciding_ alone, but for what heartbeats bring
  ReportQueue reports_ ABSL_GUARDED_BY(mutex_);
  // Members of jobs that ended lately: their last events may still be on their way. Oldest first.
  std::deque<std::pair<std::string, std::set<std::string>>> ended_ ABSL_GUARDED_BY(mutex_);
  Status health_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_COORDINATOR_H_
