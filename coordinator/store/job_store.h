// The coordinator's truth: jobs, what became of them, their events and curves. Survives the process.
//
// One coordinator at a time: Open() raises the coordinator epoch, and a store of an older epoch refuses every write
// with kAborted (checked inside the write's transaction), so two coordinators on one file cannot both decide. Every
// write is one transaction, durable when it returns.
//
// Thread-safe; calls block on the disk. Errors of all calls: kDataLoss the file is damaged; kResourceExhausted disk
// full; kPermissionDenied; kUnavailable somebody holds the file's lock; kAborted a newer coordinator owns it: stop.
#ifndef DISTILL_COORDINATOR_STORE_JOB_STORE_H_
#define DISTILL_COORDINATOR_STORE_JOB_STORE_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/store/job_record.h"

namespace distill {

// A changed job: the parts that are set are written, together with all other changes of the same Apply().
struct JobChange {
  std::string job_id;
  std::optional<JobStatus> status;
  std::vector<JobProgress> progress;    // points of the job's curve, oldest first; the last is its newest
  std::optional<uint32_t> drop_stages;  // this one and later ones are not committed any more
  std::optional<StageRecord> stage;     // a stage that is stored already stays as it is
  std::optional<JobArtifacts> artifacts;
  std::vector<EventRecord> events;  // `sequence` is ignored
};

class JobStore {
 public:
  // Points kept per job. When there are more, every second one is dropped and from then on only every second report is
  // kept.
  static constexpr size_t kMaxProgressPoints = 2000;
  // Newest events kept per job; older ones are dropped.
  static constexpr size_t kMaxEvents = 10000;

  virtual ~JobStore() = default;
  // Times a coordinator was started on this store, this one included.
  virtual uint64_t epoch() const = 0;
  // kAborted once a newer coordinator has opened the store.
  virtual Status CheckOwnership() = 0;

  struct Known {
    std::string job_id;
    std::string content_sha256;
  };
  // The job a request id was used for, if any.
  virtual StatusOr<std::optional<Known>> FindRequest(const std::string& request_id) = 0;
  // Stores a new job with its first events and remembers the request. kAlreadyExists: the request id or job id is
  // taken.
  virtual Status Insert(const JobRecord& job, const std::string& request_id, const std::string& content_sha256,
                        const std::vector<EventRecord>& events) = 0;
  // All or nothing. kNotFound: no such job.
  virtual Status Apply(const std::vector<JobChange>& changes) = 0;

  // A job whose row cannot be read whole comes with JobRecord.damage: here, in List() and in Active(). Results by class
  // (up to a few hundred kB a job) come here alone.
  // By id, else the job of that name that has not ended, else the newest of that name. kNotFound; kInvalidArgument:
  // several of that name have not ended (their ids are in the message).
  virtual StatusOr<JobRecord> Get(const std::string& id_or_name) = 0;
  // The job file of the job with this id, as submitted. kNotFound.
  virtual StatusOr<std::string> Yaml(const std::string& job_id) = 0;
  // Newest first, of those in one of `states`; no states: of all.
  virtual StatusOr<std::vector<JobRecord>> List(size_t limit, const std::vector<JobState>& states = {}) = 0;
  // Queued and running jobs, oldest first.
  virtual StatusOr<std::vector<JobRecord>> Active() = 0;
  // Events with a larger sequence, oldest first.
  virtual StatusOr<std::vector<EventRecord>> Events(const std::string& job_id, uint64_t after, size_t limit) = 0;
  // At most `limit` points of the job's curve, those with the smallest numbers of at least `from`, oldest first.
  virtual StatusOr<std::vector<CurvePoint>> Curve(const std::string& job_id, uint64_t from, size_t limit) = 0;
  // All points of the job's curve, oldest first.
  StatusOr<std::vector<JobProgress>> History(const std::string& job_id);
};

// SQLite (WAL, synchronous=FULL) in `path`, made when absent (its folder must exist); ":memory:" for tests. Once open,
// a call waits at most `busy_seconds` for a lock that another process holds.
// kFailedPrecondition: written by a newer version of this program. kPermissionDenied: names the path. kDataLoss: not a
// database, or damaged.
StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path, double busy_seconds = 1);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_JOB_STORE_H_
