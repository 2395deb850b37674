// What is wrong with a job file: all of it, not only the first thing. Thread-compatible.
#ifndef DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_
#define DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

// One mistake, or one warning, and its place. Travels to the user as it is (JobFileProblem in job.proto).
struct JobProblem {
  YamlMark mark;
  std::string text;       // one line
  bool of_fleet = false;  // the file may be right, but the fleet is not as it requires: later it may be accepted
};

class Problems {
 public:
  explicit Problems(YamlSource source) : source_(std::move(source)) {}

  // The file itself is wrong at `mark`.
  void Add(const YamlMark& mark, std::string_view text);
  // The file may be right, but the fleet is not as it requires.
  void AddOfFleet(const YamlMark& mark, std::string_view text);
  // Allowed, but probably not meant.
  void Warn(const YamlMark& mark, std::string_view text);

  // True while nothing but warnings was added.
  bool empty() const { return problems_.empty(); }
  const YamlSource& source() const { return source_; }
  // In the order of the file, then of the overrides; those of one place in the order they were added, equal
  // ones once.
  std::vector<JobProblem> Sorted() const;
  const std::vector<JobProblem>& warnings() const { return warnings_; }

 private:
  const YamlSource source_;
  std::vector<JobProblem> problems_;
  std::vector<JobProblem> warnings_;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_
