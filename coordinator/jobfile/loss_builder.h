// One drafted loss against the networks it connects. Private to the stage builder.
#ifndef DISTILL_COORDINATOR_JOBFILE_LOSS_BUILDER_H_
#define DISTILL_COORDINATOR_JOBFILE_LOSS_BUILDER_H_

#include <optional>
#include <string>

#include "coordinator/jobfile/stage_builder.h"

namespace distill {

// The plan's loss, name left as drafted. Nothing when a problem was added (now or when the draft was read).
// `where` names the stage in messages.
std::optional<LossPlan> BuildLoss(const LossDraft& draft, const std::string& where, const StageContext& context,
                                  Problems* problems);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_LOSS_BUILDER_H_
