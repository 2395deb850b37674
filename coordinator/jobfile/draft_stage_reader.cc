#include <set>

#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "coordinator/jobfile/draft_reader.h"
#include "coordinator/jobfile/section_reader.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr size_t kMaxStages = 256;
constexpr size_t kMaxLosses = 64;

// The loss's own keys plus the knobs of its type; of all types while the type is unknown, so that one typo gives one
// message.
std::vector<std::string> LossKeys(const LossSchema* schema) {
  const KeyList base = JobSectionKeys("stages[].losses[]");
  std::vector<std::string> keys(base.begin(), base.end());
  for (const LossSchema& one : LossSchemas()) {
    if (schema != nullptr && &one != schema) continue;
    for (const KnobSchema& knob : one.knobs) keys.emplace_back(knob.name);
  }
  return keys;
}

void ReadKnobs(const SectionReader& section, const LossSchema& schema, LossDraft* loss) {
  for (const KnobSchema& knob : schema.knobs) {
    if (!section.Has(knob.name)) continue;
    KnobValue value;
    bool read = false;
    if (knob.type == KnobSchema::Type::kNumber) {
      double number = 0;
      read = section.Number(knob.name, {.minimum = -1e18}, &number);
      value = number;
    } else if (knob.type == KnobSchema::Type::kFlag) {
      bool flag = false;
      read = section.Flag(knob.name, &flag);
      value = flag;
    } else {
      std::string text;
      read = section.Text(knob.name, &text);
      value = text;
    }
    if (!read) {
      loss->broken = true;
      continue;
    }
    // One knob at a time, so that the message points at it.
    if (const StatusOr<Knobs> checked = CompleteKnobs(schema, {{std::string(knob.name), value}}); !checked.ok()) {
      section.Problem(knob.name, ToStd(checked.status().message()));
      loss->broken = true;
      continue;
    }
    loss->knobs[std::string(knob.name)] = value;
  }
}

// A feature loss names both taps, one on a map of the student its own; losses on logits or labels name none.
void ReadTaps(const SectionReader& section, const LossSchema& schema, LossDraft* loss) {
  for (const auto& [key, out] :
       {std::pair<std::string_view, std::string*>{"student", &loss->student_tap}, {"teacher", &loss->teacher_tap}}) {
    const bool own_map = schema.input == LossInput::kMap;
    if (schema.input != LossInput::kFeatures && !(own_map && key == "student")) {
      if (section.Has(key)) {
        section.Problem(key, StrCat("the loss '", schema.type,
                                    own_map ? "' reads no teacher" : "' reads the network's output and takes no tap"));
        loss->broken = true;
      }
      continue;
    }
    const bool read = section.Require(key) && section.Text(key, out);
    if (read && out->empty()) section.Problem(key, "must name a module; distillctl taps MODEL lists them");
    loss->broken = loss->broken || !read || out->empty();
  }
  std::vector<std::string> adapters = {"auto"};
  for (const std::string_view kind : AdapterKinds()) adapters.emplace_back(kind);
  if (section.Has("adapter") && !section.Choice("adapter", adapters, &loss->adapter)) loss->broken = true;
  const bool takes_adapter = schema.input == LossInput::kFeatures && schema.channels == ChannelRule::kAdapter;
  if (!takes_adapter && loss->adapter != "auto" && loss->adapter != "none") {
    section.Problem("adapter", StrCat("the loss '", schema.type, "' takes no adapter"));
    loss->broken = true;
  }
  if (!section.Has("tap_position")) return;
  if (!section.Choice("tap_position", {"post_relu", "pre_relu"}, &loss->tap_position)) loss->broken = true;
  if (schema.input != LossInput::kFeatures && loss->tap_position == "pre_relu") {
    section.Problem("tap_position", StrCat("the loss '", schema.type, "' compares no maps"));
    loss->broken = true;
  }
}

