// Reading and writing the rows of one job. The caller holds the transaction and the lock; kNotFound: no such job.
#ifndef DISTILL_COORDINATOR_STORE_SQLITE_JOB_ROWS_H_
#define DISTILL_COORDINATOR_STORE_SQLITE_JOB_ROWS_H_

#include <string>
#include <vector>

#include "common/status.h"
#include "coordinator/store/job_record.h"
#include "coordinator/store/sqlite_database.h"

namespace distill {

// kAlreadyExists: the id is taken.
Status InsertJob(SqliteDatabase* db, const JobRecord& job);
Status WriteStatus(SqliteDatabase* db, const std::string& job_id, const JobStatus& status);
// The newest progress, and a point of the curve unless thinning leaves it out.
Status WriteProgress(SqliteDatabase* db, const std::string& job_id, const std::vector<JobProgress>& progress);
// A stage that is there already stays as it is.
Status WriteStage(SqliteDatabase* db, const std::string& job_id, const StageRecord& stage);
// Forgets stages from `first` on.
Status DropStages(SqliteDatabase* db, const std::string& job_id, uint32_t first);
Status WriteArtifacts(SqliteDatabase* db, const std::string& job_id, const JobArtifacts& artifacts);
// Gives sequence numbers; drops events that a worker sent twice, and the oldest beyond JobStore::kMaxEvents.
Status AddEvents(SqliteDatabase* db, const std::string& job_id, const std::vector<EventRecord>& events);

enum class ResultsByClass { kLoad, kLeave };  // of the artifacts' scores
StatusOr<JobRecord> LoadJob(SqliteDatabase* db, const std::string& id, ResultsByClass classes);
StatusOr<std::vector<EventRecord>> LoadEvents(SqliteDatabase* db, const std::string& job_id, uint64_t after,
                                              size_t limit);
StatusOr<std::vector<CurvePoint>> LoadPoints(SqliteDatabase* db, const std::string& job_id, uint64_t from,
                                             size_t limit);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_SQLITE_JOB_ROWS_H_
