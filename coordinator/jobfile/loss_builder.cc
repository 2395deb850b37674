#include "coordinator/jobfile/loss_builder.h"

#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/plan/loss_shapes.h"
#include "common/shape_text.h"
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
    problems->Add(mark, StrCat(where, ": the ", owner, "'s tap '", path, "' has shape ", ShapeText(tap->shape),
                               "; a feature loss needs [C, H, W]"));
    return nullptr;
  }
  return tap;
}

// The sum before the last ReLU at or below a tap: "layer2" -> "layer2.1.add". Null with a problem when there is none.
const ServedTap* BeforeRelu(const ModelTaps& taps, const ServedTap& tap, std::string_view owner, const YamlMark& mark,
                            const std::string& where, Problems* problems) {
  const ServedTap* last = nullptr;
  for (const ServedTap& one : taps.taps) {
    const bool add = one.path.ends_with(".add");
    if (add && (one.path == tap.path || IsUnder(one.path, tap.path)) && one.shape == tap.shape) last = &one;
  }
  if (last == nullptr) {
    problems->Add(mark, StrCat(where, ": the ", owner, "'s tap '", tap.path,
                               "' has no sum before a ReLU; leave tap_position out, or name another tap"));
  }
  return last;
}

MapShape ShapeOf(const ServedTap& tap) { return {tap.shape[0], {tap.shape[1], tap.shape[2]}}; }

}  // namespace

std::optional<LossPlan> BuildLoss(const LossDraft& draft, const std::string& where, const StageContext& context,
                                  Problems* problems) {
  const LossSchema* schema = FindLossSchema(draft.type);
  if (draft.broken || schema == nullptr) return std::nullopt;
  LossPlan loss;
  loss.name = draft.name;
  loss.type = draft.type;
  loss.weight = draft.weight;
  loss.weight_schedule = draft.weight_schedule;
  loss.own = draft.own;
  loss.student_tap = draft.student_tap;
  loss.teacher_tap = draft.teacher_tap;
  loss.adapter = "none";
  loss.needs_teacher = ReadsTeacher(schema->input);
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
  if (schema->input == LossInput::kMap) {
    const ServedTap* tap = FindMap(student, draft.student_tap, "student", draft.student_mark, where, problems);
    if (tap == nullptr) return std::nullopt;
    if (!IsDense(student.output)) {
      problems->Add(draft.mark, StrCat(where, ": '", draft.type, "' compares with a label for every pixel, and ",
                                       context.student->spec().arch, " answers for every image; leave it out"));
      return std::nullopt;
    }
    loss.student_channels = tap->shape[0];
    loss.student_height = tap->shape[1];
    loss.student_width = tap->shape[2];
    loss.teacher_channels = student.output[0];
    return loss;
  }
  if (schema->input != LossInput::kFeatures) {
    loss.student_channels = student.output[0];
    if (!loss.needs_teacher || context.teacher == nullptr) return loss;
    const TapShape& output = context.teacher->output;
    loss.teacher_channels = output.empty() ? 0 : output[0];
    if (student.output == output) {
      std::vector<std::string> warnings;
      WarnOfLogits(loss, &warnings);
      for (const std::string& warning : warnings) {
        problems->Warn(draft.mark, StrCat(where, ": ", draft.type, ": ", warning));
      }
      return loss;
    }
    if (output.empty()) {
      problems->Add(draft.mark, StrCat(where, ": '", draft.type,
                                       "' compares logits, but the teacher's archive returns inner maps only; let its "
                                       "forward return the output too, as 'output'"));
      return std::nullopt;
    }
    if (loss.student_channels == loss.teacher_channels) {
      problems->Add(draft.mark,
                    StrCat(where, ": the student's output is ", ShapeText(student.output), ", the teacher's ",
                           ShapeText(output), "; '", draft.type, "' compares them element by element"));
      return std::nullopt;
    }
    problems->Add(draft.mark, StrCat(where, ": the student has ", loss.student_channels, " classes, the teacher ",
                                     loss.teacher_channels, "; '", draft.type, "' compares them one by one"));
    return std::nullopt;
  }
  const ServedTap* student_tap = FindMap(student, draft.student_tap, "student", draft.student_mark, where, problems);
  const ServedTap* teacher_tap = context.teacher == nullptr ? nullptr
                                                            : FindMap(*context.teacher, draft.teacher_tap, "teacher",
                                                                      draft.teacher_mark, where, problems);
  if (student_tap == nullptr || teacher_tap == nullptr) return std::nullopt;
  if (draft.tap_position == "pre_relu") {
    student_tap = BeforeRelu(student, *student_tap, "student", draft.student_mark, where, problems);
    teacher_tap = BeforeRelu(*context.teacher, *teacher_tap, "teacher", draft.teacher_mark, where, problems);
    if (student_tap == nullptr || teacher_tap == nullptr) return std::nullopt;
    loss.student_tap = student_tap->path;
    loss.teacher_tap = teacher_tap->path;
  }
  loss.adapter = draft.adapter;
  std::vector<std::string> warnings;
  const std::string taps = StrCat("student '", student_tap->path, "' ", ShapeText(student_tap->shape), " and teacher '",
                                  teacher_tap->path, "' ", ShapeText(teacher_tap->shape));
  if (const Status resolved = ResolveLoss(ShapeOf(*student_tap), ShapeOf(*teacher_tap), &loss, &warnings);
      !resolved.ok()) {
    problems->Add(draft.adapter == "none" ? draft.adapter_mark : draft.student_mark,
                  StrCat(where, ": ", draft.type, " of ", taps, ": ", resolved.message()));
    return std::nullopt;
  }
  for (const std::string& warning : warnings) {
    problems->Warn(draft.student_mark, StrCat(where, ": ", draft.type, " of ", taps, ": ", warning));
  }
  return loss;
}

}  // namespace distill
