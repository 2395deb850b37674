// What the report's plots show, taken from a job's history and events. Pure functions; the status page draws the same
// (coordinator/web/assets/job.js).
#ifndef DISTILL_COORDINATOR_CLI_REPORT_CURVES_H_
#define DISTILL_COORDINATOR_CLI_REPORT_CURVES_H_

#include <optional>
#include <string>
#include <vector>

#include "coordinator/cli/report_plot.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// A group of ranks that worked on the job.
struct RankGroup {
  uint64_t generation = 0;
  double formed = 0;           // seconds since 1970
  std::optional<double> lost;  // when it was lost, if it was
};
// From events, oldest first.
std::vector<RankGroup> GroupsOf(const std::vector<v1::JobEvent>& events);

// The weighted sum and each term, by step; after a restart the newest report of a step counts. Lines break between
// stages.
std::vector<PlotSeries> LossSeries(const v1::GetHistoryResponse& history);
// Metrics on the test set in percent: the student's evaluations, and the teacher as a level.
std::vector<PlotSeries> ScoreSeries(const v1::Job& job, const v1::GetHistoryResponse& history);
// Milliseconds of each part of a step, in the order of the step.
std::vector<PlotSeries> StepPartSeries(const v1::GetHistoryResponse& history);
// Images per second over all ranks.
std::vector<PlotSeries> SpeedSeries(const v1::GetHistoryResponse& history);

// First step of each stage.
std::vector<PlotMark> StageMarks(const v1::JobPlan& plan);
// Where groups after the first took the job up again.
std::vector<PlotMark> RestartMarks(const v1::GetHistoryResponse& history, const std::vector<RankGroup>& groups);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_REPORT_CURVES_H_
