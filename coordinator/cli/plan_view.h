// The expanded plan of a job as tables for people. Pure functions.
#ifndef DISTILL_COORDINATOR_CLI_PLAN_VIEW_H_
#define DISTILL_COORDINATOR_CLI_PLAN_VIEW_H_

#include <string>

#include "coordinator/cli/text.h"
#include "distill/v1/plan.pb.h"

namespace distill::cli {

// "cifar_resnet8, width 16, 10 classes, input 1x28x28".
std::string ModelText(const v1::ModelSpec& spec);
// Head lines (student, teachers, data, training), then one row a stage and one more for each further loss of the stage.
std::string RenderPlan(const v1::JobPlan& plan, const TextOptions& options);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_PLAN_VIEW_H_
