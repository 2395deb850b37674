#include <algorithm>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/plan/plan_codec.h"
#include "common/str_cat.h"
#include "coordinator/store/job_store.h"
#include "coordinator/store/record_codec.h"
#include "coordinator/store/sqlite_database.h"
#include "coordinator/store/sqlite_schema.h"
#include "distill/v1/job.pb.h"
#include "distill/v1/plan.pb.h"

namespace distill {
namespace {

template <typename Proto, typename Plain>
std::string Serialize(const Plain& plain) {
  Proto proto;
  Encode(plain, &proto);
  return proto.SerializeAsString();
}

template <typename Proto>
StatusOr<Proto> Parse(const std::string& bytes, std::string_view what, const std::string& job_id) {
  Proto proto;
  if (!proto.ParseFromString(bytes)) return absl::DataLossError(StrCat("job store: the ", what, " of job ", job_id, " cannot be parsed"));
  return proto;
}

class SqliteJobStore : public JobStore {
 public:
  SqliteJobStore(std::unique_ptr<SqliteDatabase> db, uint64_t epoch) : epoch_(epoch), db_(std::move(db)) {}

  uint64_t epoch() const override { return epoch_; }

  Status CheckOwnership() override {
    absl::MutexLock lock(&mutex_);
    return CompareEpoch();
  }

  StatusOr<std::optional<Known>> FindRequest(const std::string& request_id) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT job_id, content_sha256 FROM requests WHERE request_id = ?");
    query.Text(request_id);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return std::optional<Known>();
    return std::optional<Known>(Known{query.TextAt(0), query.TextAt(1)});
  }

  Status Insert(const JobRecord& job, const std::string& request_id, const std::string& content_sha256,
                const std::vector<EventRecord>& events) override {
    absl::MutexLock lock(&mutex_);
    SqliteTransaction transaction(db_.get());
    DISTILL_RETURN_IF_ERROR(Begin(&transaction));
    v1::JobPlan plan;
    ToProto(job.plan, &plan);
    DISTILL_RETURN_IF_ERROR(db_->Query("INSERT INTO jobs (id, name, submitted, plan, yaml, file_name, state, reason) VALUES (?,?,?,?,?,?,?,?)")
                                .Text(job.id).Text(job.name).Double(job.submitted_time).Blob(plan.SerializeAsString()).Text(job.yaml)
                                .Text(job.file_name).Int(static_cast<int>(job.status.state)).Text(job.status.reason).Run());
    DISTILL_RETURN_IF_ERROR(WriteStatus(job.id, job.status));
    if (!request_id.empty()) {
      DISTILL_RETURN_IF_ERROR(db_->Query("INSERT INTO requests (request_id, content_sha256, job_id) VALUES (?,?,?)")
                                  .Text(request_id).Text(content_sha256).Text(job.id).Run());
    }
    DISTILL_RETURN_IF_ERROR(AddEvents(job.id, events));
    return transaction.Commit();
  }

  Status Apply(const std::vector<JobChange>& changes) override {
    absl::MutexLock lock(&mutex_);
    SqliteTransaction transaction(db_.get());
    DISTILL_RETURN_IF_ERROR(Begin(&transaction));
    for (const JobChange& change : changes) DISTILL_RETURN_IF_ERROR(ApplyOne(change));
    return transaction.Commit();
  }

  StatusOr<JobRecord> Get(const std::string& id_or_name) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT id FROM jobs WHERE id = ?1 OR name = ?1 ORDER BY id = ?1 DESC, number DESC LIMIT 1");
    query.Text(id_or_name);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::NotFoundError(StrCat("no job has the id or name '", id_or_name, "'; distillctl list shows all"));
    return Load(query.TextAt(0));
  }

