#include "coordinator/jobfile/problems.h"

#include <algorithm>
#include <tuple>

namespace distill {

void Problems::Add(const YamlMark& mark, std::string_view text) { problems_.push_back({mark, std::string(text)}); }

void Problems::AddOfFleet(const YamlMark& mark, std::string_view text) {
  problems_.push_back({mark, std::string(text), /*of_fleet=*/true});
}

void Problems::Warn(const YamlMark& mark, std::string_view text) { warnings_.push_back({mark, std::string(text)}); }

std::vector<JobProblem> Problems::Sorted() const {
  std::vector<JobProblem> sorted = problems_;
  const auto place = [](const JobProblem& p) {
    return std::make_tuple(p.mark.override_index, p.mark.line, p.mark.column);
  };
  std::stable_sort(sorted.begin(), sorted.end(),
                   [&](const JobProblem& a, const JobProblem& b) { return place(a) < place(b); });
  // What several stages take from one place is wrong once.
  std::vector<JobProblem> once;
  for (JobProblem& problem : sorted) {
    const bool told = std::any_of(once.begin(), once.end(), [&](const JobProblem& one) {
      return place(one) == place(problem) && one.text == problem.text;
    });
    if (!told) once.push_back(std::move(problem));
  }
  return once;
}

}  // namespace distill
