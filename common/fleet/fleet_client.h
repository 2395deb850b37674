// A worker's line to the coordinator: registers, keeps a heartbeat, delivers assignments, reports. Plain types; gRPC
// inside.
//
// One thread named "heartbeat". It survives the coordinator's restart: while the coordinator is away it retries with
// back-off (at most one heartbeat interval) and registers again, under the same id and incarnation, when told to. When
// another process has taken its id, the worker is displaced: its assignment is revoked (a teacher's jobs end), and once
// a lease it asks to have its id back, which it gets when the other process is lost.
// Reports (ReportResume, CommitStage, FinishJob) retry until they are answered, `Stop` is called or their generation is
// over. Answers of an older coordinator epoch than the last seen are ignored.
#ifndef DISTILL_COMMON_FLEET_FLEET_CLIENT_H_
#define DISTILL_COMMON_FLEET_FLEET_CLIENT_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/failure_kind.h"
#include "common/fleet/worker_identity.h"
#include "common/plan/plan.h"
#include "common/rpc/rpc_options.h"
#include "common/score/score.h"
#include "common/status.h"

namespace distill {

enum class WorkerKind { kTeacher, kStudent };

// Mirrors v1.TapInfo.
struct ServedTap {
  std::string path, type;
  std::vector<uint32_t> shape;
  bool stage_end = false;
  std::vector<uint32_t> needs = {};  // of a student's archive: positions in ServedModelInfo::state
  bool is_cut = false;
};
// Mirrors v1.StateInfo.
struct ServedState {
  std::string name;
  std::vector<int64_t> shape = {};
  bool is_buffer = false, is_integer = false;
};
// Mirrors v1.ServedModel.
struct ServedModelInfo {
  std::string name, digest;
  ModelSpec spec;
  uint64_t parameters = 0, bytes = 0;
  std::vector<ServedTap> taps = {};     // only for models whose architecture is not in the zoo
  std::vector<ServedState> state = {};  // only of archives that students train
};

struct TeacherEndpoint {
  std::string worker_id, address, model, digest;
  bool operator==(const TeacherEndpoint&) const = default;
};

// Mirrors v1.StudentAssignment.
struct StudentAssignment {
  std::string job_id;
  uint64_t generation = 0;
  uint32_t rank = 0, world_size = 1;
  JobPlan plan;
  uint32_t first_stage = 0;
  std::vector<TeacherEndpoint> teachers;
  std::string checkpoint, checkpoint_digest;
};
// Mirrors v1.TeacherJob.
struct TeacherJob {
  std::string job_id, model;
  std::vector<std::string> taps;
  bool operator==(const TeacherJob&) const = default;
};

// Mirrors v1.Progress.
struct JobProgress {
  uint32_t stage = 0;
  uint64_t step = 0, total_step = 0;
  uint64_t skipped_steps = 0;  // of `step`
  double loss = 0, learning_rate = 0, images_per_second = 0;
  std::vector<NamedNumber> terms, step_seconds;
  Score score, teacher_score;  // the newest; their results by class do not travel
  double time = 0;
  std::string phase;
};
struct JobStageResult {
  uint32_t stage = 0;
  std::string checkpoint, digest;
  Score score;  // results by class do not travel
  double loss = 0, seconds = 0;
  uint64_t skipped_steps = 0;
};
struct JobArtifacts {
  std::string safetensors, torchscript;
  uint64_t safetensors_bytes = 0, torchscript_bytes = 0, student_parameters = 0, teacher_parameters = 0,
           teacher_bytes = 0;
  Score student_score, teacher_score;  // with results by class
};
enum class EventLevel { kInfo, kWarning, kError };
// What an event is about; values equal those of v1.EventType, which says more. The first block is the coordinator's.
enum class EventType {
  kGeneral = 1,
  kSubmitted = 2,
  kGroupFormed = 3,
  kGroupLost = 4,
  kStageCommitted = 5,
  kStagesDropped = 6,
  kTeacherMissing = 7,
  kTeacherFound = 8,
  kTeacherMismatch = 9,
  kTeachersReleased = 10,
  kWorkerSetAside = 11,
  kCancelRequested = 12,
  kContinued = 13,
  kEnded = 14,
  kStalled = 15,
  kSubmitWarning = 16,

