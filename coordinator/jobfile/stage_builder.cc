#include "coordinator/jobfile/stage_builder.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/score/score.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/loss_builder.h"

namespace distill {
namespace {

constexpr size_t kOutput = SIZE_MAX;  // position of the network's output: after every tap

// Position of a tap in execution order.
size_t Position(const Architecture& arch, const std::string& tap) {
  if (tap.empty()) return kOutput;
  const auto& taps = arch.taps();
  for (size_t i = 0; i < taps.size(); ++i) {
    if (taps[i].path == tap) return i;
  }
  return kOutput;
}

// Every trained parameter must get a gradient: the ranks wait for all of them in each step.
void CheckReach(const StageDraft& draft, const StagePlan& stage, const Architecture& arch, const std::string& where,
                Problems* problems) {
  std::vector<const LossPlan*> active;
  for (const LossPlan& loss : stage.losses) {
    if (loss.weight != 0) active.push_back(&loss);
  }
  std::set<const LossPlan*> useful;
  for (const std::string& module : stage.trainable) {
    for (const std::string& leaf : arch.Leaves(module)) {
      bool reached = false;
      for (const LossPlan* loss : active) {
        if (!arch.Reaches(leaf, loss->student_tap)) continue;
        reached = true;
        useful.insert(loss);
      }
      if (reached) continue;
      problems->Add(
          draft.trainable_marks.empty() ? draft.mark : draft.trainable_marks.front(),
          StrCat(where, ": '", leaf, "' trains, but no loss depends on it",
                 stage.student_until.empty() ? "" : StrCat(" (the deepest tap is '", stage.student_until, "')"),
                 "; take it out of trainable, or add a loss after it"));
      return;  // one message per stage: the modules behind it have the same cause
    }
  }
  for (const LossPlan* loss : active) {
    if (!useful.contains(loss)) {
      problems->Warn(draft.mark, StrCat(where, ": the loss '", loss->name, "' depends on no trained module"));
    }
  }
}

// The two maps that stand for each other in a blockwise stage, and that everything else comes after them.
void CheckInput(const StageDraft& draft, const StagePlan& stage, const StageContext& context, const std::string& where,
                Problems* problems) {
  const Architecture& arch = *context.student;
  if (stage.student_input.empty()) return;
  const ModelTaps student = TapsOf(arch);
  const ServedTap* to = student.Find(stage.student_input);
  if (to == nullptr || !arch.CanStartAfter(stage.student_input)) {
    problems->Add(draft.input_mark,
                  StrCat(where, ": student_input '", stage.student_input,
                         to == nullptr ? "' is no tap of the student" : "' lies inside a block",
                         DidYouMean(stage.student_input, arch.stages()), "; name the end of a stage"));
    return;
  }
  if (context.teacher == nullptr) return;
  const ServedTap* from = context.teacher->Find(stage.teacher_input);
  if (from == nullptr) {
    problems->Add(draft.input_mark,
                  StrCat(where, ": the teacher has no tap '", stage.teacher_input, "'",
                         DidYouMean(stage.teacher_input, context.teacher->Paths()), "; distillctl taps lists them"));
    return;
  }
  if (from->shape != to->shape) {
    problems->Add(draft.input_mark,
                  StrCat(where, ": the teacher's '", from->path, "' ", ShapeText(from->shape),
                         " cannot take the place of the student's '", to->path, "' ", ShapeText(to->shape),
                         "; blockwise stages need student and teacher of equal width"));
  }
  for (const std::string& module : stage.trainable) {
    if (!arch.Reaches(module, stage.student_input)) continue;
    problems->Add(draft.trainable_marks.empty() ? draft.mark : draft.trainable_marks.front(),
                  StrCat(where, ": '", module, "' trains, but it does not run: the stage starts after '",
                         stage.student_input, "'"));
    return;
  }
}

std::vector<std::string> ExpandTrainable(const StageDraft& draft, const Architecture& arch, const std::string& where,
                                         Problems* problems) {
  bool ok = true;
  for (size_t i = 0; i < draft.trainable.size(); ++i) {
    const StatusOr<std::vector<std::string>> one = ExpandModuleGlobs(arch, {draft.trainable[i]});
    if (one.ok()) continue;
    ok = false;
    problems->Add(i < draft.trainable_marks.size() ? draft.trainable_marks[i] : draft.mark,
                  StrCat(where, ".trainable: ", one.status().message()));
  }
  if (!ok) return {};
  StatusOr<std::vector<std::string>> all = ExpandModuleGlobs(arch, draft.trainable);
  return all.ok() ? *std::move(all) : std::vector<std::string>{};
}

// The factors on the learning rate, with their globs expanded.
std::vector<LrMultPlan> ExpandMultipliers(const OptimizerDraft& draft, const Architecture& arch, Problems* problems) {
  std::vector<LrMultPlan> out;
  for (const LrMultDraft& mult : draft.multipliers) {
    StatusOr<std::vector<std::string>> modules = ExpandModuleGlobs(arch, mult.globs);
    if (modules.ok()) {
      out.push_back({*std::move(modules), mult.factor});
    } else {
      problems->Add(mult.mark, StrCat(mult.path, ".modules: ", modules.status().message()));
    }
  }
  return out;
}

// Names losses that the user did not: "kd", "cwd-layer1", with "-2" and so on when taken.
void NameLosses(std::vector<LossPlan>* losses) {
  std::set<std::string> taken;
  for (const LossPlan& loss : *losses) taken.insert(loss.name);
  for (LossPlan& loss : *losses) {
    if (!loss.name.empty()) continue;
    const std::string base = loss.student_tap.empty() ? loss.type : StrCat(loss.type, "-", loss.student_tap);
    loss.name = base;
    for (int n = 2; !taken.insert(loss.name).second; ++n) loss.name = StrCat(base, "-", n);
  }
}

// A metric has to be one of the task's, and to find labels.
void CheckSelectBy(const StageDraft& draft, const std::string& where, const JobDraft& job, const Architecture& arch,
                   Problems* problems) {
  if (draft.select_by == "objective") return;
  const bool of_pixels = draft.select_by == kMeanIou || draft.select_by == kPixelAccuracy;
  if (of_pixels != arch.dense()) {
    problems->Add(draft.select_by_mark,
                  StrCat(where, ".select_by: '", draft.select_by, "' is for ", of_pixels ? "pixels" : "images",
                         ", and the student answers for ", of_pixels ? "images: take top1" : "pixels: take mean_iou",
                         " or objective"));
  } else if (draft.select_by == kTop5 && arch.spec().num_classes <= 5) {
    problems->Add(draft.select_by_mark, StrCat(where, ".select_by: top5 needs more than five classes; take top1"));
  } else if (job.plan.data.train_size == 0) {
    problems->Add(draft.select_by_mark,
                  StrCat(where, ".select_by: '", draft.select_by,
                         "' compares with labels, but data.train_size says that no training image has one"));
  }
}

StagePlan BuildStage(const StageDraft& draft, const std::string& where, const JobDraft& job,
                     const StageContext& context, Problems* problems) {
  const Architecture& arch = *context.student;
  StagePlan stage;
  stage.name = draft.name;
  stage.optimizer = draft.optimizer;
  stage.optimizer.lr_mult = ExpandMultipliers(draft.optimizer, arch, problems);
  stage.schedule = draft.schedule;
  stage.trainable_globs = draft.trainable;
  stage.frozen_bn = draft.frozen_bn;
  stage.select = draft.select;
  stage.select_by = draft.select_by;
  CheckSelectBy(draft, where, job, arch, problems);
  stage.patience = draft.patience;
  if ((stage.select == "best" || stage.patience > 0) && job.plan.data.holdout == 0) {
    problems->Add(draft.select_mark, StrCat(where,
                                            ": select: best and patience measure on held-out training images; say "
                                            "how many: data.holdout, for example 1024"));
  }
  stage.teacher_input = draft.teacher_input;
  stage.student_input = draft.student_input;
  stage.trainable = ExpandTrainable(draft, arch, where, problems);
  stage.unlabelled_ok = draft.unlabelled_ok && !job.plan.data.unlabelled.empty();
  const EpochImages images = stage.unlabelled_ok ? EpochImages::kAll : EpochImages::kLabelled;
  if (const std::optional<uint64_t> steps = StepsOf(draft.length, job, images, problems)) {
    stage.steps = *steps;
    if (*steps == 0) {
      problems->Warn(draft.length.mark,
                     StrCat(where, ": 0 steps, so '", draft.name, "' leaves its modules as they are"));
    }
  }
  bool complete = true;
  for (size_t i = 0; i < draft.losses.size(); ++i) {
    std::optional<LossPlan> loss = BuildLoss(draft.losses[i], StrCat(where, ".losses[", i, "]"), context, problems);
    complete = complete && loss.has_value();
    if (loss && ReadsLabelMaps(*loss) && job.plan.data.format != "segmentation_folder") {
      problems->Add(draft.losses[i].mark, StrCat(where, ".losses[", i,
                                                 "]: mask: valid_labels needs a label for every pixel, which "
                                                 "data.format ",
                                                 job.plan.data.format, " has not; take mask: padding or none"));
    }
    if (loss) stage.losses.push_back(*std::move(loss));
  }
  NameLosses(&stage.losses);
  const LossPlan* deepest = nullptr;
  for (const LossPlan& loss : stage.losses) {
    if (loss.weight == 0) continue;
    stage.needs_teacher = stage.needs_teacher || loss.needs_teacher;
    stage.uses_labels = stage.uses_labels || ReadsLabels(loss);
    if (deepest == nullptr || Position(arch, loss.student_tap) > Position(arch, deepest->student_tap)) deepest = &loss;
  }
  if (!complete || stage.trainable.empty() || draft.losses.empty()) return stage;  // reported already
  if (deepest == nullptr) {
    problems->Add(draft.mark, StrCat(where, ": no loss has a weight above 0, so there is nothing to learn"));
    return stage;
  }
  if (draft.unlabelled_ok && stage.uses_labels) {
    problems->Add(draft.unlabelled_mark, StrCat(where, ": '", draft.name,
                                                "' reads labels, so it cannot draw from images without; leave "
                                                "unlabelled_ok out of it"));
  }
  if (stage.uses_labels && stage.steps > 0 && job.plan.data.train_size == 0) {
    problems->Add(draft.mark, StrCat(where, ": '", draft.name,
                                     "' reads labels, but data.train_size says that no "
                                     "training image has one"));
  }
  stage.student_until = deepest->student_tap;
  if (!stage.teacher_input.empty()) {
    if (!context.has_teacher) {
      problems->Add(draft.input_mark, StrCat(where, ": teacher_input needs a teacher; name one: teacher: MODEL"));
      return stage;
    }
    stage.needs_teacher = true;
    CheckInput(draft, stage, context, where, problems);
  }
  CheckReach(draft, stage, arch, where, problems);
  return stage;
}

}  // namespace

std::optional<uint64_t> StepsOf(const LengthDraft& length, const JobDraft& job, EpochImages which, Problems* problems) {
  if (length.steps) return length.steps;
  if (!length.epochs) return std::nullopt;
  const uint64_t limit = job.plan.data.train_limit;
  const bool known = job.plan.data.train_size.has_value() || limit > 0;
  uint64_t labelled = job.plan.data.train_size.value_or(limit);
  if (limit > 0) labelled = std::min(limit, labelled);
  if (which == EpochImages::kAll && (!known || !job.plan.data.unlabelled_size)) {
    problems->Add(length.mark,
                  StrCat("epochs need the numbers of training images with and without labels, which the "
                         "coordinator cannot see: add data.",
                         known ? "unlabelled_size" : "train_size and data.unlabelled_size", ", or give steps"));
    return std::nullopt;
  }
  uint64_t images = labelled + (which == EpochImages::kAll ? *job.plan.data.unlabelled_size : 0);
  images -= std::min(images, job.plan.data.holdout);
  if (images == 0) {
    problems->Add(
        length.mark,
        "epochs need the number of training images, which the coordinator cannot see: add data.train_size (60000 for "
        "Fashion-MNIST), or give steps");
    return std::nullopt;
  }
  const uint64_t per_epoch = images / job.plan.batch_size;
  if (per_epoch == 0) {
    problems->Add(length.mark, StrCat("an epoch of ", images, " images holds no whole batch of ", job.plan.batch_size));
    return std::nullopt;
  }
  const double steps = std::round(*length.epochs * static_cast<double>(per_epoch));
  return *length.epochs > 0 ? std::max<uint64_t>(1, static_cast<uint64_t>(steps)) : 0;
}

std::vector<StagePlan> BuildStages(const JobDraft& job, const StageContext& context, Problems* problems) {
  std::vector<StagePlan> stages;
  for (size_t i = 0; i < job.stages.size(); ++i) {
    // Stages of a preset have no place in the file; their name says which one is meant.
    const std::string where = job.preset.empty() ? StrCat("stages[", i, "]")
                                                 : StrCat("stage '", job.stages[i].name, "' of preset ", job.preset);
    stages.push_back(BuildStage(job.stages[i], where, job, context, problems));
  }
  return stages;
}

}  // namespace distill
