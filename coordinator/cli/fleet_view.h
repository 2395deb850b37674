// Workers and taps as tables for people. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_FLEET_VIEW_H_
#define DISTILL_COORDINATOR_CLI_FLEET_VIEW_H_

#include <string>

#include "coordinator/cli/text.h"
#include "distill/v1/job.pb.h"

namespace distill::cli {

// Workers, then models that teachers serve (one row a teacher and model), then archives that students can train.
std::string RenderFleet(const v1::GetFleetResponse& fleet, const TextOptions& options);
// The model's line, then one row a tap; ends of stages are marked, because that is where feature losses usually read.
std::string RenderTaps(const v1::ListTapsResponse& taps, const TextOptions& options);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_FLEET_VIEW_H_
