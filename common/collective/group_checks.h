// What every CollectiveGroup checks and says alike. Private to common/collective.
#ifndef DISTILL_COMMON_COLLECTIVE_GROUP_CHECKS_H_
#define DISTILL_COMMON_COLLECTIVE_GROUP_CHECKS_H_

#include <string_view>
#include <vector>

#include "common/collective/collective_group.h"

namespace distill {

// kInvalidArgument unless all tensors are on `device`; `what` names the operation.
Status CheckTensors(const std::vector<torch::Tensor>& tensors, c10::DeviceType device, std::string_view what);
// kInvalidArgument unless a reducer can be made of them.
Status CheckParameters(const std::vector<torch::Tensor>& parameters, c10::DeviceType device);
// What a group says that was aborted or has failed: kAborted.
Status Lost(const CollectiveGroup::Options& options);

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_GROUP_CHECKS_H_