  StatusOr<std::vector<JobRecord>> List(size_t limit) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT id FROM jobs ORDER BY number DESC LIMIT ?");
    query.Int(static_cast<int64_t>(limit));
    return LoadAll(query);
  }

  StatusOr<std::vector<JobRecord>> Active() override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT id FROM jobs WHERE state IN (1, 2) ORDER BY number");
    return LoadAll(query);
  }

  StatusOr<std::vector<EventRecord>> Events(const std::string& job_id, uint64_t after, size_t limit) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query =
        db_->Query("SELECT sequence, time, level, source, text FROM events WHERE job_id = ? AND sequence > ? ORDER BY sequence LIMIT ?");
    query.Text(job_id).Int(static_cast<int64_t>(std::min<uint64_t>(after, INT64_MAX))).Int(static_cast<int64_t>(limit));
    std::vector<EventRecord> events;
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return events;
      EventRecord event;
      event.sequence = static_cast<uint64_t>(query.IntAt(0));
      event.time = query.DoubleAt(1);
      event.level = static_cast<EventLevel>(query.IntAt(2));
      event.source = query.TextAt(3);
      event.text = query.TextAt(4);
      events.push_back(std::move(event));
    }
  }

  StatusOr<std::vector<JobProgress>> History(const std::string& job_id) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT point FROM points WHERE job_id = ? ORDER BY number");
    query.Text(job_id);
    std::vector<JobProgress> points;
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return points;
      DISTILL_ASSIGN_OR_RETURN(const v1::Progress proto, Parse<v1::Progress>(query.TextAt(0), "curve", job_id));
      points.push_back(Decode(proto));
    }
  }

 private:
  // Opens the transaction and makes sure that this coordinator still owns the store.
  Status Begin(SqliteTransaction* transaction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    DISTILL_RETURN_IF_ERROR(transaction->Begin());
    return CompareEpoch();
  }

  Status CompareEpoch() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    SqliteQuery query = db_->Query("SELECT value FROM meta WHERE key = 'epoch'");
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    const uint64_t stored = row ? static_cast<uint64_t>(query.IntAt(0)) : 0;
    if (stored == epoch_) return OkStatus();
    return absl::AbortedError(StrCat("another coordinator took the job store over (epoch ", stored, ", this one is of epoch ", epoch_, ")"));
  }

  Status ApplyOne(const JobChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (change.status) DISTILL_RETURN_IF_ERROR(WriteStatus(change.job_id, *change.status));
    if (change.progress) DISTILL_RETURN_IF_ERROR(WriteProgress(change.job_id, *change.progress));
    if (change.stage) {
      DISTILL_RETURN_IF_ERROR(db_->Query("INSERT OR IGNORE INTO stages (job_id, stage, result) VALUES (?,?,?)")
                                  .Text(change.job_id).Int(change.stage->result.stage).Blob(Serialize<v1::StageResult>(*change.stage)).Run());
    }
    if (change.artifacts) {
      DISTILL_RETURN_IF_ERROR(db_->Query("UPDATE jobs SET artifacts = ? WHERE id = ?")
                                  .Blob(Serialize<v1::Artifacts>(*change.artifacts)).Text(change.job_id).Run());
    }
    return AddEvents(change.job_id, change.events);
  }

  Status WriteStatus(const std::string& job_id, const JobStatus& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    DISTILL_RETURN_IF_ERROR(db_->Query("UPDATE jobs SET state = ?, reason = ?, generation = ?, restarts = ?, cancel_requested = ?, "
                                       "cancel_reason = ?, started = ?, finished = ? WHERE id = ?")
                                .Int(static_cast<int>(status.state)).Text(status.reason).Int(static_cast<int64_t>(status.generation))
                                .Int(status.restarts).Int(status.cancel_requested).Text(status.cancel_reason).Double(status.started_time)
                                .Double(status.finished_time).Text(job_id).Run());
    if (db_->Changes() == 0) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
    DISTILL_RETURN_IF_ERROR(db_->Query("DELETE FROM ranks WHERE job_id = ?").Text(job_id).Run());
    for (size_t rank = 0; rank < status.ranks.size(); ++rank) {
      DISTILL_RETURN_IF_ERROR(db_->Query("INSERT INTO ranks (job_id, rank, worker_id, incarnation) VALUES (?,?,?,?)")
                                  .Text(job_id).Int(static_cast<int64_t>(rank)).Text(status.ranks[rank].worker_id)
                                  .Text(status.ranks[rank].incarnation).Run());
    }
    return OkStatus();
  }

  Status WriteProgress(const std::string& job_id, const JobProgress& progress) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    int64_t seen = 0, stride = 1, kept = 0;
    {
      SqliteQuery query = db_->Query("SELECT progress_seen, progress_stride, (SELECT COUNT(*) FROM points WHERE job_id = ?1) FROM jobs WHERE id = ?1");
      query.Text(job_id);
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
      seen = query.IntAt(0);
      stride = std::max<int64_t>(1, query.IntAt(1));
      kept = query.IntAt(2);
    }
    const std::string bytes = Serialize<v1::Progress>(progress);
    if (seen % stride == 0) {
      if (kept >= static_cast<int64_t>(kMaxProgressPoints)) {
        stride *= 2;
        DISTILL_RETURN_IF_ERROR(db_->Query("DELETE FROM points WHERE job_id = ? AND number % ? != 0").Text(job_id).Int(stride).Run());
      }
      if (seen % stride == 0) {
        DISTILL_RETURN_IF_ERROR(db_->Query("INSERT INTO points (job_id, number, point) VALUES (?,?,?)").Text(job_id).Int(seen).Blob(bytes).Run());
      }
    }
    return db_->Query("UPDATE jobs SET progress = ?, progress_seen = ?, progress_stride = ? WHERE id = ?")
        .Blob(bytes).Int(seen + 1).Int(stride).Text(job_id).Run();
  }

  Status AddEvents(const std::string& job_id, const std::vector<EventRecord>& events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (events.empty()) return OkStatus();
    int64_t last = 0;
    {
      SqliteQuery query = db_->Query("SELECT last_event FROM jobs WHERE id = ?");
      query.Text(job_id);
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
      last = query.IntAt(0);
    }
    for (const EventRecord& event : events) {
      // The unique index over the source's numbering makes a repeated delivery a no-op.
      DISTILL_RETURN_IF_ERROR(db_->Query("INSERT OR IGNORE INTO events (job_id, sequence, time, level, source, text, source_incarnation, source_sequence) "
                                         "VALUES (?,?,?,?,?,?,?,?)")
                                  .Text(job_id).Int(last + 1).Double(event.time).Int(static_cast<int>(event.level)).Text(event.source)
                                  .Text(event.text).Text(event.source_incarnation).Int(static_cast<int64_t>(event.source_sequence)).Run());
      if (db_->Changes() > 0) ++last;
    }
    DISTILL_RETURN_IF_ERROR(db_->Query("UPDATE jobs SET last_event = ? WHERE id = ?").Int(last).Text(job_id).Run());
    return db_->Query("DELETE FROM events WHERE job_id = ? AND sequence <= ?").Text(job_id).Int(last - static_cast<int64_t>(kMaxEvents)).Run();
  }

  StatusOr<std::vector<JobRecord>> LoadAll(SqliteQuery& query) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<std::string> ids;
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) break;
      ids.push_back(query.TextAt(0));
    }
    std::vector<JobRecord> jobs;
    for (const std::string& id : ids) {
      DISTILL_ASSIGN_OR_RETURN(JobRecord job, Load(id));
      jobs.push_back(std::move(job));
    }
    return jobs;
  }

  StatusOr<JobRecord> Load(const std::string& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    JobRecord job;
    {
      SqliteQuery query = db_->Query("SELECT name, submitted, plan, yaml, file_name, state, reason, generation, restarts, cancel_requested, "
                                     "cancel_reason, started, finished, progress, artifacts FROM jobs WHERE id = ?");
      query.Text(id);
      DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
      if (!row) return absl::NotFoundError(StrCat("job ", id, " is not in the store"));
      job.id = id;
      job.name = query.TextAt(0);
      job.submitted_time = query.DoubleAt(1);
      DISTILL_ASSIGN_OR_RETURN(const v1::JobPlan plan, Parse<v1::JobPlan>(query.TextAt(2), "plan", id));
      job.plan = FromProto(plan);
      job.yaml = query.TextAt(3);
      job.file_name = query.TextAt(4);
      job.status.state = static_cast<JobState>(query.IntAt(5));
      job.status.reason = query.TextAt(6);
      job.status.generation = static_cast<uint64_t>(query.IntAt(7));
      job.status.restarts = static_cast<uint32_t>(query.IntAt(8));
      job.status.cancel_requested = query.IntAt(9) != 0;
      job.status.cancel_reason = query.TextAt(10);
      job.status.started_time = query.DoubleAt(11);
      job.status.finished_time = query.DoubleAt(12);
      if (!query.IsNull(13)) {
        DISTILL_ASSIGN_OR_RETURN(const v1::Progress progress, Parse<v1::Progress>(query.TextAt(13), "progress", id));
        job.has_progress = true;
        job.progress = Decode(progress);
      }
      if (!query.IsNull(14)) {
        DISTILL_ASSIGN_OR_RETURN(const v1::Artifacts artifacts, Parse<v1::Artifacts>(query.TextAt(14), "artifacts", id));
        job.has_artifacts = true;
        job.artifacts = Decode(artifacts);
      }
    }
    SqliteQuery ranks = db_->Query("SELECT worker_id, incarnation FROM ranks WHERE job_id = ? ORDER BY rank");
    ranks.Text(id);
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, ranks.Step());
      if (!row) break;
      job.status.ranks.push_back({ranks.TextAt(0), ranks.TextAt(1)});
    }
    SqliteQuery stages = db_->Query("SELECT result FROM stages WHERE job_id = ? ORDER BY stage");
    stages.Text(id);
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, stages.Step());
      if (!row) break;
      DISTILL_ASSIGN_OR_RETURN(const v1::StageResult stage, Parse<v1::StageResult>(stages.TextAt(0), "stage results", id));
      job.stages.push_back(Decode(stage));
    }
    return job;
  }

  const uint64_t epoch_;
  absl::Mutex mutex_;
  const std::unique_ptr<SqliteDatabase> db_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace

StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path) {
  DISTILL_ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> db, SqliteDatabase::Open(path));
  DISTILL_ASSIGN_OR_RETURN(const uint64_t epoch, PrepareSchema(db.get(), path));
  return std::unique_ptr<JobStore>(std::make_unique<SqliteJobStore>(std::move(db), epoch));
}

}  // namespace distill
