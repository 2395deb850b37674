// What jobs achieved: a comparison of several jobs, and one job's curve. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_RESULTS_VIEW_H_
#define DISTILL_COORDINATOR_CLI_RESULTS_VIEW_H_

#include <string>
#include <vector>

#include "coordinator/cli/text.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// A row of the comparison, as text.
struct ResultRow {
  std::string model, network, state, score, parameters, size, wall_time;
  const v1::Job* job = nullptr;  // of the jobs asked for; null for a teacher's row
};
// The rows of RenderResults().
std::vector<ResultRow> ResultRows(const std::vector<v1::Job>& jobs);

// One row for each teacher (once per model and digest) and one for each job's student: headline metric, parameters,
// size of the weights file, wall time; below it the students' files.
std::string RenderResults(const std::vector<v1::Job>& jobs, const TextOptions& options);
// {"results": [{"job": ..., "name": ..., "state": ..., "student_score": {"top1": number, ...} or null, ...}]}: one
// entry a job, in the order asked for; null for what was not measured. Keys are listed in docs/cli.md.
std::string ResultsJson(const std::vector<v1::Job>& jobs);

// The newest `limit` points of a curve (0: all) as a table.
std::string RenderHistory(const v1::Job& job, const v1::GetHistoryResponse& history, size_t limit,
                          const TextOptions& options);
// All columns, RFC 4180 quoting, first line titles; loss terms as "term_NAME", step times as "seconds_NAME", empty
// where absent.
std::string HistoryCsv(const v1::Job& job, const v1::GetHistoryResponse& history, size_t limit);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_RESULTS_VIEW_H_
