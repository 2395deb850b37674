#include "coordinator/jobfile/problems.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_join.h"
#include "common/str_cat.h"

namespace distill {

void Problems::Add(const YamlMark& mark, std::string_view text) { problems_.push_back({mark, std::string(text)}); }

void Problems::AddPrecondition(const YamlMark& mark, std::string_view text) {
  preconditions_.push_back({mark, std::string(text)});
}

void Problems::Warn(const YamlMark& mark, std::string_view text) {
  warnings_.push_back(StrCat(source_.Describe(mark), ": ", text));
}

Status Problems::ToStatus() const {
  if (empty()) return OkStatus();
  std::vector<Problem> all = problems_;
  all.insert(all.end(), preconditions_.begin(), preconditions_.end());
  const auto place = [](const Problem& p) {
    return std::make_tuple(p.mark.override_index, p.mark.line, p.mark.column);
  };
  std::stable_sort(all.begin(), all.end(), [&](const Problem& a, const Problem& b) { return place(a) < place(b); });
  constexpr size_t kMost = 100;
  std::vector<std::string> lines;
  for (const Problem& problem : all) {
    if (lines.size() == kMost) {
      lines.push_back(StrCat("... and ", all.size() - kMost, " more"));
      break;
    }
    lines.push_back(StrCat(source_.Describe(problem.mark), ": ", problem.text));
  }
  const std::string text = absl::StrJoin(lines, "\n");
  return problems_.empty() ? absl::FailedPreconditionError(text) : absl::InvalidArgumentError(text);
}

}  // namespace distill
