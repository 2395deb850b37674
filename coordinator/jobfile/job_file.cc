#include "coordinator/jobfile/job_file.h"

#include <algorithm>
#include <optional>
#include <set>

#include "common/nearest_name.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/draft_reader.h"
#include "coordinator/jobfile/presets.h"
#include "coordinator/jobfile/stage_builder.h"
#include "coordinator/jobfile/text_checks.h"
#include "coordinator/jobfile/yaml_override.h"

namespace distill {
namespace {

constexpr size_t kMaxOverrides = 100;
constexpr size_t kMaxOverrideBytes = 4096;

StatusOr<YamlNodePtr> ParseWithOverrides(const JobFileInput& input, const YamlSource& source) {
  if (source.overrides.size() > kMaxOverrides) {
    return absl::InvalidArgumentError(
        StrCat(source.overrides.size(), " overrides were given; at most ", kMaxOverrides, " are read"));
  }
  DISTILL_ASSIGN_OR_RETURN(YamlNodePtr root, ParseYaml(input.yaml, source));
  if (root->kind == YamlNode::Kind::kNull && source.overrides.empty()) {
    return absl::InvalidArgumentError(StrCat(source.Describe({1, 1}), ": the job file is empty"));
  }
  for (size_t i = 0; i < source.overrides.size(); ++i) {
    if (source.overrides[i].size() > kMaxOverrideBytes) {
      return absl::InvalidArgumentError(
          StrCat(source.Describe({1, 1, static_cast<int>(i)}), ": longer than ", kMaxOverrideBytes, " bytes"));
    }
    DISTILL_ASSIGN_OR_RETURN(root, ApplyOverride(root, source, static_cast<int>(i)));
  }
  return root;
}

// The served model the job names, or null with a problem.
const ServedModelInfo* FindTeacher(const JobDraft& job, const FleetView& fleet, Problems* problems) {
  const ServedModelInfo* found = nullptr;
  std::set<std::string> names, digests;
  for (const ServedModelInfo& model : fleet.models) {
    names.insert(model.name);
    if (model.name != job.teacher) continue;
    digests.insert(model.digest);
    if (found == nullptr) found = &model;
  }
  if (found == nullptr) {
    std::string served;
    for (const std::string& name : names) StrAppend(&served, served.empty() ? "" : ", ", name);
    const std::vector<std::string> candidates(names.begin(), names.end());
    problems->AddPrecondition(job.teacher_mark, StrCat("teacher: no live teacher serves '", job.teacher, "'",
                                                       DidYouMean(job.teacher, candidates),
                                                       " (served now: ", served.empty() ? "nothing" : served,
                                                       "); start one: distill-teacher --model ", job.teacher, "=FILE"));
    return nullptr;
  }
  if (digests.size() > 1) {
    std::string list;
    for (const std::string& digest : digests) StrAppend(&list, list.empty() ? "" : ", ", digest.substr(0, 12));
    problems->AddPrecondition(job.teacher_mark,
                              StrCat("teacher: live teachers serve different weights under the name '", job.teacher,
                                     "' (digests ", list, "); stop those with the wrong file"));
    return nullptr;
  }
  return found;
}

void CheckTeacherInput(const JobDraft& job, const ModelSpec& teacher, Problems* problems) {
  const ModelSpec& student = job.plan.student;
  if (teacher.in_channels != 0 && teacher.in_channels != student.in_channels) {
    problems->Add(job.teacher_mark,
                  StrCat("teacher: '", job.teacher, "' takes images of ", teacher.in_channels,
                         " channels, the student of ", student.in_channels, "; both see the same pixels"));
  }
  if (teacher.image_height != 0 &&
      (teacher.image_height != student.image_height || teacher.image_width != student.image_width)) {
    problems->Add(job.teacher_mark, StrCat("teacher: '", job.teacher, "' takes images of ", teacher.image_height, "x",
                                           teacher.image_width, ", the student of ", student.image_height, "x",
                                           student.image_width, "; both see the same pixels"));
  }
}

// Writes job->stages from the preset. Nothing when it cannot be expanded (a problem was added, or the teacher is
// unknown).
void ExpandDraftPreset(const StageContext& context, Problems* problems, JobDraft* job) {
  if (PresetNeedsTeacher(job->preset) && !context.has_teacher) {
    problems->Add(job->preset_mark, StrCat("preset: '", job->preset, "' needs a teacher; name one: teacher: MODEL"));
    return;
  }
  StagePairs pairs;
  if (PresetNeedsPairs(job->preset)) {
    if (context.teacher == nullptr) return;
    StatusOr<StagePairs> paired = PairStages(*context.student, *context.teacher);
    if (!paired.ok()) {
      problems->Add(job->preset_mark, StrCat("preset: ", paired.status().message()));
      return;
    }
    pairs = *std::move(paired);
  }
  if (const std::vector<double>& shares = job->sskd.phase_shares; !shares.empty()) {
    const bool all_zero = std::all_of(shares.begin(), shares.end(), [](double share) { return share == 0; });
    if (shares.size() != pairs.pairs.size() + 1 || all_zero) {
      problems->Add(job->sskd.phase_shares_mark,
                    StrCat("sskd.phase_shares: has ", shares.size(), " values, needs ", pairs.pairs.size() + 1,
                           ": one for each of the ", pairs.pairs.size(),
                           " backbone phases and one for the head, not all "
                           "of them 0"));
      return;
    }
  }
  const std::optional<uint64_t> total = StepsOf(job->budget, *job, problems);
  std::optional<uint64_t> finetune = 0;
  if (job->sskd.finetune.given()) finetune = StepsOf(job->sskd.finetune, *job, problems);
  if (total && finetune) job->stages = ExpandPreset(*job, pairs, *total, *finetune);
}

// Expands student.weights_modules.
void ExpandWeightsModules(const Architecture& student, Problems* problems, JobDraft* job) {
  if (job->weights_globs.empty()) return;
  StatusOr<std::vector<std::string>> modules = ExpandModuleGlobs(student, job->weights_globs);
  if (!modules.ok()) {
    problems->Add(job->weights_mark, StrCat("student.weights_modules: ", modules.status().message()));
    return;
  }
  job->plan.student.weights_modules = *std::move(modules);
}

}  // namespace

StatusOr<ExpandedJob> ExpandJobFile(const JobFileInput& input, const FleetView& fleet) {
  YamlSource source;
  if (!input.file_name.empty()) source.file_name = Shorten(input.file_name);
  source.overrides = input.overrides;
  DISTILL_ASSIGN_OR_RETURN(const YamlNodePtr root, ParseWithOverrides(input, source));

  Problems problems(source);
  JobDraft job = ReadDraft(root, &problems);
  ModelSpec network = job.plan.student;
  network.mean.clear();  // checked by the reader, where the place in the file is known
  network.std.clear();
  const bool student_read =
      !network.arch.empty() && network.num_classes != 0 && network.in_channels != 0 && network.image_height != 0;
  const StatusOr<Architecture> student = Architecture::Create(network);
  if (student_read && !student.ok()) problems.Add(job.student_mark, StrCat("student: ", student.status().message()));
  const ServedModelInfo* teacher = job.teacher.empty() ? nullptr : FindTeacher(job, fleet, &problems);
  std::optional<ModelTaps> teacher_taps;
  if (teacher != nullptr) {
    if (student.ok()) CheckTeacherInput(job, teacher->spec, &problems);
    StatusOr<ModelTaps> taps = TapsOf(*teacher);
    if (taps.ok()) {
      teacher_taps = *std::move(taps);
    } else {
      problems.AddPrecondition(
          job.teacher_mark, StrCat("teacher: '", job.teacher, "' describes itself wrongly: ", taps.status().message()));
    }
  }
  // Stages are checked against the student's network; without one, what was found so far has to do.
  if (student.ok()) {
    const StageContext context{&*student, teacher_taps ? &*teacher_taps : nullptr, !job.teacher.empty()};
    if (!job.preset.empty() && job.stages.empty() && job.budget.given()) ExpandDraftPreset(context, &problems, &job);
    job.plan.stages = BuildStages(job, context, &problems);
    ExpandWeightsModules(*student, &problems, &job);
    job.plan.student.width = student->spec().width;
  }
  if (teacher != nullptr) {
    const bool used = std::any_of(job.plan.stages.begin(), job.plan.stages.end(),
                                  [](const StagePlan& stage) { return stage.needs_teacher; });
    if (used) {
      job.plan.teachers.push_back({teacher->name, teacher->digest, teacher->spec, teacher->parameters, teacher->bytes});
    } else {
      problems.Warn(job.teacher_mark,
                    StrCat("teacher: no stage reads '", job.teacher, "', so the job runs without it"));
    }
  }
  job.plan.evaluate_teacher = job.evaluate_teacher && !job.plan.teachers.empty();
  DISTILL_RETURN_IF_ERROR(problems.ToStatus());
  return ExpandedJob{std::move(job.plan), problems.warnings()};
}

}  // namespace distill