void ReadWeightSchedule(const YamlNodePtr& node, const std::string& path, Problems* problems, WeightSchedulePlan* out) {
  const SectionReader section(node, path, JobSectionKeys("stages[].losses[].weight_schedule"), problems);
  section.Choice("type", {"constant", "linear", "cosine"}, &out->type);
  section.Number("warmup", {.minimum = 0, .maximum = 1}, &out->warmup);
  section.Number("start", {.minimum = 0, .maximum = 1, .maximum_exclusive = true}, &out->start);
  section.Number("stop", {.minimum = 0, .maximum = 1, .minimum_exclusive = true}, &out->stop);
  if (section.present() && out->start >= out->stop) {
    section.Problem(section.Has("stop") ? "stop" : "start",
                    StrCat("the weight starts at ", out->start, " of the stage and stops at ", out->stop,
                           "; start must be below stop"));
  }
}

void ReadOwn(const YamlNodePtr& node, const std::string& path, Problems* problems, OwnParametersPlan* out) {
  const SectionReader section(node, path, JobSectionKeys("stages[].losses[].own"), problems);
  section.Number("lr_mult", {.minimum = 0, .maximum = 1e6}, &out->lr_mult);
  section.Flag("constant_lr", &out->constant_lr);
  section.Number("weight_decay", {.minimum = 0}, &out->weight_decay);
}

LossDraft ReadLoss(const YamlNodePtr& node, const std::string& path, Problems* problems) {
  LossDraft loss;
  const YamlNodePtr type_node = node->kind == YamlNode::Kind::kMap ? node->Find("type") : nullptr;
  const LossSchema* schema =
      type_node != nullptr && type_node->kind == YamlNode::Kind::kScalar ? FindLossSchema(type_node->text) : nullptr;
  const SectionReader section(node, path, LossKeys(schema), problems);
  loss.mark = node->mark;
  loss.name_mark = section.Mark("name");
  loss.student_mark = section.Mark("student");
  loss.teacher_mark = section.Mark("teacher");
  loss.adapter_mark = section.Mark("adapter");
  loss.broken = true;
  if (!section.present() || !section.Require("type") || !section.Text("type", &loss.type)) return loss;
  if (schema == nullptr) {
    std::vector<std::string> types;
    for (const LossSchema& one : LossSchemas()) types.emplace_back(one.type);
    std::string list;
    for (const std::string& type : types) StrAppend(&list, list.empty() ? "" : ", ", type);
    section.Problem("type", StrCat("unknown loss '", Shorten(loss.type), "'", DidYouMean(loss.type, types), " (one of ",
                                   list, ")"));
    return loss;
  }
  loss.broken = false;
  if (section.Text("name", &loss.name) && !IsPlainName(loss.name)) {
    section.Problem("name", StrCat("'", Shorten(loss.name),
                                   "' is no loss name: letters, digits and inner '-', '.', '_', at most 63"));
    loss.broken = true;
  }
  section.Number("weight", {.minimum = 0, .maximum = 1e9}, &loss.weight);
  ReadWeightSchedule(section.Find("weight_schedule"), path + ".weight_schedule", problems, &loss.weight_schedule);
  ReadOwn(section.Find("own"), path + ".own", problems, &loss.own);
  ReadTaps(section, *schema, &loss);
  ReadKnobs(section, *schema, &loss);
  return loss;
}

void ReadLosses(const SectionReader& section, const std::string& path, Problems* problems, StageDraft* stage) {
  if (!section.Require("losses")) return;
  const YamlNodePtr list = section.Find("losses");
  if (list->kind != YamlNode::Kind::kSequence || list->items.empty() || list->items.size() > kMaxLosses) {
    section.Problem("losses", list->kind == YamlNode::Kind::kSequence
                                  ? StrCat("expected 1 to ", kMaxLosses, " losses, got ", list->items.size())
                                  : StrCat("expected a list of losses, got ", DescribeValue(*list)));
    return;
  }
  std::set<std::string> names;
  for (size_t i = 0; i < list->items.size(); ++i) {
    stage->losses.push_back(ReadLoss(list->items[i], StrCat(path, ".losses[", i, "]"), problems));
    const LossDraft& loss = stage->losses.back();
    if (!loss.name.empty() && !names.insert(loss.name).second) {
      problems->Add(loss.name_mark,
                    StrCat(path, ".losses[", i, "].name: '", Shorten(loss.name), "' is used twice in this stage"));
    }
  }
}

