#include "absl/base/thread_annotations.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "common/str_cat.h"
#include "coordinator/store/job_store.h"
#include "coordinator/store/sqlite_database.h"
#include "coordinator/store/sqlite_job_rows.h"
#include "coordinator/store/sqlite_schema.h"

namespace distill {
namespace {

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
    DISTILL_RETURN_IF_ERROR(InsertJob(db_.get(), job));
    if (!request_id.empty()) {
      DISTILL_RETURN_IF_ERROR(db_->Query("INSERT INTO requests (request_id, content_sha256, job_id) VALUES (?,?,?)")
                                  .Text(request_id)
                                  .Text(content_sha256)
                                  .Text(job.id)
                                  .Run());
    }
    DISTILL_RETURN_IF_ERROR(AddEvents(db_.get(), job.id, events));
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
    SqliteQuery by_id = db_->Query("SELECT id FROM jobs WHERE id = ?");
    by_id.Text(id_or_name);
    DISTILL_ASSIGN_OR_RETURN(const bool is_id, by_id.Step());
    if (is_id) return LoadJob(db_.get(), id_or_name, ResultsByClass::kLoad);
    // Those that have not ended first: who says a name means the job that runs, not a later one that failed at once.
    SqliteQuery by_name =
        db_->Query("SELECT id, state IN (1, 2) AS active FROM jobs WHERE name = ? ORDER BY active DESC, number DESC");
    by_name.Text(id_or_name);
    std::vector<std::string> active;
    while (true) {
      DISTILL_ASSIGN_OR_RETURN(const bool row, by_name.Step());
      if (!row) break;
      if (by_name.IntAt(1) != 0) {
        active.push_back(by_name.TextAt(0));
        continue;
      }
      if (active.empty()) return LoadJob(db_.get(), by_name.TextAt(0), ResultsByClass::kLoad);
      break;
    }
    if (active.empty()) {
      return absl::NotFoundError(StrCat("no job has the id or name '", id_or_name, "'; distillctl list shows all"));
    }
    if (active.size() == 1) return LoadJob(db_.get(), active[0], ResultsByClass::kLoad);
    return absl::InvalidArgumentError(StrCat(active.size(), " jobs named '", id_or_name,
                                             "' have not ended; name one by its id: ", absl::StrJoin(active, ", ")));
  }

  StatusOr<std::string> Yaml(const std::string& job_id) override {
    absl::MutexLock lock(&mutex_);
    SqliteQuery query = db_->Query("SELECT yaml FROM jobs WHERE id = ?");
    query.Text(job_id);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::NotFoundError(StrCat("no job has the id '", job_id, "'"));
    return query.TextAt(0);
  }

  StatusOr<std::vector<JobRecord>> List(size_t limit, const std::vector<JobState>& states) override {
    absl::MutexLock lock(&mutex_);
    std::string where;
    for (const JobState state : states) {
      StrAppend(&where, where.empty() ? " WHERE state IN (" : ", ", static_cast<int>(state));
    }
    const std::string sql =
        StrCat("SELECT id FROM jobs", where, where.empty() ? "" : ")", " ORDER BY number DESC LIMIT ?");
    SqliteQuery query = db_->Query(sql.c_str());
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
    return LoadEvents(db_.get(), job_id, after, limit);
  }

  StatusOr<std::vector<CurvePoint>> Curve(const std::string& job_id, uint64_t from, size_t limit) override {
    absl::MutexLock lock(&mutex_);
    return LoadPoints(db_.get(), job_id, from, limit);
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
    return absl::AbortedError(
        StrCat("another coordinator took the job store over (epoch ", stored, ", this one is of epoch ", epoch_, ")"));
  }

  Status ApplyOne(const JobChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    SqliteDatabase* const db = db_.get();
    if (change.status) DISTILL_RETURN_IF_ERROR(WriteStatus(db, change.job_id, *change.status));
    DISTILL_RETURN_IF_ERROR(WriteProgress(db, change.job_id, change.progress));
    if (change.drop_stages) DISTILL_RETURN_IF_ERROR(DropStages(db, change.job_id, *change.drop_stages));
    if (change.stage) DISTILL_RETURN_IF_ERROR(WriteStage(db, change.job_id, *change.stage));
    if (change.artifacts) DISTILL_RETURN_IF_ERROR(WriteArtifacts(db, change.job_id, *change.artifacts));
    return AddEvents(db, change.job_id, change.events);
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
      DISTILL_ASSIGN_OR_RETURN(JobRecord job, LoadJob(db_.get(), id, ResultsByClass::kLeave));
      jobs.push_back(std::move(job));
    }
    return jobs;
  }

  const uint64_t epoch_;
  absl::Mutex mutex_;
  const std::unique_ptr<SqliteDatabase> db_ ABSL_PT_GUARDED_BY(mutex_);
};

}  // namespace

StatusOr<std::vector<JobProgress>> JobStore::History(const std::string& job_id) {
  DISTILL_ASSIGN_OR_RETURN(std::vector<CurvePoint> points, Curve(job_id, 0, kMaxProgressPoints));
  std::vector<JobProgress> history;
  for (CurvePoint& point : points) history.push_back(std::move(point.progress));
  return history;
}

StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(const std::string& path, double busy_seconds) {
  DISTILL_ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> db, SqliteDatabase::Open(path));
  DISTILL_ASSIGN_OR_RETURN(const uint64_t epoch, PrepareSchema(db.get(), path));
  db->SetBusyTimeout(busy_seconds);
  return std::unique_ptr<JobStore>(std::make_unique<SqliteJobStore>(std::move(db), epoch));
}

}  // namespace distill
