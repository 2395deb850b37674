// Jobs as text for people: the list, one job in full, its event log. Pure functions; times are seconds since 1970.
#ifndef DISTILL_COORDINATOR_CLI_JOB_VIEW_H_
#define DISTILL_COORDINATOR_CLI_JOB_VIEW_H_

#include <string>

#include "absl/time/time.h"
#include "coordinator/cli/text.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

std::string RenderJobList(const v1::ListJobsResponse& jobs, double now, const TextOptions& options,
                          absl::TimeZone zone = absl::LocalTimeZone());
// State and reason, times, members, progress, stages with results, files, then the plan.
std::string RenderJob(const v1::Job& job, double now, const TextOptions& options,
                      absl::TimeZone zone = absl::LocalTimeZone());
// "2026-11-20 12:00:00  WARNING  student-0    text", with a newline. One line whatever the text holds.
std::string RenderEvent(const v1::JobEvent& event, const TextOptions& options,
                        absl::TimeZone zone = absl::LocalTimeZone());

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_JOB_VIEW_H_
