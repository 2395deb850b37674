#include "coordinator/core/rank_picker.h"

#include <algorithm>

#include "absl/strings/ascii.h"

namespace distill {
namespace {

// The number at text[*i...], leading zeros skipped; moves *i behind it.
std::string Digits(const std::string& text, size_t* i) {
  while (*i < text.size() && text[*i] == '0') ++*i;
  std::string digits;
  while (*i < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[*i]))) digits += text[(*i)++];
  return digits;
}

}  // namespace

bool NaturalLess(const std::string& a, const std::string& b) {
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    if (absl::ascii_isdigit(static_cast<unsigned char>(a[i])) &&
        absl::ascii_isdigit(static_cast<unsigned char>(b[j]))) {
      const std::string x = Digits(a, &i), y = Digits(b, &j);
      if (x.size() != y.size()) return x.size() < y.size();
      if (x != y) return x < y;
    } else {
      if (a[i] != b[j]) return a[i] < b[j];
      ++i, ++j;
    }
  }
  if (a.size() - i != b.size() - j) return a.size() - i < b.size() - j;
  return a < b;  // "s-01" and "s-1"
}

std::vector<RankMember> PickRanks(const std::vector<RankMember>& previous, const std::vector<const Worker*>& candidates,
                                  size_t count) {
  std::vector<const Worker*> free = candidates;
  std::sort(free.begin(), free.end(), [](const Worker* a, const Worker* b) { return NaturalLess(a->id, b->id); });
  std::vector<const Worker*> ranks(count, nullptr);
  for (size_t rank = 0; rank < std::min(count, previous.size()); ++rank) {
    const auto found =
        std::find_if(free.begin(), free.end(), [&](const Worker* w) { return w->id == previous[rank].worker_id; });
    if (found == free.end()) continue;
    ranks[rank] = *found;
    free.erase(found);
  }
  std::vector<RankMember> out;
  size_t next = 0;
  for (const Worker* worker : ranks) {
    if (worker == nullptr) worker = free[next++];
    out.push_back({worker->id, worker->incarnation});
  }
  return out;
}

}  // namespace distill
