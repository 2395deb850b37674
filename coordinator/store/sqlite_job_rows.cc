#include "coordinator/store/sqlite_job_rows.h"

#include <algorithm>

#include "common/plan/plan_codec.h"
#include "common/str_cat.h"
#include "coordinator/store/job_store.h"
#include "coordinator/store/record_codec.h"
#include "distill/v1/job.pb.h"
#include "distill/v1/plan.pb.h"

namespace distill {
namespace {

template <typename Proto, typename Plain>
std::string Serialize(const Plain& plain) {
  Proto proto;
  ToProto(plain, &proto);
  return proto.SerializeAsString();
}

// False, and said in job->damage, when the bytes are not of that message: one broken row must not hide the others.
template <typename Proto>
bool Parse(const std::string& bytes, std::string_view what, Proto* proto, JobRecord* job) {
  if (proto->ParseFromString(bytes)) return true;
  proto->Clear();
  StrAppend(&job->damage, job->damage.empty() ? "the job store is damaged: " : ", ", "its ", what, " cannot be parsed");
  return false;
}

}  // namespace

Status InsertJob(SqliteDatabase* db, const JobRecord& job) {
  v1::JobPlan plan;
  ToProto(job.plan, &plan);
  v1::SubmitJobRequest request;
  request.mutable_overrides()->Assign(job.overrides.begin(), job.overrides.end());
  DISTILL_RETURN_IF_ERROR(
      db->Query("INSERT INTO jobs (id, name, submitted, plan, yaml, file_name, overrides, state, reason) "
                "VALUES (?,?,?,?,?,?,?,?,?)")
          .Text(job.id)
          .Text(job.name)
          .Double(job.submitted_time)
          .Blob(plan.SerializeAsString())
          .Text(job.yaml)
          .Text(job.file_name)
          .Blob(request.SerializeAsString())
          .Int(static_cast<int>(job.status.state))
          .Text(job.status.reason)
          .Run());
  return WriteStatus(db, job.id, job.status);
}

Status WriteStatus(SqliteDatabase* db, const std::string& job_id, const JobStatus& status) {
  DISTILL_RETURN_IF_ERROR(
      db->Query("UPDATE jobs SET state = ?, reason = ?, wait = ?, generation = ?, restarts = ?, fruitless = ?, "
                "best_step = ?, "
                "best_stage = ?, cancel_requested = ?, cancel_reason = ?, started = ?, finished = ? WHERE id = ?")
          .Int(static_cast<int>(status.state))
          .Text(status.reason)
          .Int(static_cast<int>(status.wait))
          .Int(static_cast<int64_t>(status.generation))
          .Int(status.restarts)
          .Int(status.fruitless)
          .Int(static_cast<int64_t>(status.best_step))
          .Int(status.best_stage)
          .Int(status.cancel_requested)
          .Text(status.cancel_reason)
          .Double(status.started_time)
          .Double(status.finished_time)
          .Text(job_id)
          .Run());
  if (db->Changes() == 0) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
  DISTILL_RETURN_IF_ERROR(db->Query("DELETE FROM ranks WHERE job_id = ?").Text(job_id).Run());
  for (size_t rank = 0; rank < status.ranks.size(); ++rank) {
    DISTILL_RETURN_IF_ERROR(db->Query("INSERT INTO ranks (job_id, rank, worker_id, incarnation) VALUES (?,?,?,?)")
                                .Text(job_id)
                                .Int(static_cast<int64_t>(rank))
                                .Text(status.ranks[rank].worker_id)
                                .Text(status.ranks[rank].incarnation)
                                .Run());
  }
  DISTILL_RETURN_IF_ERROR(db->Query("DELETE FROM set_aside WHERE job_id = ?").Text(job_id).Run());
  for (const SetAside& one : status.set_aside) {
    DISTILL_RETURN_IF_ERROR(db->Query("INSERT INTO set_aside (job_id, worker_id, incarnation, reason) VALUES (?,?,?,?)")
                                .Text(job_id)
                                .Text(one.worker_id)
                                .Text(one.incarnation)
                                .Text(one.reason)
                                .Run());
  }
  return OkStatus();
}

Status WriteProgress(SqliteDatabase* db, const std::string& job_id, const std::vector<JobProgress>& progress) {
  if (progress.empty()) return OkStatus();
  int64_t seen = 0, stride = 1, kept = 0;
  {
    SqliteQuery query = db->Query(
        "SELECT progress_seen, progress_stride, (SELECT COUNT(*) FROM points WHERE job_id = ?1) FROM jobs WHERE id = "
        "?1");
    query.Text(job_id);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
    seen = query.IntAt(0);
    stride = std::max<int64_t>(1, query.IntAt(1));
    kept = query.IntAt(2);
  }
  for (const JobProgress& point : progress) {
    const int64_t number = seen++;
    if (number % stride != 0) continue;
    if (kept >= static_cast<int64_t>(JobStore::kMaxProgressPoints)) {
      stride *= 2;
      DISTILL_RETURN_IF_ERROR(
          db->Query("DELETE FROM points WHERE job_id = ? AND number % ? != 0").Text(job_id).Int(stride).Run());
      kept -= db->Changes();
    }
    if (number % stride != 0) continue;
    DISTILL_RETURN_IF_ERROR(db->Query("INSERT INTO points (job_id, number, point) VALUES (?,?,?)")
                                .Text(job_id)
                                .Int(number)
                                .Blob(Serialize<v1::Progress>(point))
                                .Run());
    ++kept;
  }
  return db->Query("UPDATE jobs SET progress = ?, progress_seen = ?, progress_stride = ? WHERE id = ?")
      .Blob(Serialize<v1::Progress>(progress.back()))
      .Int(seen)
      .Int(stride)
      .Text(job_id)
      .Run();
}

Status AddEvents(SqliteDatabase* db, const std::string& job_id, const std::vector<EventRecord>& events) {
  if (events.empty()) return OkStatus();
  int64_t last = 0;
  {
    SqliteQuery query = db->Query("SELECT last_event FROM jobs WHERE id = ?");
    query.Text(job_id);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::NotFoundError(StrCat("job ", job_id, " is not in the store"));
    last = query.IntAt(0);
  }
  for (const EventRecord& event : events) {
    // The unique index over the source's numbering makes a repeated delivery a no-op.
    DISTILL_RETURN_IF_ERROR(
        db->Query("INSERT OR IGNORE INTO events (job_id, sequence, time, level, type, generation, source, "
                  "text, source_incarnation, source_sequence) VALUES (?,?,?,?,?,?,?,?,?,?)")
            .Text(job_id)
            .Int(last + 1)
            .Double(event.time)
            .Int(static_cast<int>(event.level))
            .Int(static_cast<int>(event.type))
            .Int(static_cast<int64_t>(event.generation))
            .Text(event.source)
            .Text(event.text)
            .Text(event.source_incarnation)
            .Int(static_cast<int64_t>(event.source_sequence))
            .Run());
    if (db->Changes() > 0) ++last;
  }
  DISTILL_RETURN_IF_ERROR(db->Query("UPDATE jobs SET last_event = ? WHERE id = ?").Int(last).Text(job_id).Run());
  return db->Query("DELETE FROM events WHERE job_id = ? AND sequence <= ?")
      .Text(job_id)
      .Int(last - static_cast<int64_t>(JobStore::kMaxEvents))
      .Run();
}

Status WriteStage(SqliteDatabase* db, const std::string& job_id, const StageRecord& stage) {
  return db->Query("INSERT OR IGNORE INTO stages (job_id, stage, result) VALUES (?,?,?)")
      .Text(job_id)
      .Int(stage.result.stage)
      .Blob(Serialize<v1::StageResult>(stage))
      .Run();
}

Status DropStages(SqliteDatabase* db, const std::string& job_id, uint32_t first) {
  return db->Query("DELETE FROM stages WHERE job_id = ? AND stage >= ?").Text(job_id).Int(first).Run();
}

Status WriteArtifacts(SqliteDatabase* db, const std::string& job_id, const JobArtifacts& artifacts) {
  v1::Artifacts rest, classes;
  ToProto(artifacts, &rest);
  classes.mutable_student_classes()->Swap(rest.mutable_student_classes());
  classes.mutable_teacher_classes()->Swap(rest.mutable_teacher_classes());
  return db->Query("UPDATE jobs SET artifacts = ?, classes = ? WHERE id = ?")
      .Blob(rest.SerializeAsString())
      .Blob(classes.SerializeAsString())
      .Text(job_id)
      .Run();
}

StatusOr<JobRecord> LoadJob(SqliteDatabase* db, const std::string& id, ResultsByClass classes) {
  JobRecord job;
  {
    SqliteQuery query = db->Query(
        "SELECT name, submitted, plan, overrides, file_name, state, reason, generation, restarts, cancel_requested, "
        "cancel_reason, started, finished, progress, artifacts, wait, fruitless, best_step, best_stage, CASE WHEN ? "
        "THEN classes END FROM jobs WHERE id = ?");
    query.Int(classes == ResultsByClass::kLoad).Text(id);
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return absl::NotFoundError(StrCat("job ", id, " is not in the store"));
    job.id = id;
    job.name = query.TextAt(0);
    job.submitted_time = query.DoubleAt(1);
    v1::JobPlan plan;
    Parse(query.TextAt(2), "plan", &plan, &job);
    job.plan = FromProto(plan);
    v1::SubmitJobRequest request;
    Parse(query.TextAt(3), "overrides", &request, &job);
    job.overrides.assign(request.overrides().begin(), request.overrides().end());
    job.file_name = query.TextAt(4);
    job.status.state = static_cast<JobState>(query.IntAt(5));
    job.status.reason = query.TextAt(6);
    job.status.generation = static_cast<uint64_t>(query.IntAt(7));
    job.status.restarts = static_cast<uint32_t>(query.IntAt(8));
    job.status.cancel_requested = query.IntAt(9) != 0;
    job.status.cancel_reason = query.TextAt(10);
    job.status.started_time = query.DoubleAt(11);
    job.status.finished_time = query.DoubleAt(12);
    job.status.wait = static_cast<JobWait>(query.IntAt(15));
    job.status.fruitless = static_cast<uint32_t>(query.IntAt(16));
    job.status.best_step = static_cast<uint64_t>(query.IntAt(17));
    job.status.best_stage = static_cast<uint32_t>(query.IntAt(18));
    if (v1::Progress progress; !query.IsNull(13) && Parse(query.TextAt(13), "progress", &progress, &job)) {
      job.has_progress = true;
      job.progress = FromProto(progress);
    }
    if (v1::Artifacts artifacts; !query.IsNull(14) && Parse(query.TextAt(14), "artifacts", &artifacts, &job)) {
      v1::Artifacts by_class;
      if (!query.IsNull(19) && Parse(query.TextAt(19), "results by class", &by_class, &job)) {
        artifacts.MergeFrom(by_class);
      }
      job.has_artifacts = true;
      job.artifacts = FromProto(artifacts);
    }
  }
  SqliteQuery ranks = db->Query("SELECT worker_id, incarnation FROM ranks WHERE job_id = ? ORDER BY rank");
  ranks.Text(id);
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool row, ranks.Step());
    if (!row) break;
    job.status.ranks.push_back({ranks.TextAt(0), ranks.TextAt(1)});
  }
  SqliteQuery set_aside = db->Query("SELECT worker_id, incarnation, reason FROM set_aside WHERE job_id = ?");
  set_aside.Text(id);
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool row, set_aside.Step());
    if (!row) break;
    job.status.set_aside.push_back({set_aside.TextAt(0), set_aside.TextAt(1), set_aside.TextAt(2)});
  }
  SqliteQuery stages = db->Query("SELECT result FROM stages WHERE job_id = ? ORDER BY stage");
  stages.Text(id);
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool row, stages.Step());
    if (!row) break;
    v1::StageResult stage;
    if (Parse(stages.TextAt(0), "stage results", &stage, &job)) job.stages.push_back(StageFromProto(stage));
  }
  return job;
}