  kCheckpoint = 17,  // which one is used, which not and why, one that was not written
  kData = 18,        // what is odd about the data set
  kSteps = 19,       // steps skipped, a stage that ended early
  kTeacher = 20,     // a teacher that answers wrongly or late
};

// Thread-safe.
class FleetClient {
 public:
  struct Options {
    std::string coordinator;  // host:port
    RpcSecurity security;
    std::string worker_id;
    WorkerKind kind = WorkerKind::kStudent;
    std::string address;  // see RegisterRequest.address
    std::vector<ServedModelInfo> models;
    std::string device = "cpu";
    // How long Start() waits for the first answer of the coordinator.
    std::chrono::milliseconds connect_timeout{30000};
  };
  // Callbacks run on the heartbeat thread and must return quickly; each fires only when its value changed. Those that
  // are null are not called. They may call the client, but not Stop(), Drain() or the blocking reports. The first may
  // run before Start() has returned; none runs after Stop() has.
  struct Callbacks {
    // A new assignment (another job or generation), or nullopt: revoked, stop what you do.
    std::function<void(std::optional<StudentAssignment>)> on_student_assignment;
    // The list of teachers of the present assignment changed (a new assignment brings its own and does not fire this).
    std::function<void(std::vector<TeacherEndpoint>)> on_teachers;
    // Teachers: the jobs that need this server now; it begins as none.
    std::function<void(std::vector<TeacherJob>)> on_teacher_jobs;
    // The job of the present assignment was cancelled; once per assignment.
    std::function<void()> on_cancel;
    std::function<uint32_t()> queue_length;  // teachers: requests waiting; asked before each heartbeat
  };
  // Registers and starts the heartbeat. kUnavailable: no coordinator answered in time (names the address);
  // kUnauthenticated; kInvalidArgument: the coordinator refused the registration.
  static StatusOr<std::unique_ptr<FleetClient>> Start(Options options, Callbacks callbacks);
  virtual ~FleetClient() = default;  // Stop()

  // What the worker acts on now; sent with a heartbeat at once, with later ones and after a coordinator restart. Empty
  // job id: idle.
  virtual void SetCurrent(const std::string& job_id, uint64_t generation) = 0;
  // Registers again with these in place of the models registered before; does not wait for it. A registration that the
  // coordinator refuses is logged, and those before stay.
  virtual void SetModels(std::vector<ServedModelInfo> models) = 0;
  // Progress of the current job (SetCurrent), sent with the next heartbeat; at most 1000 are kept, newest win. Dropped
  // when the current job changes first.
  virtual void ReportProgress(const JobProgress& progress) = 0;
  // Kept (at most 1000, oldest dropped; texts are cut at 4 KiB) until the coordinator has stored it; goes to the job's
  // event log, once, even if an answer was lost. Those of jobs in which the worker never held a rank are dropped there.
  virtual void ReportEvent(const std::string& job_id, EventLevel level, EventType type, const std::string& text) = 0;
  // Blocking, all four. Rank 0, before a generation's first step: where it really starts, in that `step` steps of
  // `stage` are done (a stage whose checkpoint is complete counts as the next stage's step 0), and the digest of the
  // checkpoint it starts from ("" for none). The coordinator forgets committed stages from `stage` on. Errors as
  // CommitStage.
  virtual Status ReportResume(const std::string& job_id, uint64_t generation, uint32_t stage, uint64_t step,
                              const std::string& checkpoint_digest) = 0;
  // kAborted: the generation is over. kCancelled: stopped. kNotFound: the coordinator knows neither worker
  // nor job, also after 10 s. Other codes: the coordinator refused the report; do not retry.
  virtual Status CommitStage(const std::string& job_id, uint64_t generation, const JobStageResult& result) = 0;
  virtual Status FinishJob(const std::string& job_id, uint64_t generation, const JobArtifacts& artifacts) = 0;
  // At most 10 s of retries.
  virtual Status ReportFailure(const std::string& job_id, uint64_t generation, FailureKind kind,
                               const std::string& message) = 0;
  // Who this is, as every message says it.
  virtual WorkerIdentity identity() const = 0;
  // The worker is going away: one last heartbeat says so (at most 2 s, of which later calls wait what is left).
  virtual void Drain() = 0;
  // Ends the heartbeat, unblocks all calls (kCancelled) and joins the thread. Idempotent.
  virtual void Stop() = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_FLEET_FLEET_CLIENT_H_
