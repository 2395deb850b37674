#include "coordinator/store/sqlite_schema.h"

#include "common/str_cat.h"

namespace distill {
namespace {

// `number` gives jobs their order of submission. Protobuf blobs: jobs.plan (JobPlan), jobs.progress and points.point
// (Progress), jobs.artifacts (Artifacts without its results by class), jobs.classes (an Artifacts of these alone: they
// are large, and lists of jobs do without), stages.result (StageResult), jobs.overrides (a SubmitJobRequest of these
// alone), all of distill.v1.
constexpr const char* kTables = R"sql(
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('epoch', 0);
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT,
  id TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  submitted REAL NOT NULL,
  plan BLOB NOT NULL,
  yaml TEXT NOT NULL,
  file_name TEXT NOT NULL,
  overrides BLOB NOT NULL,
  state INTEGER NOT NULL,
  reason TEXT NOT NULL,
  wait INTEGER NOT NULL DEFAULT 0,
  generation INTEGER NOT NULL DEFAULT 0,
  restarts INTEGER NOT NULL DEFAULT 0,
  fruitless INTEGER NOT NULL DEFAULT 0,
  best_step INTEGER NOT NULL DEFAULT 0,
  best_stage INTEGER NOT NULL DEFAULT 0,
  cancel_requested INTEGER NOT NULL DEFAULT 0,
  cancel_reason TEXT NOT NULL DEFAULT '',
  started REAL NOT NULL DEFAULT 0,
  finished REAL NOT NULL DEFAULT 0,
  progress BLOB,
  progress_seen INTEGER NOT NULL DEFAULT 0,
  progress_stride INTEGER NOT NULL DEFAULT 1,
  artifacts BLOB,
  classes BLOB,
  last_event INTEGER NOT NULL DEFAULT 0);
CREATE INDEX jobs_by_name ON jobs (name);
CREATE INDEX jobs_by_state ON jobs (state);
CREATE TABLE requests (
  request_id TEXT PRIMARY KEY,
  content_sha256 TEXT NOT NULL,
  job_id TEXT NOT NULL REFERENCES jobs (id)) WITHOUT ROWID;
CREATE TABLE ranks (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  rank INTEGER NOT NULL,
  worker_id TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  PRIMARY KEY (job_id, rank)) WITHOUT ROWID;
CREATE TABLE set_aside (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  worker_id TEXT NOT NULL,
  incarnation TEXT NOT NULL,
  reason TEXT NOT NULL,
  PRIMARY KEY (job_id, worker_id)) WITHOUT ROWID;
CREATE TABLE stages (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  stage INTEGER NOT NULL,
  result BLOB NOT NULL,
  PRIMARY KEY (job_id, stage)) WITHOUT ROWID;
CREATE TABLE events (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  sequence INTEGER NOT NULL,
  time REAL NOT NULL,
  level INTEGER NOT NULL,
  type INTEGER NOT NULL,
  generation INTEGER NOT NULL,
  source TEXT NOT NULL,
  text TEXT NOT NULL,
  source_incarnation TEXT NOT NULL,
  source_sequence INTEGER NOT NULL,
  PRIMARY KEY (job_id, sequence)) WITHOUT ROWID;
CREATE UNIQUE INDEX events_once ON events (job_id, source, source_incarnation, source_sequence) WHERE source_sequence > 0;
CREATE TABLE points (
  job_id TEXT NOT NULL REFERENCES jobs (id),
  number INTEGER NOT NULL,
  point BLOB NOT NULL,
  PRIMARY KEY (job_id, number)) WITHOUT ROWID;
PRAGMA user_version = 3;
)sql";

StatusOr<int64_t> ReadInt(SqliteDatabase* db, const char* sql) {
  SqliteQuery query = db->Query(sql);
  DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
  return row ? query.IntAt(0) : 0;
}

}  // namespace

StatusOr<uint64_t> PrepareSchema(SqliteDatabase* db, const std::string& path) {
  SqliteTransaction transaction(db);
  DISTILL_RETURN_IF_ERROR(transaction.Begin());
  DISTILL_ASSIGN_OR_RETURN(const int64_t version, ReadInt(db, "PRAGMA user_version"));
  if (version > kSchemaVersion) {
    return absl::FailedPreconditionError(
        StrCat("job store ", path, " has schema version ", version, ", this program knows ", kSchemaVersion,
               "; run a newer distill-coordinator, or move the file away to start with no jobs"));
  }
  if (version != 0 && version < kSchemaVersion) {
    return absl::FailedPreconditionError(
        StrCat("job store ", path, " has schema version ", version, " of an older release, this program knows only ",
               kSchemaVersion, "; finish its jobs with that release, or move the file away to start with no jobs"));
  }
  if (version == 0) {
    DISTILL_ASSIGN_OR_RETURN(const int64_t tables, ReadInt(db, "SELECT COUNT(*) FROM sqlite_master"));
    if (tables != 0) {
      return absl::FailedPreconditionError(StrCat(path, " is a database of another program; give another --state-dir"));
    }
    DISTILL_RETURN_IF_ERROR(db->Execute(kTables));
  }
  DISTILL_RETURN_IF_ERROR(db->Execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'"));
  DISTILL_ASSIGN_OR_RETURN(const int64_t epoch, ReadInt(db, "SELECT value FROM meta WHERE key = 'epoch'"));
  DISTILL_RETURN_IF_ERROR(transaction.Commit());
  return static_cast<uint64_t>(epoch);
}

}  // namespace distill
