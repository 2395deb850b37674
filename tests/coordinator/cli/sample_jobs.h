// Jobs for the tests of distillctl, with every field set to a value that is easy to recognise.
#ifndef DISTILL_TESTS_COORDINATOR_CLI_SAMPLE_JOBS_H_
#define DISTILL_TESTS_COORDINATOR_CLI_SAMPLE_JOBS_H_

#include <initializer_list>
#include <utility>

#include "distill/v1/job.pb.h"

namespace distill::cli {

inline constexpr double kSubmitted = 4'070'908'800;  // 2099-01-01 00:00:00 UTC: no test's clock is past it

// Replaces the metrics.
void SetScore(std::initializer_list<std::pair<const char*, double>> metrics, v1::Score* score);

// Three stages of 300, 1050 and 200 steps (mimic, whole, head), batch 100, one teacher.
v1::JobPlan SamplePlan();
// Id "j-1", name "fashion", queued at kSubmitted for want of students.
v1::Job QueuedJob();
// Started 10 s after kSubmitted; mimic is done; 420 steps of whole at 2100 images/s, reported at kSubmitted + 100.
v1::Job RunningJob();
// Succeeded after 190 s, with files.
v1::Job SucceededJob();

}  // namespace distill::cli

#endif  // DISTILL_TESTS_COORDINATOR_CLI_SAMPLE_JOBS_H_