StageDraft ReadStage(const YamlNodePtr& node, const std::string& path, const JobDraft& job, Problems* problems) {
  StageDraft stage;
  const SectionReader section(node, path, JobSectionKeys("stages[]"), problems);
  stage.mark = node->mark;
  stage.optimizer = job.optimizer;
  stage.schedule = job.schedule;
  if (!section.present()) return stage;
  stage.name_mark = section.Mark("name");
  if (section.Require("name") && section.Text("name", &stage.name) && !IsPlainName(stage.name)) {
    section.Problem("name", StrCat("'", Shorten(stage.name),
                                   "' is no stage name: letters, digits and inner '-', '.', '_', at most 63"));
  }
  if (section.Texts("trainable", &stage.trainable, &stage.trainable_marks) && stage.trainable.empty()) {
    section.Problem("trainable", "names no module; leave the key out to train the whole student");
  }
  stage.length = ReadLength(section);
  if (!stage.length.given()) problems->Add(node->mark, StrCat(path, ": give the stage's length as epochs or steps"));
  ReadOptimizer(section.Find("optimizer"), path + ".optimizer", problems, &stage.optimizer);
  ReadSchedule(section.Find("schedule"), path + ".schedule", problems, &stage.schedule);
  section.Choice("frozen_bn", {"eval", "train"}, &stage.frozen_bn);
  section.Choice("select", {"last", "best"}, &stage.select);
  section.Integer("patience", 0, 1'000'000, &stage.patience);
  ReadSelectBy(section, stage.select, stage.patience, &stage.select_by, &stage.select_by_mark);
  stage.select_mark = section.Mark(section.Has("select") ? "select" : "patience");
  section.Flag("unlabelled_ok", &stage.unlabelled_ok);
  stage.unlabelled_mark = section.Mark("unlabelled_ok");
  section.Text("teacher_input", &stage.teacher_input);
  section.Text("student_input", &stage.student_input);
  stage.input_mark = section.Mark(section.Has("teacher_input") ? "teacher_input" : "student_input");
  if (stage.teacher_input.empty() != stage.student_input.empty()) {
    problems->Add(stage.input_mark,
                  StrCat(path,
                         ": teacher_input and student_input belong together: the teacher's map at the one takes "
                         "the place of the student's at the other"));
  }
  ReadLosses(section, path, problems, &stage);
  return stage;
}

}  // namespace

std::vector<StageDraft> ReadStages(const YamlNodePtr& list, const JobDraft& job, Problems* problems) {
  std::vector<StageDraft> stages;
  if (list->kind != YamlNode::Kind::kSequence || list->items.empty() || list->items.size() > kMaxStages) {
    problems->Add(list->mark, list->kind == YamlNode::Kind::kSequence
                                  ? StrCat("stages: expected 1 to ", kMaxStages, " stages, got ", list->items.size())
                                  : StrCat("stages: expected a list of stages, got ", DescribeValue(*list)));
    return stages;
  }
  std::set<std::string> names;
  for (size_t i = 0; i < list->items.size(); ++i) {
    const std::string path = StrCat("stages[", i, "]");
    stages.push_back(ReadStage(list->items[i], path, job, problems));
    const StageDraft& stage = stages.back();
    if (!stage.name.empty() && !names.insert(stage.name).second) {
      problems->Add(stage.name_mark,
                    StrCat(path, ".name: '", Shorten(stage.name), "' is used twice; stages are told apart by name"));
    }
  }
  return stages;
}

}  // namespace distill
