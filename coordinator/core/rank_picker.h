// Who gets which rank: stable across re-formations, so that a rank's checkpoints stay where they are. Pure functions.
#ifndef DISTILL_COORDINATOR_CORE_RANK_PICKER_H_
#define DISTILL_COORDINATOR_CORE_RANK_PICKER_H_

#include <string>
#include <vector>

#include "coordinator/core/cluster_state.h"

namespace distill {

// "student-2" before "student-10": digits compare as numbers.
bool NaturalLess(const std::string& a, const std::string& b);

// `count` ranks out of `candidates`: first everybody who had a rank below `count` before keeps it, then the rest fills
// the gaps in natural order of their ids. REQUIRES: candidates.size() >= count, ids are distinct.
std::vector<RankMember> PickRanks(const std::vector<RankMember>& previous, const std::vector<const Worker*>& candidates,
                                  size_t count);

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_RANK_PICKER_H_
