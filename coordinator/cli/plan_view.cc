#include "coordinator/cli/plan_view.h"

#include <vector>

#include "absl/strings/str_join.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "common/zoo/archive_ref.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/units.h"

namespace distill::cli {
namespace {

constexpr int kMaxTrainsWidth = 32;

std::string Line(std::string_view label, std::string_view text) {
  return StrCat("  ", PadRight(label, 9), Printable(text), "\n");
}

std::string Plural(uint64_t count, std::string_view noun) { return StrCat(count, " ", noun, count == 1 ? "" : "s"); }

std::string DataText(const v1::JobPlan& plan) {
  const v1::DataPlan& data = plan.data();
  std::string text = StrCat(data.format(), " ", data.path());
  StrAppend(&text, ", ",
            data.train_limit() == 0 ? "all training images" : StrCat(data.train_limit(), " training images"));
  StrAppend(&text, ", ", data.test_limit() == 0 ? "all test images" : StrCat(data.test_limit(), " test images"));
  if (data.has_split()) {
    StrAppend(&text, ", ", data.split().test() * 100, " % of ",
              data.split().by() == "class" ? "each class" : "all images", " for testing (seed ", data.split().seed(),
              ")");
  }
  if (data.shrink() > 1) StrAppend(&text, ", each ", data.shrink(), " times smaller");
  if (data.format() == "segmentation_folder") {
    if (data.label_map_size() > 0) {
      StrAppend(&text, ", ", data.label_map_size(), " ids of pixels renumbered to classes, the others without label");
    } else {
      StrAppend(&text, ", pixels of ", data.reduce_zero_label() ? "0 and " : "",
                data.has_ignore_label() ? data.ignore_label() : 255, " without label",
                data.reduce_zero_label() ? ", classes from 1" : "");
    }
  }
  for (const auto& [label, given, pairs] : {std::tuple{"training", data.has_train_files(), &data.train_files()},
                                            {"test", data.has_test_files(), &data.test_files()}}) {
    if (!given) continue;
    StrAppend(&text, ", ", label, " images ", pairs->images(), " with ", pairs->labels());
    if (!pairs->list().empty()) StrAppend(&text, " as listed in ", pairs->list());
  }
  for (const auto& [label, transforms] : {std::pair{", training images through ", &data.train_transforms()},
                                          {", test images through ", &data.test_transforms()}}) {
    const char* before = label;
    for (const v1::Transform& transform : *transforms) {
      StrAppend(&text, before, transform.type());
      before = " (";
      for (const auto& knob : transform.knobs()) {
        const std::string values = absl::StrJoin(knob.values(), ", ");
        StrAppend(&text, before, knob.name(), ": ", knob.values_size() == 1 ? values : StrCat("[", values, "]"));
        before = ", ";
      }
      if (transform.knobs_size() > 0) StrAppend(&text, ")");
      before = ", ";
    }
  }
  if (data.on_bad_image() == "skip") {
    StrAppend(&text, ", bad pictures skipped up to ",
              (data.has_bad_image_limit() ? data.bad_image_limit() : 0.01) * 100, " %");
  }
  if (!data.unlabelled().empty()) {
    std::vector<std::string> stages;
    for (const v1::StagePlan& stage : plan.stages()) {
      if (stage.unlabelled_ok()) stages.push_back(stage.name());
    }
    StrAppend(&text, ", without labels ", data.unlabelled(), " for ", absl::StrJoin(stages, ", "));
  }
  return text;
}

std::string TrainingText(const v1::JobPlan& plan) {
  std::string text =
      StrCat("seed ", plan.seed(), ", ", Plural(plan.students(), "student"), " with ", Plural(plan.threads(), "thread"),
             ", batch ", plan.batch_size(), plan.accumulate() > 1 ? StrCat(" in ", plan.accumulate(), " parts") : "",
             ", device ", plan.device(), plan.autocast() == "bf16" ? ", autocast bf16" : "",
             plan.sync_batch_norm() ? ", batch norms over all students" : "");
  if (!plan.teachers().empty()) {
    StrAppend(&text, ", features as ", plan.wire_dtype(), ", prefetch ", FormatBytes(plan.prefetch_bytes()));
  }
  if (plan.deterministic()) StrAppend(&text, ", deterministic");
  if (plan.evaluate_scales_size() > 0) {
    StrAppend(&text, ", measured at scales ", absl::StrJoin(plan.evaluate_scales(), ", "));
  }
  if (plan.evaluate_window_size() == 2) {
    StrAppend(&text, ", measured in windows of ", plan.evaluate_window(0), "x", plan.evaluate_window(1), " every ",
              plan.evaluate_stride(0), "x", plan.evaluate_stride(1));
  }
  if (plan.checkpoint_every() > 0) StrAppend(&text, ", checkpoint every ", Plural(plan.checkpoint_every(), "step"));
  return text;
}

std::string KnobText(const v1::Knob& knob) {
  switch (knob.value_case()) {
    case v1::Knob::kNumber:
      return StrCat(knob.name(), "=", FormatNumber(knob.number()));
    case v1::Knob::kFlag:
      return StrCat(knob.name(), "=", knob.flag() ? "true" : "false");
    case v1::Knob::kText:
      return StrCat(knob.name(), "=", knob.text());
    default:
      return knob.name();
  }
}

// True when the value is what a job file gets that does not name the knob.
bool IsDefault(const v1::LossPlan& loss, const v1::Knob& knob) {
  const LossSchema* schema = FindLossSchema(loss.type());
  if (schema == nullptr) return false;
  const StatusOr<Knobs> defaults = CompleteKnobs(*schema, {});
  const auto found = defaults->find(knob.name());
  if (found == defaults->end()) return false;
  switch (knob.value_case()) {
    case v1::Knob::kNumber:
      return found->second == KnobValue(knob.number());
    case v1::Knob::kFlag:
      return found->second == KnobValue(knob.flag());
    case v1::Knob::kText:
      return found->second == KnobValue(knob.text());
    default:
      return false;
  }
}

// "cwd temperature=1", with the knobs that differ from their defaults; the term's own name in front when it is not the
// type's.
std::string LossText(const v1::LossPlan& loss) {
  std::string text =
      loss.name() == loss.type() || loss.name().empty() ? loss.type() : StrCat(loss.name(), ": ", loss.type());
  for (const v1::Knob& knob : loss.knobs()) {
    if (!IsDefault(loss, knob)) StrAppend(&text, " ", KnobText(knob));
  }
  if (!loss.adapter().empty() && loss.adapter() != "none") {
    StrAppend(&text, " ", loss.adapter(), " ", loss.student_channels(), "->", loss.teacher_channels());
  }
  return text;
}

// "2", "2 linear, warm-up 10%, until 80%"
std::string WeightText(const v1::LossPlan& loss) {
  std::string text = FormatNumber(loss.weight());
  const v1::WeightSchedulePlan& schedule = loss.weight_schedule();
  if (schedule.type() != "constant" && !schedule.type().empty()) StrAppend(&text, " ", schedule.type());
  if (schedule.warmup() > 0) StrAppend(&text, ", warm-up ", FormatNumber(schedule.warmup() * 100), "%");
  if (schedule.start() > 0) StrAppend(&text, ", from ", FormatNumber(schedule.start() * 100), "%");
  if (schedule.stop() > 0 && schedule.stop() < 1) {
    StrAppend(&text, ", until ", FormatNumber(schedule.stop() * 100), "%");
  }
  return text;
}

std::string RateText(const v1::OptimizerPlan& optimizer, const v1::SchedulePlan& schedule) {
  std::string text = StrCat(optimizer.type(), " ", FormatNumber(optimizer.lr()), " ", schedule.type());
  if (schedule.type() == "step") {
    StrAppend(&text, " x", FormatNumber(schedule.gamma()), " at ",
              absl::StrJoin(schedule.milestones(), ", ",
                            [](std::string* out, double share) { StrAppend(out, FormatNumber(share * 100), "%"); }));
  }
  if (schedule.warmup() > 0) StrAppend(&text, ", warm-up ", FormatNumber(schedule.warmup() * 100), "%");
  for (const v1::LrMultPlan& mult : optimizer.lr_mult()) {
    StrAppend(&text, ", x", FormatNumber(mult.factor()), " for ", absl::StrJoin(mult.modules(), ", "));
  }
  if (optimizer.ema_decay() > 0) StrAppend(&text, ", averaged ", FormatNumber(optimizer.ema_decay()));
  return text;
}

std::string TrainsText(const v1::StagePlan& stage) {
  const std::string input = stage.teacher_input().empty() ? "" : StrCat(" after the teacher's ", stage.teacher_input());
  return absl::StrJoin(stage.trainable_globs().empty() ? stage.trainable() : stage.trainable_globs(), ", ") + input;
}

std::string TapText(const std::string& tap) { return tap.empty() ? "(output)" : tap; }

}  // namespace

std::string ModelText(const v1::ModelSpec& spec) {
  std::string text = ShortArch(spec.arch());
  if (spec.width() > 0) StrAppend(&text, ", width ", spec.width());
  if (spec.num_classes() > 0) StrAppend(&text, ", ", spec.num_classes(), " classes");
  if (spec.in_channels() > 0) {
    StrAppend(&text, ", input ", spec.in_channels(), "x", spec.image_height(), "x", spec.image_width());
  }
  if (!spec.weights().empty()) {
    const std::string modules = absl::StrJoin(spec.weights_modules(), ", ");
    StrAppend(&text, ", ", modules, modules.empty() ? "" : " ", "from ", spec.weights(),
              spec.weights_of_teacher() ? " (the teacher's file)" : "");
  }
  return text;
}

std::string RenderPlan(const v1::JobPlan& plan, const TextOptions& options) {
  std::string out = StrCat("Plan of ", Paint(Printable(plan.name()), Style::kBold, options.color),
                           plan.preset().empty() ? "" : StrCat(" (preset ", Printable(plan.preset()), ")"), "\n");
  out += Line("student", ModelText(plan.student()));
  for (const v1::TeacherRef& teacher : plan.teachers()) {
    std::string text = StrCat(teacher.model(), " (", ModelText(teacher.spec()), ")");
    if (!teacher.digest().empty()) StrAppend(&text, ", digest ", teacher.digest().substr(0, 12));
    out += Line("teacher", text);
  }
  if (plan.teachers().empty()) out += Line("teacher", "none");
  out += Line("data", DataText(plan));
  out += Line("training", TrainingText(plan));
  out += "\n";

  Table table({Right("#"), Left("STAGE"), Right("STEPS"), Left("TRAINS"), Left("LOSS"), Right("WEIGHT"),
               Left("STUDENT TAP"), Left("TEACHER TAP"), Left("TEACHER"), Left("LEARNING RATE")});
  uint64_t steps = 0;
  for (int i = 0; i < plan.stages_size(); ++i) {
    const v1::StagePlan& stage = plan.stages(i);
    steps += stage.steps();
    // One row a loss; what belongs to the stage stands in its first row only.
    for (int j = 0; j == 0 || j < stage.losses_size(); ++j) {
      std::vector<Span> row(10);
      if (j == 0) {
        row[0].text = StrCat(i + 1);
        row[1] = {stage.name(), Style::kBold};
        row[2].text = StrCat(stage.steps());
        row[3].text = Truncate(Printable(TrainsText(stage)), kMaxTrainsWidth, options.utf8);
        row[8].text = stage.needs_teacher() ? "needed" : "not needed";
        row[9].text = RateText(stage.optimizer(), stage.schedule());
      }
      if (j < stage.losses_size()) {
        const v1::LossPlan& loss = stage.losses(j);
        row[4].text = LossText(loss);
        row[5].text = WeightText(loss);
        row[6].text = TapText(loss.student_tap());
        row[7].text = loss.needs_teacher() ? TapText(loss.teacher_tap()) : "-";
      }
      table.AddRow(std::move(row));
    }
  }
  out += table.Render(options);
  StrAppend(&out, "\n", Plural(plan.stages_size(), "stage"), ", ", Plural(steps, "step"), ", ",
            FormatCount(steps * plan.batch_size()), " images\n");
  return out;
}

}  // namespace distill::cli
