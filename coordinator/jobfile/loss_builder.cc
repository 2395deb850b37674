#include "coordinator/jobfile/loss_builder.h"

#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

// A tap that has a height and width, or null with a problem.
const ServedTap* FindMap(const ModelTaps& taps, const std::string& path, std::string_view owner, const YamlMark& mark,
                         const std::string& where, Problems* problems) {
  const ServedTap* tap = taps.Find(path);
  if (tap == nullptr) {
    problems->Add(mark, StrCat(where, ": the ", owner, " has no tap '", Shorten(path), "'",
                               DidYouMean(path, taps.Paths()), "; distillctl taps lists them"));
    return nullptr;
  }
  if (tap->shape.size() != 3) {
    problems->Add(mark, StrCat(where, ": the ", owner, "'s tap '", path, "' has shape ", DescribeShape(tap->shape),
                               "; a feature loss needs [C, H, W]"));
    return nullptr;
  }
  return tap;
}

// Fills channels and adapter of a feature loss from both taps. False when a problem was added.
bool MatchMaps(const LossDraft& draft, const LossSchema& schema, const ServedTap& student, const ServedTap& teacher,
               const std::string& where, Problems* problems, LossPlan* loss) {
  const auto describe = [&] {
    return StrCat("student '", student.path, "' ", DescribeShape(student.shape), " and teacher '", teacher.path, "' ",
                  DescribeShape(teacher.shape));
  };
  loss->student_channels = student.shape[0];
  loss->teacher_channels = teacher.shape[0];
  if (student.shape[1] != teacher.shape[1] || student.shape[2] != teacher.shape[2]) {
    problems->Add(draft.student_mark,
                  StrCat(where, ": ", describe(), " differ in height or width; choose taps of the same size"));
    return false;
  }
  const bool differ = loss->student_channels != loss->teacher_channels;
  loss->adapter =
      draft.adapter == "conv1x1" || (draft.adapter == "auto" && differ && schema.adapter_allowed) ? "conv1x1" : "none";
  if (differ && loss->adapter == "none") {
    problems->Add(draft.adapter_mark,
                  StrCat(where, ": ", describe(), " differ in channels; ",
                         schema.adapter_allowed ? "set adapter: conv1x1 (or auto)" : "this loss takes no adapter"));
    return false;
  }
  if (draft.type == "cwd" && uint64_t{student.shape[1]} * student.shape[2] == 1) {
    problems->Warn(draft.student_mark,
                   StrCat(where, ": '", student.path, "' has a single position, over which cwd is always 0"));
  }
  return true;
}

}  // namespace

std::optional<LossPlan> BuildLoss(const LossDraft& draft, const std::string& where, const StageContext& context,
                                  Problems* problems) {
  const LossSchema* schema = FindLossSchema(draft.type);
  if (draft.broken || schema == nullptr) return std::nullopt;
  LossPlan loss;
  loss.name = draft.name;
  loss.type = draft.type;
  loss.weight = draft.weight;
  loss.student_tap = draft.student_tap;
  loss.teacher_tap = draft.teacher_tap;
  loss.needs_teacher = schema->input != LossInput::kLabels;
  StatusOr<Knobs> knobs = CompleteKnobs(*schema, draft.knobs);
  if (!knobs.ok()) {
    problems->Add(draft.mark, StrCat(where, ": ", knobs.status().message()));
    return std::nullopt;
  }
  loss.knobs = *std::move(knobs);
  if (draft.weight == 0) {
    problems->Warn(draft.mark, StrCat(where, ": weight 0, so the loss '", draft.type, "' is not computed"));
  }
  if (loss.needs_teacher && !context.has_teacher) {
    problems->Add(draft.mark, StrCat(where, ": the loss '", draft.type, "' needs a teacher; name one: teacher: MODEL"));
    return std::nullopt;
  }
  const ModelTaps student = TapsOf(*context.student);
  if (schema->input != LossInput::kFeatures) {
    loss.student_channels = student.output[0];
    if (!loss.needs_teacher || context.teacher == nullptr) return loss;
    loss.teacher_channels = context.teacher->output.empty() ? 0 : context.teacher->output[0];
    if (loss.student_channels == loss.teacher_channels) return loss;
    problems->Add(draft.mark, StrCat(where, ": the student has ", loss.student_channels, " classes, the teacher ",
                                     loss.teacher_channels, "; '", draft.type, "' compares them one by one"));
    return std::nullopt;
  }
  const ServedTap* student_tap = FindMap(student, draft.student_tap, "student", draft.student_mark, where, problems);
  const ServedTap* teacher_tap = context.teacher == nullptr ? nullptr
                                                            : FindMap(*context.teacher, draft.teacher_tap, "teacher",
                                                                      draft.teacher_mark, where, problems);
  if (student_tap == nullptr || teacher_tap == nullptr) return std::nullopt;
  if (!MatchMaps(draft, *schema, *student_tap, *teacher_tap, where, problems, &loss)) return std::nullopt;
  return loss;
}

}  // namespace distill
