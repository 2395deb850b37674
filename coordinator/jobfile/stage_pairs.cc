#include "coordinator/jobfile/stage_pairs.h"

#include <algorithm>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/text_checks.h"

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
    // Of several stages of one size the last ones are paired, as many as both networks have.
    std::vector<const ServedTap*> partners;
    for (const ServedTap& end : teacher_ends) {
      if (SameSize(end.shape, shape)) partners.push_back(&end);
    }
    size_t later = 0;  // the student's stages after this one that have its size
    for (size_t i = k + 1; i < stages.size(); ++i) later += SameSize(shape, student.FindTap(stages[i])->shape) ? 1 : 0;
    if (later >= partners.size()) continue;
    out.pairs.push_back({stages[k], partners[partners.size() - 1 - later]->path, std::move(pending)});
    pending.clear();
  }
  if (out.pairs.empty()) {
    return absl::InvalidArgumentError(
        StrCat("no stage of the student has the output size of a teacher stage: the student's are ",
               ListSizes(TapsOf(student).StageEnds()), ", the teacher's ", ListSizes(teacher_ends),
               "; to compare maps of different sizes write stages with losses that resize (spatial_mismatch), with the "
               "preset sskd: sskd.stages and sskd.spatial_mismatch"));
  }
  out.head_modules = std::move(pending);
  for (std::string& module : student.HeadModules()) out.head_modules.push_back(std::move(module));
  return out;
}

std::optional<StagePairs> PairGivenStages(const Architecture& student, const ModelTaps& teacher,
                                          const std::vector<SskdStageDraft>& given, Problems* problems) {
  std::vector<std::string> cuts;  // for suggestions
  for (const TapInfo& tap : student.taps()) {
    if (student.CutIndex(tap.path) > 0) cuts.push_back(tap.path);
  }
  StagePairs out;
  size_t student_cut = 0;       // of the pair before
  size_t teacher_position = 0;  // likewise, counted from 1
  const SskdStageDraft* before = nullptr;
  bool ok = true;
  for (size_t k = 0; k < given.size(); ++k) {
    const SskdStageDraft& stage = given[k];
    const std::string where = StrCat("sskd.stages[", k, "]");
    const auto refuse = [&](const YamlMark& mark, std::string_view text) {
      problems->Add(mark, StrCat(where, ": ", text));
      ok = false;
    };
    const TapInfo* student_tap = stage.student.empty() ? nullptr : student.FindTap(stage.student);
    const size_t cut = student.CutIndex(stage.student);
    if (student_tap == nullptr) {
      refuse(stage.student_mark, StrCat("the student has no tap '", Shorten(stage.student), "'",
                                        DidYouMean(stage.student, cuts), "; distillctl taps lists them"));
    } else if (cut == 0 || student_tap->shape.size() != 3) {
      refuse(stage.student_mark,
             StrCat("the student cannot be cut at '", stage.student,
                    cut != 0               ? "', which is no map"
                    : student.is_archive() ? "', around which other values flow"
                                           : "', which lies inside a block",
                    student.is_archive()
                        ? "; name a tap through which everything passes, such as the end of a stage"
                        : "; name the end of a stage, a block of a stage, or a module before the first stage"));
    } else if (cut <= student_cut) {
      refuse(stage.student_mark, cut == student_cut
                                     ? StrCat("the student's '", stage.student, "' ends where '", before->student,
                                              "' of the pair before it ends; each stage can be paired once")
                                     : StrCat("the student's '", stage.student, "' comes before '", before->student,
                                              "' of the pair before it; give the pairs in the order of execution"));
    } else {
      std::vector<std::string> modules =
          student.ModulesBetween(before == nullptr ? std::string_view() : before->student, stage.student);
      if (modules.empty()) {
        refuse(stage.student_mark, StrCat("nothing is left to train: there are no parameters between the student's '",
                                          before == nullptr ? "input" : before->student, "' and '", stage.student,
                                          "'; leave one of the two out"));
      }
      out.pairs.push_back({stage.student, stage.teacher, std::move(modules)});
    }
    const auto teacher_tap = std::find_if(teacher.taps.begin(), teacher.taps.end(),
                                          [&](const ServedTap& tap) { return tap.path == stage.teacher; });
    const size_t position = static_cast<size_t>(teacher_tap - teacher.taps.begin()) + 1;
    if (teacher_tap == teacher.taps.end()) {
      refuse(stage.teacher_mark, StrCat("the teacher has no tap '", Shorten(stage.teacher), "'",
                                        DidYouMean(stage.teacher, teacher.Paths()), "; distillctl taps lists them"));
    } else if (position <= teacher_position) {
      refuse(stage.teacher_mark, position == teacher_position
                                     ? StrCat("the teacher's '", stage.teacher,
                                              "' is in the pair before it too; each stage can be paired once")
                                     : StrCat("the teacher's '", stage.teacher, "' comes before '", before->teacher,
                                              "' of the pair before it; give the pairs in the order of execution"));
    }
    if (!ok) return std::nullopt;  // what follows would be judged by a wrong predecessor
    student_cut = cut;
    teacher_position = position;
    before = &stage;
  }
  out.head_modules = student.ModulesBetween(before == nullptr ? std::string_view() : before->student, "");
  return out;
}

}  // namespace distill