StatusOr<std::vector<EventRecord>> LoadEvents(SqliteDatabase* db, const std::string& job_id, uint64_t after,
                                              size_t limit) {
  SqliteQuery query = db->Query(
      "SELECT sequence, time, level, source, text, type, generation FROM events WHERE job_id = ? AND sequence > ? "
      "ORDER BY sequence "
      "LIMIT ?");
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
    event.type = static_cast<EventType>(query.IntAt(5));
    event.generation = static_cast<uint64_t>(query.IntAt(6));
    events.push_back(std::move(event));
  }
}

StatusOr<std::vector<CurvePoint>> LoadPoints(SqliteDatabase* db, const std::string& job_id, uint64_t from,
                                             size_t limit) {
  SqliteQuery query =
      db->Query("SELECT number, point FROM points WHERE job_id = ? AND number >= ? ORDER BY number LIMIT ?");
  query.Text(job_id).Int(static_cast<int64_t>(std::min<uint64_t>(from, INT64_MAX))).Int(static_cast<int64_t>(limit));
  std::vector<CurvePoint> points;
  while (true) {
    DISTILL_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return points;
    v1::Progress proto;
    if (!proto.ParseFromString(query.TextAt(1))) continue;  // a damaged point leaves a gap in the curve
    points.push_back({static_cast<uint64_t>(query.IntAt(0)), FromProto(proto)});
  }
}

}  // namespace distill
