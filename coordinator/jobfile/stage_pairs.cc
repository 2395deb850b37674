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

// The student as a chain: blocks of stages, and the top-level modules around them.
struct Link {
  std::string path;
  std::string top;  // the top-level module that it is or belongs to
  bool owns_parameters = false;
};

std::vector<Link> Chain(const Architecture& student) {
  const std::vector<std::string> owners = student.ModulePaths();
  const auto owns = [&](const std::string& path) {
    return std::find(owners.begin(), owners.end(), path) != owners.end();
  };
  std::vector<Link> chain;
  for (const ModuleDef& top : student.root().children) {
    if (top.kind != ModuleKind::kSequential) chain.push_back({top.name, top.name, owns(top.name)});
    if (top.kind != ModuleKind::kSequential) continue;
    for (const ModuleDef& block : top.children) {
      const std::string path = StrCat(top.name, ".", block.name);
      chain.push_back({path, top.name, owns(path)});
    }
  }
  return chain;
}

// How many links have run when `tap` is there; 0 when the chain cannot be cut at it. A stage ends with its last block.
size_t LinksUpTo(const std::vector<Link>& chain, std::string_view tap) {
  size_t links = 0;
  for (size_t i = 0; i < chain.size(); ++i) {
    if (chain[i].path == tap || chain[i].top == tap) links = i + 1;
  }
  return links;
}

// The modules with parameters in links [first, end); a stage that lies there whole is one path.
std::vector<std::string> ModulesOf(const std::vector<Link>& chain, size_t first, size_t end) {
  std::vector<std::string> modules;
  for (size_t i = first; i < end; ++i) {
    const Link& link = chain[i];
    const bool begins = i == 0 || chain[i - 1].top != link.top;
    const size_t top_end = LinksUpTo(chain, link.top);
    if (begins && top_end <= end && link.path != link.top) {
      modules.push_back(link.top);
      i = top_end - 1;
    } else if (link.owns_parameters) {
      modules.push_back(link.path);
    }
  }
  return modules;
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
  const std::vector<Link> chain = Chain(student);
  std::vector<std::string> cuts = student.stages();  // for suggestions
  for (const Link& link : chain) cuts.push_back(link.path);
  StagePairs out;
  size_t student_links = 0;     // of the pair before
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
    const size_t links = LinksUpTo(chain, stage.student);
    if (student_tap == nullptr) {
      refuse(stage.student_mark, StrCat("the student has no tap '", Shorten(stage.student), "'",
                                        DidYouMean(stage.student, cuts), "; distillctl taps lists them"));
    } else if (links == 0 || student_tap->shape.size() != 3) {
      refuse(stage.student_mark,
             StrCat("the student cannot be cut at '", stage.student,
                    links == 0 ? "', which lies inside a block" : "', which is no map",
                    "; name the end of a stage, a block of a stage, or a module before the first stage"));
    } else if (links <= student_links) {
      refuse(stage.student_mark, links == student_links
                                     ? StrCat("the student's '", stage.student, "' ends where '", before->student,
                                              "' of the pair before it ends; each stage can be paired once")
                                     : StrCat("the student's '", stage.student, "' comes before '", before->student,
                                              "' of the pair before it; give the pairs in the order of execution"));
    } else {
      std::vector<std::string> modules = ModulesOf(chain, student_links, links);
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
    student_links = links;
    teacher_position = position;
    before = &stage;
  }
  out.head_modules = ModulesOf(chain, student_links, chain.size());
  return out;
}

}  // namespace distill
