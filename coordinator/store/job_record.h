// Jobs as the coordinator knows them: the plain types of the store. Values; the wire forms are in
// proto/distill/v1/job.proto.
#ifndef DISTILL_COORDINATOR_STORE_JOB_RECORD_H_
#define DISTILL_COORDINATOR_STORE_JOB_RECORD_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "common/plan/plan.h"

namespace distill {

// Values equal those of v1.JobState. queued -> running -> succeeded | failed | cancelled; running -> queued when
// members are lost; failed | cancelled -> queued when a user resumes the job.
enum class JobState { kQueued = 1, kRunning = 2, kSucceeded = 3, kFailed = 4, kCancelled = 5 };
std::string_view Name(JobState state);  // "queued", ...
inline bool IsEnded(JobState state) { return state != JobState::kQueued && state != JobState::kRunning; }

// What a job that has not ended waits for; values equal those of v1.JobWait.
enum class JobWait { kNothing = 0, kStudents = 1, kTeacher = 2, kLine = 3, kProgress = 4 };

// Who holds a rank.
struct RankMember {
  std::string worker_id;
  std::string incarnation;  // of the process that was assigned; another one has lost the rank's memory
  bool operator==(const RankMember&) const = default;
};

// A worker that failed the job by its own fault and is not given it again, until another process takes its id.
struct SetAside {
  std::string worker_id;
  std::string incarnation;
  std::string reason;  // what it said
  bool operator==(const SetAside&) const = default;
};

// What changes while a job lives.
struct JobStatus {
  JobState state = JobState::kQueued;
  std::string reason;  // in words
  JobWait wait = JobWait::kNothing;
  uint64_t generation = 0;        // bumped at each change of membership
  uint32_t restarts = 0;          // times the job lost its members' group
  uint32_t fruitless = 0;         // of these, how many in a row without any progress; 0 after some
  uint64_t best_step = 0;         // furthest the job was when it lost a group: steps over all stages,
  uint32_t best_stage = 0;        // and committed stages
  std::vector<RankMember> ranks;  // by rank; while queued: the last ones, so that they can get their ranks back
  std::vector<SetAside> set_aside;
  bool cancel_requested = false;
  std::string cancel_reason;
  double started_time = 0;   // seconds since 1970; 0: not yet
  double finished_time = 0;  // likewise
  bool operator==(const JobStatus&) const = default;
};

// A committed stage.
struct StageRecord {
  JobStageResult result;
  double committed_time = 0;  // seconds since 1970
};

struct JobRecord {
  std::string id;
  std::string name;
  double submitted_time = 0;  // seconds since 1970
  JobPlan plan;
  // As submitted. The yaml only on its way into the store (JobStore::Insert), from which JobStore::Yaml() gives it.
  std::string yaml;
  std::string file_name;  // as the user knows it
  std::vector<std::string> overrides;
  JobStatus status;
  bool has_progress = false;
  JobProgress progress;  // newest
  std::vector<StageRecord> stages;
  bool has_artifacts = false;
  JobArtifacts artifacts;
  std::string damage;  // what of the row could not be read, in words; "" when all is well
};

// A point of a job's curve.
struct CurvePoint {
  uint64_t number = 0;  // of the report, from 0; ascending, with gaps where points were thinned out
  JobProgress progress;
};

// Source of the coordinator's own events; no worker may have this id.
inline constexpr std::string_view kOwnSource = "coordinator";

struct EventRecord {
  uint64_t sequence = 0;  // ascending inside the job, from 1; given by the store
  double time = 0;        // seconds since 1970
  EventLevel level = EventLevel::kInfo;
  EventType type = EventType::kGeneral;
  uint64_t generation = 0;  // of kGroupFormed and kGroupLost
  std::string source;       // kOwnSource or a worker id
  std::string text;
  std::string job_id;  // only in events on their way from a worker to the store
  // Workers number their events; an event of the same (source, incarnation, number) is stored once. 0: not numbered.
  std::string source_incarnation;
  uint64_t source_sequence = 0;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_STORE_JOB_RECORD_H_
