#include "coordinator/jobfile/stage_pairs.h"

#include "common/str_cat.h"

namespace distill {
namespace {

bool SameSize(const TapShape& a, const TapShape& b) {
  return a.size() == 3 && b.size() == 3 && a[1] == b[1] && a[2] == b[2];
}

std::string ListSizes(const std::vector<ServedTap>& ends) {
  std::string out;
  for (const ServedTap& end : ends) {
    StrAppend(&out, out.empty() ? "" : ", ", end.path, " ", end.shape[1], "x", end.shape[2]);
  }
  return out.empty() ? "none" : out;
}

}  // namespace

StatusOr<StagePairs> PairStages(const Architecture& student, const ModelTaps& teacher) {
  const std::vector<ServedTap> teacher_ends = teacher.StageEnds();
  StagePairs out;
  std::vector<std::string> pending;  // modules of student stages that wait for the next pair
  const std::vector<std::string>& stages = student.stages();
  for (size_t k = 0; k < stages.size(); ++k) {
    for (std::string& module : student.StageModules(k)) pending.push_back(std::move(module));
    const TapShape& shape = student.FindTap(stages[k])->shape;
    // Two student stages of one size: the later one is where the resolution changes.
    if (k + 1 < stages.size() && SameSize(shape, student.FindTap(stages[k + 1])->shape)) continue;
    const ServedTap* partner = nullptr;
    for (const ServedTap& end : teacher_ends) {
      if (SameSize(end.shape, shape)) partner = &end;
    }
    if (partner == nullptr) continue;
    out.pairs.push_back({stages[k], partner->path, std::move(pending)});
    pending.clear();
  }
  if (out.pairs.empty()) {
    return absl::InvalidArgumentError(
        StrCat("no stage of the student has the output size of a teacher stage: the student's are ",
               ListSizes(TapsOf(student).StageEnds()), ", the teacher's ", ListSizes(teacher_ends)));
  }
  out.head_modules = std::move(pending);
  for (std::string& module : student.HeadModules()) out.head_modules.push_back(std::move(module));
  return out;
}

}  // namespace distill
