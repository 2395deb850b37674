// Where a job stands, derived from what the coordinator tells: current stage, steps, time that is probably left.
//
// Pure functions; time is an argument (seconds since 1970). They take any Job, also one whose numbers make no sense.
#ifndef DISTILL_COORDINATOR_CLI_JOB_PROGRESS_H_
#define DISTILL_COORDINATOR_CLI_JOB_PROGRESS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "coordinator/cli/text.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// SUCCEEDED, FAILED or CANCELLED.
bool IsEnded(v1::JobState state);
// "queued", "running", ...; "unknown" for states of a newer coordinator.
std::string StateName(v1::JobState state);
// The state of that name; JOB_STATE_UNSPECIFIED for others.
v1::JobState StateOf(std::string_view name);
Style StateStyle(v1::JobState state);

// True when rank 0 has reported at least once.
bool HasProgress(const v1::Job& job);
// True when the job has left files.
bool HasArtifacts(const v1::Job& job);
// The committed result of a stage, null when it is not committed.
const v1::StageResult* ResultOf(const v1::Job& job, int stage);

struct JobPosition {
  int stage = 0;             // first stage that is not done; equal to the number of stages when all are
  uint64_t step = 0;         // steps done in it, at most stage_steps
  uint64_t stage_steps = 0;  // 0 when all stages are done
  uint64_t done_steps = 0;   // over all stages
  uint64_t total_steps = 0;
};
JobPosition PositionOf(const v1::Job& job);

// What was measured on the test set of the student and of the teacher, the newest; without metrics where nothing was.
const v1::Score& StudentScore(const v1::Job& job);
const v1::Score& TeacherScore(const v1::Job& job);
// "top-1 88.47 %, top-5 99.10 %", "mIoU 61.03 %, pixel accuracy 91.20 %", or "-".
std::string FormatScore(const v1::Score& score);
// The first metric alone.
std::string FormatHeadline(const v1::Score& score);

// Seconds since the job started (since it was submitted while it has not), up to its end or `now`; never negative.
double ElapsedSeconds(const v1::Job& job, double now);

// Whether the newest report says nothing about now: the job waits for a teacher, or rank 0 has been silent for longer
// than three of its reports should take, and than 20 s. A stalled job has no speed and no time left.
bool IsStalled(const v1::Job& job, double now);

// Seconds left, estimated from the newest images/s and counted down since that report. Set only while the job runs, has
// reported a rate and is not stalled. Evaluations and checkpoints are not foreseen; later stages are taken to be as
// fast as the current one.
struct Eta {
  std::optional<double> stage_seconds;
  std::optional<double> job_seconds;
};
Eta EstimateEta(const v1::Job& job, double now);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_JOB_PROGRESS_H_
