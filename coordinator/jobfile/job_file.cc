#include "coordinator/jobfile/job_file.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/plan/transform_schema.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/zoo/archive_ref.h"
#include "coordinator/jobfile/draft_reader.h"
#include "coordinator/jobfile/pairs_reader.h"
#include "coordinator/jobfile/presets.h"
#include "coordinator/jobfile/size_checks.h"
#include "coordinator/jobfile/stage_builder.h"
#include "coordinator/jobfile/text_checks.h"
#include "coordinator/jobfile/yaml_override.h"

namespace distill {
namespace {

constexpr size_t kMaxOverrides = 100;
constexpr size_t kMaxOverrideBytes = 4096;

YamlSource SourceOf(const JobFileInput& input) {
  YamlSource source;
  if (!input.file_name.empty()) source.file_name = Shorten(input.file_name);
  source.overrides = input.overrides;
  return source;
}

// Null with a problem when the text or an override cannot be read.
YamlNodePtr ParseWithOverrides(const JobFileInput& input, Problems* problems) {
  if (input.overrides.size() > kMaxOverrides) {
    problems->Add({1, 1, kMaxOverrides},
                  StrCat(input.overrides.size(), " overrides were given; at most ", kMaxOverrides, " are read"));
    return nullptr;
  }
  YamlNodePtr root = ParseYaml(input.yaml, problems);
  if (root != nullptr && root->kind == YamlNode::Kind::kNull && input.overrides.empty()) {
    problems->Add({1, 1}, "the job file is empty");
    return nullptr;
  }
  for (size_t i = 0; root != nullptr && i < input.overrides.size(); ++i) {
    const int index = static_cast<int>(i);
    if (input.overrides[i].size() > kMaxOverrideBytes) {
      problems->Add({1, 1, index}, StrCat("longer than ", kMaxOverrideBytes, " bytes"));
      return nullptr;
    }
    root = ApplyOverride(root, index, problems);
  }
  return root;
}

// Whether a stage compares with the teacher or runs on its maps; as far as the file says so, whether the fleet has the
// teacher or not.
bool ReadsTeacher(const JobDraft& job) {
  if (!job.preset.empty()) return PresetNeedsTeacher(job.preset);
  for (const StageDraft& stage : job.stages) {
    if (!stage.teacher_input.empty()) return true;
    for (const LossDraft& loss : stage.losses) {
      const LossSchema* schema = FindLossSchema(loss.type);
      if (schema != nullptr && ReadsTeacher(schema->input) && loss.weight != 0) return true;
    }
  }
  return false;
}

// What the fleet has under one name.
struct Named {
  const ServedModelInfo* first = nullptr;
  std::vector<std::string> names;  // all there are
  std::string list;                // those, or "nothing"
  std::string digests;             // of those of this name, when they differ
};

Named Find(const std::vector<ServedModelInfo>& models, const std::string& name) {
  Named found;
  std::set<std::string> names, digests;
  for (const ServedModelInfo& model : models) {
    names.insert(model.name);
    if (model.name != name) continue;
    digests.insert(model.digest);
    if (found.first == nullptr) found.first = &model;
  }
  found.names.assign(names.begin(), names.end());
  found.list = names.empty() ? "nothing" : absl::StrJoin(names, ", ");
  for (const std::string& digest : digests) {
    if (digests.size() > 1) StrAppend(&found.digests, found.digests.empty() ? "" : ", ", digest.substr(0, 12));
  }
  return found;
}

// The served model the job names, or null with a problem.
const ServedModelInfo* FindTeacher(const JobDraft& job, const FleetView& fleet, Problems* problems) {
  const Named found = Find(fleet.models, job.teacher);
  if (found.first == nullptr) {
    problems->AddOfFleet(job.teacher_mark, StrCat("teacher: no live teacher serves '", job.teacher, "'",
                                                  DidYouMean(job.teacher, found.names), " (served now: ", found.list,
                                                  "); start one: distill-teacher --model ", job.teacher, "=FILE"));
    return nullptr;
  }
  if (!found.digests.empty()) {
    problems->AddOfFleet(job.teacher_mark,
                         StrCat("teacher: live teachers serve different weights under the name '", job.teacher,
                                "' (digests ", found.digests, "); stop those with the wrong file"));
    return nullptr;
  }
  return found.first;
}

// The network that the job trains: of the zoo, or an archive that live students hold. An error has a problem where one
// could be named.
StatusOr<Architecture> FindStudent(const JobDraft& job, const FleetView& fleet, Problems* problems) {
  const std::string& name = job.archive;
  if (!name.empty()) {
    const Named found = Find(fleet.archives, name);
    const auto refuse = [&](const std::string& text) {
      problems->AddOfFleet(job.archive_mark, StrCat("student.archive: ", text));
      return absl::InvalidArgumentError(text);
    };
    if (found.first == nullptr) {
      return refuse(StrCat("no live student has the archive '", name, "'", DidYouMean(name, found.names),
                           " (there now: ", found.list, "); put ", name, ".pt and ", name,
                           ".pt.yaml into its folder: distill-student --models FOLDER"));
    }
    if (!found.digests.empty()) {
      return refuse(StrCat("live students hold different archives under the name '", name, "' (digests ", found.digests,
                           "); give them the same file and start them again"));
    }
    StatusOr<Architecture> student = ArchitectureOf(*found.first);
    if (!student.ok()) return refuse(StrCat("'", name, "' describes itself wrongly: ", student.status().message()));
    return student;
  }
  ModelSpec network = job.plan.student;
  network.mean.clear();  // checked by the reader, where the place in the file is known
  network.std.clear();
  const bool student_read =
      !network.arch.empty() && network.num_classes != 0 && network.in_channels != 0 && network.image_height != 0;
  StatusOr<Architecture> student = Architecture::Create(network);
  if (student_read && !student.ok()) problems->Add(job.student_mark, StrCat("student: ", student.status().message()));
  return student;
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
    problems->Add(job.teacher_mark,
                  StrCat("teacher: '", job.teacher, "' takes images [", teacher.image_height, ", ", teacher.image_width,
                         "] (height, width), the student [", student.image_height, ", ", student.image_width,
                         "]; both see the same pixels"));
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
    if (job->sskd.stages_given) {
      if (job->sskd.stages.empty()) return;  // reported by the reader
      std::optional<StagePairs> named = PairGivenStages(*context.student, *context.teacher, job->sskd.stages, problems);
      if (!named) return;
      pairs = *std::move(named);
    } else {
      StatusOr<StagePairs> paired = PairStages(*context.student, *context.teacher);
      if (!paired.ok()) {
        problems->Add(job->preset_mark, StrCat("preset: ", paired.status().message()));
        return;
      }
      pairs = *std::move(paired);
    }
  }
  if (job->preset == "sskd") {
    const std::vector<double> shares = SskdShares(*job, pairs);
    const bool all_zero = std::all_of(shares.begin(), shares.end(), [](double share) { return share == 0; });
    if (shares.size() != pairs.pairs.size() + 1) {
      problems->Add(job->sskd.phase_shares_mark,
                    StrCat("sskd.phase_shares: has ", shares.size(), " values, needs ", pairs.pairs.size() + 1,
                           ": one for each of the ", pairs.pairs.size(), " backbone phases and one for the head"));
      return;
    }
    if (all_zero) {
      problems->Add(job->preset_mark, "sskd: the phases' shares of the budget are all 0; give one of them a share");
      return;
    }
  }
  // The backbone phases of sskd may draw from more images than have labels; their epochs are longer then. Without any
  // label the head's length has no meaning, and its stage is refused by name.
  const bool more_images = job->sskd.unlabelled_ok && !job->plan.data.unlabelled.empty();
  const EpochImages backbone_images = more_images ? EpochImages::kAll : EpochImages::kLabelled;
  const std::optional<uint64_t> backbone = StepsOf(job->budget, *job, backbone_images, problems);
  if (!backbone) return;
  const bool no_labels = more_images && job->plan.data.train_size == 0;
  const std::optional<uint64_t> total =
      no_labels ? backbone : StepsOf(job->budget, *job, EpochImages::kLabelled, problems);
  std::optional<uint64_t> finetune = 0;
  if (job->sskd.finetune.given()) {
    finetune = StepsOf(job->sskd.finetune, *job, no_labels ? EpochImages::kAll : EpochImages::kLabelled, problems);
  }
  if (total && finetune) job->stages = ExpandPreset(*job, pairs, {*total, *backbone, *finetune});
}

// sskd.head.init: teacher. The head is part of the file that the job's teachers serve, if it fits.
void TakeTeachersHead(const Architecture& student, const ModelSpec& teacher, Problems* problems, JobDraft* job) {
  const std::string where = "sskd.head.init: 'teacher': ";
  const StatusOr<Architecture> source = Architecture::Create(teacher);
  if (!source.ok()) {
    problems->Add(job->sskd.head.init_mark,
                  StrCat(where, "the teacher '", job->teacher,
                         "' is a TorchScript archive, whose head a student cannot take over; use random"));
    return;
  }
  const std::vector<StateEntry> offered = source->StateDict();
  const std::vector<std::string> heads = student.HeadModules();
  for (const StateEntry& wanted : student.StateDict()) {
    if (std::none_of(heads.begin(), heads.end(), [&](const auto& head) { return IsUnder(wanted.name, head); }))
      continue;
    const auto found = std::find_if(offered.begin(), offered.end(),
                                    [&](const StateEntry& entry) { return entry.name == wanted.name; });
    if (found != offered.end() && found->shape == wanted.shape) continue;
    problems->Add(job->sskd.head.init_mark,
                  StrCat(where, "the student's '", wanted.name, "' has shape ", ShapeText(wanted.shape),
                         ", the teacher's ", found == offered.end() ? "does not exist" : ShapeText(found->shape),
                         "; student and teacher need as many channels after the last stage, or use random"));
    return;
  }
  job->plan.student.weights_modules = heads;
  job->plan.student.weights_of_teacher = true;
}

// Labels are for images or for pixels, and so are the student's answers.
void CheckLabelsFit(const JobDraft& job, const Architecture& student, Problems* problems) {
  const bool pixels = job.plan.data.format == "segmentation_folder";
  if (pixels == student.dense()) return;
  problems->Add(pixels ? job.format_mark : job.student_mark,
                pixels ? StrCat("data.format: segmentation_folder has a label for every pixel, but '",
                                ShortArch(student.spec().arch),
                                "' answers once per image; take a network for segmentation, such "
                                "as fcn_resnet18, or another format")
                       : StrCat("student: '", ShortArch(student.spec().arch),
                                "' answers for every pixel, but data.format ", job.plan.data.format,
                                " has one label per image; take segmentation_folder, or another "
                                "network"));
}

// The teacher's accuracy is measured where its output is an answer as the student's is.
void CheckTeachersAnswers(const Architecture& student, const TapShape& output, Problems* problems, JobDraft* job) {
  if (!job->evaluate_teacher || output == student.FindTap("")->shape) return;
  job->evaluate_teacher = false;
  problems->Warn(job->teacher_mark, StrCat("teacher: its accuracy is not measured, since its output is ",
                                           output.empty() ? "not served" : ShapeText(output), " and the student's ",
                                           ShapeText(student.FindTap("")->shape)));
}

// data.unlabelled and unlabelled_ok belong together.
void CheckUnlabelled(const JobDraft& job, Problems* problems) {
  const bool given = !job.plan.data.unlabelled.empty();
  bool used = job.sskd.unlabelled_ok;
  YamlMark mark = job.sskd.unlabelled_mark;
  for (const StageDraft& stage : job.stages) {
    if (!stage.unlabelled_ok) continue;
    used = true;
    mark = stage.unlabelled_mark;
  }
  if (used && !given) {
    problems->Warn(mark, "unlabelled_ok has no effect: data.unlabelled names no images without labels");
  }
  if (!given || used || job.stages.empty()) return;
  problems->Add(
      job.unlabelled_mark,
      StrCat("data.unlabelled: no stage may draw from images without labels; ",
             job.preset.empty()     ? "allow it where no loss reads labels: unlabelled_ok: true in stages[]"
             : job.preset == "sskd" ? "allow it to the backbone phases: sskd: {unlabelled_ok: true}"
                                    : StrCat("the preset '", job.preset,
                                             "' takes images with labels only: take the preset sskd, or write stages"),
             ", or leave data.unlabelled out"));
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

constexpr uint32_t kLeastSide = 8;  // StudentNet::ForwardAtAnySize

bool HasViews(const JobPlan& plan) { return !plan.evaluate_scales.empty() || !plan.evaluate_window.empty(); }

// Pictures become as large as the student takes them; those that are measured in views of their own size.
void CheckTransforms(const JobDraft& job, Problems* problems) {
  const ModelSpec& student = job.plan.student;
  if (student.image_height == 0) return;
  const auto check = [&](const std::vector<TransformPlan>& list, const YamlMark& mark, std::string_view key) {
    const StatusOr<TransformedSize> size = SizeAfter(list);
    if (!size.ok() || !size->any) return;
    if (size->height == student.image_height && size->width == student.image_width) return;
    problems->Add(mark, StrCat("data.transforms.", key, ": makes pictures of [", size->height, ", ", size->width,
                               "] (height, width), the student takes student.image [", student.image_height, ", ",
                               student.image_width, "]; make them equal"));
  };
  check(job.plan.data.train_transforms, job.train_transforms_mark, "train");
  if (!HasViews(job.plan)) check(job.plan.data.test_transforms, job.test_transforms_mark, "test");
}

// Views of pictures are for answers by pixel, and of sizes that the student and the measured teacher take.
void CheckViews(const Architecture& student, Problems* problems, JobDraft* job) {
  const JobPlan& plan = job->plan;
  if (!HasViews(plan)) return;
  const YamlMark& mark = plan.evaluate_window.empty() ? job->scales_mark : job->window_mark;
  const std::string_view key = plan.evaluate_window.empty() ? "evaluate.scales" : "evaluate.window";
  if (!student.dense()) {
    problems->Add(mark,
                  StrCat(key, ": shows parts or sizes of a picture to a network that answers for every pixel, and '",
                         ShortArch(student.spec().arch), "' answers for every image; leave it out"));
    return;
  }
  const StatusOr<TransformedSize> size = SizeAfter(plan.data.test_transforms);
  const bool own_size = size.ok() && size->any;
  const ModelSpec& spec = student.spec();
  const std::array<uint32_t, 2> image = {spec.image_height, spec.image_width};
  const std::array<uint32_t, 2> picture = own_size ? std::array<uint32_t, 2>{size->height, size->width} : image;
  // The first size that is not the student's own.
  std::optional<std::array<uint32_t, 2>> other;
  const std::vector<double> scales = plan.evaluate_scales.empty() ? std::vector<double>{1} : plan.evaluate_scales;
  for (const double scale : scales) {
    std::array<uint32_t, 2> shown{};
    for (size_t side = 0; side < 2; ++side) {
      const auto scaled = static_cast<uint32_t>(std::llround(scale * picture[side]));
      shown[side] = plan.evaluate_window.empty() ? scaled : plan.evaluate_window[side];
    }
    if (shown[0] < kLeastSide || shown[1] < kLeastSide) {
      problems->Add(mark, StrCat(key, ": shows [", shown[0], ", ", shown[1], "] pixels, fewer than ", kLeastSide,
                                 " a side; take larger ones"));
      return;
    }
    if (shown != image && !other) other = shown;
  }
  if (own_size && picture != image && plan.data.holdout > 0) {
    for (const StagePlan& stage : plan.stages) {
      if (stage.select_by != "objective" || (stage.select == "last" && stage.patience == 0)) continue;
      problems->Add(job->test_transforms_mark,
                    StrCat("data.transforms.test: held-out pictures become [", picture[0], ", ", picture[1],
                           "], on which stage '", stage.name, "' cannot compute its objective for [", image[0], ", ",
                           image[1], "]; take select_by: mean_iou"));
      return;
    }
  }
  if (!other) return;
  const std::string sizes = StrCat("[", (*other)[0], ", ", (*other)[1], "]");
  const std::string remedy =
      StrCat("; show it windows of its own size: evaluate: {window: [", image[0], ", ", image[1], "]}");
  if (student.is_archive()) {
    problems->Add(mark, StrCat(key, ": shows ", sizes, " pixels, and an archive takes [", image[0], ", ", image[1],
                               "] only", remedy));
    return;
  }
  if (!job->evaluate_teacher || job->teacher.empty()) return;
  if (job->evaluate_teacher_given) {
    problems->Add(job->evaluate_mark,
                  StrCat("evaluate.teacher: the teacher takes pictures of [", image[0], ", ", image[1],
                         "] only, and would be shown ", sizes, remedy, ", or leave this out"));
    return;
  }
  job->evaluate_teacher = false;
  problems->Warn(mark, StrCat(key, ": the teacher's accuracy is not measured, since it takes pictures of [", image[0],
                              ", ", image[1], "] only and would be shown ", sizes, remedy));
}

}  // namespace

std::string Describe(const JobFileInput& input, const JobProblem& problem) {
  return StrCat(SourceOf(input).Describe(problem.mark), ": ", problem.text);
}

ExpandedJob ExpandJobFile(const JobFileInput& input, const FleetView& fleet) {
  Problems problems(SourceOf(input));
  const YamlNodePtr root = ParseWithOverrides(input, &problems);
  if (root == nullptr) return {{}, problems.Sorted(), {}};
  JobDraft job = ReadDraft(root, &problems);
  const StatusOr<Architecture> student = FindStudent(job, fleet, &problems);
  if (student.ok() && student->is_archive()) {
    ModelSpec spec = student->spec();
    spec.weights = job.plan.student.weights;
    job.plan.student = std::move(spec);
  }
  CheckTransforms(job, &problems);
  // A baseline made from a distillation job's file names a teacher that nothing reads: it need not be there.
  const bool reads_teacher = ReadsTeacher(job);
  const ServedModelInfo* teacher = job.teacher.empty() || !reads_teacher ? nullptr : FindTeacher(job, fleet, &problems);
  std::optional<ModelTaps> teacher_taps;
  if (teacher != nullptr) {
    if (student.ok()) CheckTeacherInput(job, teacher->spec, &problems);
    StatusOr<ModelTaps> taps = TapsOf(*teacher);
    if (taps.ok()) {
      teacher_taps = *std::move(taps);
    } else {
      problems.AddOfFleet(job.teacher_mark,
                          StrCat("teacher: '", job.teacher, "' describes itself wrongly: ", taps.status().message()));
    }
  }
  // Stages are checked against the student's network; without one, what was found so far has to do.
  if (student.ok()) {
    const StageContext context{&*student, teacher_taps ? &*teacher_taps : nullptr, !job.teacher.empty()};
    if (!job.preset.empty() && job.stages.empty() && job.budget.given()) ExpandDraftPreset(context, &problems, &job);
    job.plan.stages = BuildStages(job, context, &problems);
    CheckUnlabelled(job, &problems);
    CheckLabelsFit(job, *student, &problems);
    CheckLabelMap(job, student->spec().num_classes, &problems);
    CheckViews(*student, &problems, &job);
    if (teacher_taps) CheckTeachersAnswers(*student, teacher_taps->output, &problems, &job);
    ExpandWeightsModules(*student, &problems, &job);
    if (job.sskd.head.from_teacher && teacher != nullptr) TakeTeachersHead(*student, teacher->spec, &problems, &job);
    job.plan.student.width = student->spec().width;
  }
  const bool used = std::any_of(job.plan.stages.begin(), job.plan.stages.end(),
                                [](const StagePlan& stage) { return stage.needs_teacher; });
  if (teacher != nullptr && used) {
    job.plan.teachers.push_back({teacher->name, teacher->digest, teacher->spec, teacher->parameters, teacher->bytes});
  } else if (!job.teacher.empty() && (teacher != nullptr || !reads_teacher)) {
    problems.Warn(job.teacher_mark, StrCat("teacher: no stage reads '", job.teacher, "', so the job runs without it"));
  }
  job.plan.evaluate_teacher = job.evaluate_teacher && !job.plan.teachers.empty();
  if (student.ok()) CheckSizes(job, *student, teacher_taps ? &*teacher_taps : nullptr, &problems);
  return {std::move(job.plan), problems.Sorted(), problems.warnings()};
}

}  // namespace distill
