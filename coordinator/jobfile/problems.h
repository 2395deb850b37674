// What is wrong with a job file: all of it, not only the first thing. Thread-compatible.
#ifndef DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_
#define DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_

#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "coordinator/jobfile/yaml_tree.h"

namespace distill {

class Problems {
 public:
  explicit Problems(YamlSource source) : source_(std::move(source)) {}

  // The file itself is wrong at `mark`.
  void Add(const YamlMark& mark, std::string_view text);
  // The file may be right, but the fleet is not as it requires.
  void AddPrecondition(const YamlMark& mark, std::string_view text);
  // Allowed, but probably not meant.
  void Warn(const YamlMark& mark, std::string_view text);

  // True while nothing but warnings was added.
  bool empty() const { return problems_.empty() && preconditions_.empty(); }
  const YamlSource& source() const { return source_; }
  const std::vector<std::string>& warnings() const { return warnings_; }

  // Ok, or all problems in the order of the file, one line each (at most 100, then a count): kInvalidArgument when one
  // concerns the file, else kFailedPrecondition.
  Status ToStatus() const;

 private:
  struct Problem {
    YamlMark mark;
    std::string text;
  };
  const YamlSource source_;
  std::vector<Problem> problems_;
  std::vector<Problem> preconditions_;
  std::vector<std::string> warnings_;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_JOBFILE_PROBLEMS_H_
