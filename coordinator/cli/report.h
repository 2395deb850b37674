// A job as one HTML file that needs nothing else: no script, no other file. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_REPORT_H_
#define DISTILL_COORDINATOR_CLI_REPORT_H_

#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// What the coordinator knows about a job, fetched at `now` (seconds since 1970).
struct ReportInput {
  v1::Job job;
  v1::GetHistoryResponse history;
  std::vector<v1::JobEvent> events;  // oldest first
  v1::GetFleetResponse fleet;
  double now = 0;
  std::string plan_json;    // the expanded plan, for machines
  std::string cli_version;  // of the program that writes the report
};

// Results, timeline, plots, stages, files, environment, events and plan. Works for jobs in any state. Everything that
// came from outside is escaped.
std::string RenderReport(const ReportInput& input, absl::TimeZone zone = absl::LocalTimeZone());

// "JOB-report.html". kFailedPrecondition: the id cannot be a file name; the user must give one.
StatusOr<std::string> ReportFileName(const v1::Job& job);
// Writes the file whole or not at all; a device or a pipe is written to. kAlreadyExists: the file is there and `force`
// is false; kUnavailable: it cannot be written. Both name it.
Status WriteReport(const std::string& path, std::string_view html, bool force);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_REPORT_H_
