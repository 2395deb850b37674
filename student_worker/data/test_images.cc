#include "student_worker/data/test_images.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <utility>

#include "common/hash/sha256.h"
#include "common/str_cat.h"

namespace distill {

std::vector<bool> ChooseTestImages(const SplitPlan& plan, const std::vector<std::string>& names,
                                   const std::vector<int64_t>& labels) {
  std::vector<bool> chosen(names.size());
  std::map<int64_t, std::vector<std::pair<std::string, size_t>>> groups;  // hash and index
  for (size_t i = 0; i < names.size(); ++i) {
    Sha256 hash;
    hash.Update(StrCat(plan.seed, " ", names[i]));
    groups[plan.by == "class" ? labels[i] : 0].emplace_back(hash.HexDigest(), i);
  }
  for (auto& [label, group] : groups) {
    if (group.size() < 2) continue;
    const double share = std::nearbyint(plan.test * static_cast<double>(group.size()));
    const size_t count = std::clamp<size_t>(static_cast<size_t>(share), 1, group.size() - 1);
    std::partial_sort(group.begin(), group.begin() + static_cast<ptrdiff_t>(count), group.end());
    for (size_t i = 0; i < count; ++i) chosen[group[i].second] = true;
  }
  return chosen;
}

}  // namespace distill
