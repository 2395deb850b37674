#include "coordinator/jobfile/draft_reader.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_join.h"
#include "common/plan/loss_schema.h"
#include "common/plan/transform_schema.h"
#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "coordinator/jobfile/pairs_reader.h"
#include "coordinator/jobfile/presets.h"
#include "coordinator/jobfile/section_reader.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr uint64_t kMaxSteps = 1'000'000'000;
constexpr uint64_t kMaxImages = 10'000'000'000;
constexpr uint32_t kMaxImageSide = 16384;
constexpr NumberRange kPositive{.minimum = 0, .minimum_exclusive = true};
constexpr NumberRange kPhaseShare{.minimum = 0, .maximum = 1e6};
constexpr size_t kMaxSskdStages = 256;
constexpr size_t kMaxTransforms = 64;
constexpr NumberRange kShare{.minimum = 0, .maximum = 1};
constexpr NumberRange kPartOfAll{.minimum = 0, .maximum = 1, .minimum_exclusive = true, .maximum_exclusive = true};
constexpr NumberRange kShareBelowOne{.minimum = 0, .maximum = 1, .maximum_exclusive = true};

void ReadPath(const SectionReader& section, std::string_view key, std::string* out) {
  std::string path;
  if (!section.Text(key, &path)) return;
  if (const std::string problem = PathProblem(path); !problem.empty()) {
    section.Problem(key, StrCat("the path '", Shorten(path), "' ", problem));
    return;
  }
  *out = path;
}

void ReadInitialWeights(const SectionReader& student, JobDraft* job) {
  ReadPath(student, "weights", &job->plan.student.weights);
  std::vector<YamlMark> marks;
  student.Texts("weights_modules", &job->weights_globs, &marks);
  job->weights_mark = student.Mark("weights_modules");
}

void ReadStudent(const YamlNodePtr& node, Problems* problems, JobDraft* job) {
  ModelSpec* const spec = &job->plan.student;
  const SectionReader student(node, "student", JobSectionKeys("student"), problems);
  if (!student.present()) return;
  if (student.Has("archive")) {
    job->archive_mark = student.Mark("archive");
    if (student.Text("archive", &job->archive) && !IsPlainName(job->archive)) {
      student.Problem("archive", StrCat("'", Shorten(job->archive),
                                        "' is no name of an archive: letters, digits and inner '-', '.', '_', at most "
                                        "63; without .pt"));
      job->archive.clear();
    }
    for (const std::string_view key : {"arch", "width", "num_classes", "in_channels", "image", "mean", "std"}) {
      if (student.Has(key)) {
        student.Problem(key, "an archive says this itself (in the .yaml file beside it); leave it out");
      }
    }
    ReadInitialWeights(student, job);
    return;
  }
  if (student.Require("arch")) student.Choice("arch", Architecture::Names(), &spec->arch);
  student.Integer("width", 1, 4096, &spec->width);
  if (student.Require("num_classes")) student.Integer("num_classes", 1, 1'000'000, &spec->num_classes);
  if (student.Require("in_channels")) student.Integer("in_channels", 1, 4096, &spec->in_channels);
  if (student.Require("image")) {
    std::vector<double> sides;
    const NumberRange range{.minimum = 1, .maximum = kMaxImageSide};
    if (student.Numbers("image", range, &sides)) {
      const bool whole = sides.size() == 2 && sides[0] == static_cast<uint32_t>(sides[0]) &&
                         sides[1] == static_cast<uint32_t>(sides[1]);
      if (whole) {
        spec->image_height = static_cast<uint32_t>(sides[0]);
        spec->image_width = static_cast<uint32_t>(sides[1]);
      } else {
        student.Problem("image", "expected [height, width] in whole pixels");
      }
    }
  }
  for (const auto& [key, out] : {std::pair{"mean", &spec->mean}, {"std", &spec->std}}) {
    const bool is_std = out == &spec->std;
    std::vector<double> values;
    if (!student.Numbers(
            key, is_std ? NumberRange{.minimum = 0, .maximum = 1e6, .minimum_exclusive = true} : NumberRange{-1e6, 1e6},
            &values)) {
      continue;
    }
    if (spec->in_channels != 0 && values.size() != spec->in_channels) {
      student.Problem(key, StrCat("has ", values.size(), " values, but the student has in_channels ", spec->in_channels,
                                  "; give one per channel"));
    }
    out->assign(values.begin(), values.end());
  }
  ReadInitialWeights(student, job);
  if (student.Has("weights_modules") && !student.Has("weights")) {
    student.Problem("weights_modules", "says which modules come from `weights`, which is missing");
  }
}

// One transform: its name, or a map of its name to its knobs.
void ReadTransform(const YamlNodePtr& node, const std::string& path, bool test, Problems* problems,
                   std::vector<TransformPlan>* transforms) {
  TransformPlan given;
  YamlNodePtr knobs;
  if (node->kind == YamlNode::Kind::kScalar) {
    given.type = node->text;
  } else if (node->kind == YamlNode::Kind::kMap && node->entries.size() == 1) {
    given.type = node->entries[0].key;
    knobs = node->entries[0].value;
  } else {
    problems->Add(node->mark, StrCat(path,
                                     ": expected the name of a transform, or one with its settings, as in `pad_crop: "
                                     "{padding: 4}`; got ",
                                     node->kind == YamlNode::Kind::kMap
                                         ? StrCat("a map of ", node->entries.size(), " keys (write a `-` before each)")
                                         : DescribeValue(*node)));
    return;
  }
  const TransformSchema* const schema = FindTransformSchema(given.type);
  if (knobs != nullptr && schema != nullptr) {
    std::vector<std::string> names;
    for (const TransformKnob& knob : schema->knobs) names.emplace_back(knob.name);
    const std::string place = StrCat(path, ".", given.type);
    const SectionReader section(knobs, place, names, problems);
    if (!section.present() || knobs->kind != YamlNode::Kind::kMap) return;
    for (const std::string& name : names) {
      const YamlNodePtr value = section.Find(name);
      if (value == nullptr) continue;
      std::vector<double> numbers(1);
      const bool read = value->kind == YamlNode::Kind::kSequence
                            ? section.Numbers(name, {.minimum = -1e18, .maximum = 1e18}, &numbers)
                            : section.Number(name, {.minimum = -1e18, .maximum = 1e18}, &numbers[0]);
      if (!read) return;
      given.values[name] = std::move(numbers);
    }
    for (const YamlEntry& entry : knobs->entries) {
      if (std::find(names.begin(), names.end(), entry.key) == names.end()) return;  // was reported
    }
  }
  StatusOr<TransformPlan> transform = CompleteTransform(given);
  if (!transform.ok()) {
    problems->Add(node->mark, StrCat(path, ": ", transform.status().message()));
  } else if (test && schema->random) {
    problems->Add(node->mark, StrCat(path, ": ", given.type,
                                     " is random, but test images must look the same each time they are "
                                     "measured on; resize and center_crop are not"));
  } else {
    transforms->push_back(*std::move(transform));
  }
}

void ReadTransforms(const SectionReader& data, Problems* problems, JobDraft* job) {
  JobPlan* const plan = &job->plan;
  const SectionReader section(data.Find("transforms"), "data.transforms", JobSectionKeys("data.transforms"), problems);
  bool all_read = true;
  for (const auto& [key, out] :
       {std::pair{"train", &plan->data.train_transforms}, {"test", &plan->data.test_transforms}}) {
    const YamlNodePtr list = section.Find(key);
    if (list == nullptr) continue;
    if (list->kind != YamlNode::Kind::kSequence) {
      section.Problem(key, StrCat("expected a list of transforms, got ", DescribeValue(*list)));
      return;
    }
    if (list->items.size() > kMaxTransforms) {
      section.Problem(key, StrCat("has ", list->items.size(), " transforms; at most ", kMaxTransforms));
      return;
    }
    for (size_t i = 0; i < list->items.size(); ++i) {
      ReadTransform(list->items[i], StrCat("data.transforms.", key, "[", i, "]"), key == std::string_view("test"),
                    problems, out);
    }
    all_read = all_read && out->size() == list->items.size();
  }
  if (!all_read) return;
  job->train_transforms_mark = section.Mark("train");
  job->test_transforms_mark = section.Mark("test");
  std::map<std::string, bool> any;
  for (const auto& [key, list] :
       {std::pair{"train", &plan->data.train_transforms}, {"test", &plan->data.test_transforms}}) {
    const StatusOr<TransformedSize> size = SizeAfter(*list);
    if (!size.ok()) {
      section.Problem(key, ToStd(size.status().message()));
      plan->data.train_transforms.clear();  // nothing more is to be said of them
      plan->data.test_transforms.clear();
      return;
    }
    any[key] = size->any;
  }
  const bool augments = std::any_of(plan->data.train_transforms.begin(), plan->data.train_transforms.end(),
                                    [](const TransformPlan& transform) { return transform.type == "rand_augment"; });
  if (augments && plan->data.format == "segmentation_folder") {
    section.Problem("train",
                    "rand_augment shears, shifts and turns pictures without their label maps; take random_scale, "
                    "random_crop, horizontal_flip and color_jitter");
  }
  if (plan->data.holdout > 0 && any["train"] && !any["test"]) {
    section.Problem("test",
                    "held-out images are training images seen through the test transforms, which do not bring "
                    "them to the student's size as those for training do; add resize or center_crop");
  }
}

void ReadSplit(const SectionReader& data, Problems* problems, JobDraft* job) {
  const SectionReader section(data.Find("split"), "data.split", JobSectionKeys("data.split"), problems);
  if (!section.present()) return;
  const std::string& format = job->plan.data.format;
  if (format == "idx" || format == "cifar") {
    data.Problem("split",
                 StrCat("chooses by the names of picture files; format: ", format, " has test files of its own"));
    return;
  }
  SplitPlan split{.by = format == "segmentation_folder" ? "image" : "class"};
  if (section.Require("test")) section.Number("test", kPartOfAll, &split.test);
  section.Choice("by", {"class", "image"}, &split.by);
  if (split.by == "class" && format == "segmentation_folder") {
    section.Problem("by", "class needs one class per image; segmentation_folder has many: take image");
  }
  section.Integer("seed", 0, UINT64_MAX, &split.seed);
  job->plan.data.split = split;
}

void ReadData(const YamlNodePtr& node, Problems* problems, JobDraft* job) {
  const SectionReader data(node, "data", JobSectionKeys("data"), problems);
  if (!data.present()) return;
  data.Choice("format", {"idx", "cifar", "image_folder", "image_list", "segmentation_folder"}, &job->plan.data.format);
  job->format_mark = data.Mark("format");
  data.Integer("shrink", 1, 64, &job->plan.data.shrink);
  const bool is_idx = job->plan.data.format == "idx", is_cifar = job->plan.data.format == "cifar";
  const char* const plain = is_idx ? "IDX" : "CIFAR";  // formats of plain pixels
  if (data.Has("shrink") && (is_idx || is_cifar)) {
    data.Problem("shrink", StrCat(plain, " images are taken as they are; shrink is for picture files"));
  }
  if (data.Require("path")) ReadPath(data, "path", &job->plan.data.path);
  ReadPath(data, "unlabelled", &job->plan.data.unlabelled);
  job->unlabelled_mark = data.Mark("unlabelled");
  const bool unlabelled = data.Has("unlabelled");
  if (const std::string& name = job->plan.data.unlabelled;
      name == "train" || name == "test" || name == "val" || name == "t10k") {
    data.Problem("unlabelled", StrCat("'", name, "' holds the images with labels; name what holds those without"));
  }
  if (unlabelled && job->plan.data.format == "idx" && job->plan.data.unlabelled.find('/') != std::string::npos) {
    data.Problem("unlabelled", "of IDX files is the start of a file name, NAME-images-idx3-ubyte beside the others");
  }
  if (unlabelled && is_cifar) {
    data.Problem("unlabelled", "is for other formats: CIFAR's files all have labels");
  }
  uint64_t size = 0;
  if (data.Integer("train_size", unlabelled ? 0 : 1, kMaxImages, &size)) job->plan.data.train_size = size;
  if (data.Integer("unlabelled_size", 1, kMaxImages, &size)) job->plan.data.unlabelled_size = size;
  if (data.Has("unlabelled_size") && !unlabelled) {
    data.Problem("unlabelled_size", "counts the images of `unlabelled`, which is missing");
  }
  data.Integer("train_limit", 0, kMaxImages, &job->plan.data.train_limit);
  if (job->plan.data.train_size && job->plan.data.train_limit > *job->plan.data.train_size) {
    data.Problem("train_limit",
                 StrCat(job->plan.data.train_limit, " is more than data.train_size ", *job->plan.data.train_size));
  }
  data.Integer("test_limit", 0, kMaxImages, &job->plan.data.test_limit);
  data.Integer("holdout", 0, kMaxImages, &job->plan.data.holdout);
  const uint64_t rank_batch = job->plan.batch_size / (uint64_t{job->plan.students} * job->plan.accumulate);
  if (rank_batch > 0 && job->plan.data.holdout % rank_batch != 0) {
    data.Problem("holdout", StrCat(job->plan.data.holdout, " is no multiple of a rank's ",
                                   job->plan.accumulate > 1 ? "part of a batch, " : "batch of ", rank_batch, "; take ",
                                   std::max<uint64_t>(1, job->plan.data.holdout / rank_batch) * rank_batch));
  }
  ReadTransforms(data, problems, job);
  data.Choice("on_bad_image", {"fail", "skip"}, &job->plan.data.on_bad_image);
  data.Number("bad_image_limit", kShare, &job->plan.data.bad_image_limit);
  if (data.Has("bad_image_limit") && job->plan.data.on_bad_image != "skip") {
    data.Problem("bad_image_limit", "is the limit of on_bad_image: skip, which is not set");
  }
  if (data.Has("on_bad_image") && (is_idx || is_cifar)) {
    data.Problem("on_bad_image",
                 StrCat(plain, " files hold plain pixels, of which none can be bad alone; leave it out"));
  }
  ReadSplit(data, problems, job);
  ReadPairs(data, problems, job);
}

// What sskd.stages[] and sskd.head have in common.
void ReadPhase(const SectionReader& section, const std::string& path, const JobDraft& job, Problems* problems,
               double* share, OptimizerDraft* optimizer, SchedulePlan* schedule) {
  *optimizer = job.optimizer;
  *schedule = job.schedule;
  section.Number("share", kPhaseShare, share);
  if (section.Has("share") && !job.sskd.phase_shares.empty()) {
    section.Problem("share", "give either this or sskd.phase_shares");
  }
  ReadOptimizer(section.Find("optimizer"), path + ".optimizer", problems, optimizer);
  ReadSchedule(section.Find("schedule"), path + ".schedule", problems, schedule);
  if (section.Has("schedule") && !job.sskd.restart_lr) {
    section.Problem("schedule",
                    "sskd.restart_lr: false runs the job's schedule once over all phases; leave one of the "
                    "two out");
  }
}

void ReadSskdStage(const YamlNodePtr& node, const std::string& path, Problems* problems, JobDraft* job) {
  const SectionReader section(node, path, JobSectionKeys("sskd.stages[]"), problems);
  SskdStageDraft stage;
  stage.mark = node->mark;
  if (section.Require("student")) section.Text("student", &stage.student);
  if (section.Require("teacher")) section.Text("teacher", &stage.teacher);
  stage.student_mark = section.Mark("student");
  stage.teacher_mark = section.Mark("teacher");
  stage.name_mark = section.Mark("name");
  if (section.Text("name", &stage.name) && !IsPlainName(stage.name)) {
    section.Problem("name", StrCat("'", Shorten(stage.name),
                                   "' is no stage name: letters, digits and inner '-', '.', '_', at most 63"));
  }
  ReadPhase(section, path, *job, problems, &stage.share, &stage.optimizer, &stage.schedule);
  if (job->sskd.policy == "joint") {
    for (const std::string_view key : {"name", "optimizer", "schedule"}) {
      if (section.Has(key)) {
        section.Problem(key, StrCat("the policy joint trains all pairs in one phase, named mimic, with the job's ",
                                    key == "name" ? "optimizer and schedule" : key, "; leave this out"));
      }
    }
  }
  // What is missing was reported; a pair without a tap must not be looked up.
  if (!stage.student.empty() && !stage.teacher.empty()) job->sskd.stages.push_back(std::move(stage));
}

void ReadSskdHead(const YamlNodePtr& node, Problems* problems, JobDraft* job) {
  SskdHeadDraft* const head = &job->sskd.head;
  const SectionReader section(node, "sskd.head", JobSectionKeys("sskd.head"), problems);
  ReadPhase(section, "sskd.head", *job, problems, &head->share, &head->optimizer, &head->schedule);
  std::string loss;
  if (section.Text("loss", &loss) && loss != "cross_entropy") {
    const LossSchema* schema = FindLossSchema(loss);
    section.Problem("loss", schema != nullptr && ReadsTeacher(schema->input)
                                ? StrCat("'", loss,
                                         "' reads the teacher, which is released before the head's phase; use "
                                         "cross_entropy, or write the stages out (stages instead of preset)")
                                : StrCat("unknown loss '", Shorten(loss), "' of the head; use cross_entropy"));
  }
  section.Number("label_smoothing", kShareBelowOne, &head->label_smoothing);
  std::string init = "random";
  section.Choice("init", {"random", "teacher"}, &init);
  head->from_teacher = init == "teacher";
  head->init_mark = section.Mark("init");
  if (!head->from_teacher) return;
  if (job->plan.student.weights.empty()) {
    section.Problem("init",
                    "'teacher': students do not hold the teacher's weights and read its head from a file; put a copy "
                    "of the teacher's safetensors file below their model folder and name it: student.weights");
  } else if (!job->weights_globs.empty()) {
    section.Problem("init", "'teacher' takes the head alone from student.weights; leave student.weights_modules out");
  }
}

// Pairs that the user named, and what single phases do differently. Reads what the other keys of sskd say.
void ReadSskdPhases(const SectionReader& sskd, Problems* problems, JobDraft* job) {
  ReadSskdHead(sskd.Find("head"), problems, job);
  const YamlNodePtr list = sskd.Find("stages");
  if (list == nullptr) return;
  job->sskd.stages_given = true;
  job->sskd.stages_mark = sskd.Mark("stages");
  if (list->kind != YamlNode::Kind::kSequence || list->items.empty() || list->items.size() > kMaxSskdStages) {
    sskd.Problem("stages", list->kind == YamlNode::Kind::kSequence
                               ? StrCat("expected 1 to ", kMaxSskdStages, " pairs, got ", list->items.size())
                               : StrCat("expected a list of pairs, got ", DescribeValue(*list)));
    return;
  }
  std::set<std::string> names = {"head", "finetune"};
  for (size_t i = 0; i < list->items.size(); ++i) {
    const std::string path = StrCat("sskd.stages[", i, "]");
    const size_t before = job->sskd.stages.size();
    ReadSskdStage(list->items[i], path, problems, job);
    if (job->sskd.stages.size() == before) continue;
    SskdStageDraft* const stage = &job->sskd.stages.back();
    if (stage->name.empty()) stage->name = StrCat("mimic-", i + 1);
    if (!names.insert(stage->name).second) {
      problems->Add(stage->name_mark, StrCat(path, ".name: '", Shorten(stage->name),
                                             "' is the name of another phase; phases are told apart by name"));
    }
  }
  if (job->sskd.stages.size() != list->items.size()) job->sskd.stages.clear();
}

void ReadPresetOptions(const SectionReader& top, Problems* problems, JobDraft* job) {
  const SectionReader kd(top.Find("kd"), "kd", JobSectionKeys("kd"), problems);
  kd.Number("temperature", kPositive, &job->kd.temperature);
  kd.Number("weight", kShare, &job->kd.weight);
  const SectionReader cwd(top.Find("cwd"), "cwd", JobSectionKeys("cwd"), problems);
  cwd.Number("temperature", kPositive, &job->cwd.temperature);
  cwd.Number("weight", kPositive, &job->cwd.weight);
  cwd.Number("kd_weight", kShare, &job->cwd.kd_weight);
  cwd.Number("kd_temperature", kPositive, &job->cwd.kd_temperature);
  for (const auto& [name, options] :
       {std::pair<std::string, LastStageOptions*>{"channel_transform", &job->channel_transform}, {"tat", &job->tat}}) {
    const SectionReader section(top.Find(name), name, JobSectionKeys(name), problems);
    section.Number("weight", kPositive, &options->weight);
    section.Number("kd_weight", kShare, &options->kd_weight);
    section.Number("kd_temperature", kPositive, &options->kd_temperature);
  }
  const SectionReader sskd(top.Find("sskd"), "sskd", JobSectionKeys("sskd"), problems);
  sskd.Choice("policy", SskdPolicies(), &job->sskd.policy);
  std::vector<std::string> adapters = {"auto"};
  for (const std::string_view kind : AdapterKinds()) adapters.emplace_back(kind);
  sskd.Choice("adapter", adapters, &job->sskd.adapter);
  sskd.Choice("feature_loss", {"l2", "l1", "smooth_l1"}, &job->sskd.feature_loss);
  sskd.Choice("reduction", {"mean", "sum_over_batch"}, &job->sskd.reduction);
  sskd.Choice("spatial_mismatch", {"error", "pool_larger", "teacher_to_student", "student_to_teacher"},
              &job->sskd.spatial_mismatch);
  sskd.Choice("tap_position", {"post_relu", "pre_relu"}, &job->sskd.tap_position);
  sskd.Choice("frozen_bn", {"eval", "train"}, &job->sskd.frozen_bn);
  sskd.Flag("restart_lr", &job->sskd.restart_lr);
  sskd.Choice("select", {"last", "best"}, &job->sskd.select);
  sskd.Integer("patience", 0, 1'000'000, &job->sskd.patience);
  ReadSelectBy(sskd, job->sskd.select, job->sskd.patience, &job->sskd.select_by, &job->sskd.select_by_mark);
  sskd.Flag("unlabelled_ok", &job->sskd.unlabelled_ok);
  job->sskd.unlabelled_mark = sskd.Mark("unlabelled_ok");
  sskd.Numbers("phase_shares", kPhaseShare, &job->sskd.phase_shares);
  job->sskd.phase_shares_mark = sskd.Mark("phase_shares");
  ReadSskdPhases(sskd, problems, job);
  const SectionReader finetune(sskd.Find("finetune"), "sskd.finetune", JobSectionKeys("sskd.finetune"), problems);
  job->sskd.finetune_lr = job->optimizer.lr / 10;
  finetune.Number("lr", kPositive, &job->sskd.finetune_lr);
  job->sskd.finetune = ReadLength(finetune);
  if (finetune.present() && !job->sskd.finetune.given()) {
    problems->Add(finetune.mark(), "sskd.finetune: give its length as epochs or steps (it comes on top of the budget)");
  }
  for (const std::string& name : PresetNames()) {
    if (name != "scratch" && top.Has(name) && job->preset != name) {
      top.Problem(name, StrCat("these options belong to the preset '", name, "', but the job has ",
                               job->preset.empty() ? "no preset" : StrCat("preset '", job->preset, "'")));
    }
  }
}

// `preset` with `budget`, or `stages`: one of the two.
void ReadSchedulePlan(const SectionReader& top, Problems* problems, JobDraft* job) {
  if (top.Choice("preset", PresetNames(), &job->preset)) job->preset_mark = top.Mark("preset");
  const SectionReader budget(top.Find("budget"), "budget", JobSectionKeys("budget"), problems);
  job->budget = ReadLength(budget);
  ReadPresetOptions(top, problems, job);
  const bool has_stages = top.Has("stages");
  if (has_stages && top.Has("preset")) {
    top.Problem("preset", "give either a preset or stages, not both");
  } else if (!has_stages && !top.Has("preset")) {
    problems->Add(top.mark(), StrCat("missing 'preset' (one of ", absl::StrJoin(PresetNames(), ", "), ") or 'stages'"));
  } else if (has_stages) {
    if (top.Has("budget")) {
      top.Problem("budget", "belongs to presets; with stages, each stage has its own epochs or steps");
    }
  } else if (!job->budget.given()) {
    problems->Add(budget.present() ? budget.mark() : top.mark(),
                  "a preset needs its length: budget: {epochs: ...} or budget: {steps: ...}");
  }
  if (has_stages) job->stages = ReadStages(top.Find("stages"), *job, problems);
}

// [height, width] in whole pixels. Nothing with a problem, or where the key is absent.
std::vector<uint32_t> ReadSides(const SectionReader& section, std::string_view key) {
  std::vector<double> sides;
  if (!section.Has(key) || !section.Numbers(key, {.minimum = 1, .maximum = 8192}, &sides)) return {};
  if (sides.size() != 2 || sides[0] != std::floor(sides[0]) || sides[1] != std::floor(sides[1])) {
    section.Problem(key, "expected [height, width] in whole pixels");
    return {};
  }
  return {static_cast<uint32_t>(sides[0]), static_cast<uint32_t>(sides[1])};
}

// How pictures are shown when they are measured.
void ReadViews(const SectionReader& evaluate, JobDraft* job) {
  JobPlan& plan = job->plan;
  constexpr size_t kMostScales = 32;
  job->scales_mark = evaluate.Mark("scales");
  job->window_mark = evaluate.Mark("window");
  if (evaluate.Has("scales") && evaluate.Numbers("scales", {.minimum = 0.1, .maximum = 8}, &plan.evaluate_scales) &&
      (plan.evaluate_scales.empty() || plan.evaluate_scales.size() > kMostScales)) {
    evaluate.Problem("scales", StrCat("has ", plan.evaluate_scales.size(), " scales; give 1 to ", kMostScales));
    plan.evaluate_scales.clear();
  }
  plan.evaluate_window = ReadSides(evaluate, "window");
  plan.evaluate_stride = ReadSides(evaluate, "stride");
  const std::vector<uint32_t>&window = plan.evaluate_window, &stride = plan.evaluate_stride;
  if (evaluate.Has("stride") && !evaluate.Has("window")) {
    evaluate.Problem("stride",
                     "is the way from one window to the next; say how large they are: window: [height, width]");
  }
  if (window.empty()) {
    plan.evaluate_stride.clear();
    return;
  }
  if (stride.empty()) {
    for (const uint32_t side : window) plan.evaluate_stride.push_back((2 * side + 2) / 3);
  } else if (stride[0] > window[0] || stride[1] > window[1]) {
    evaluate.Problem("stride", StrCat("[", stride[0], ", ", stride[1], "] is longer than the window [", window[0], ", ",
                                      window[1], "], so that pixels between windows would have no answer"));
  } else if (16 * stride[0] < window[0] || 16 * stride[1] < window[1]) {
    evaluate.Problem("stride", StrCat("[", stride[0], ", ", stride[1], "] is less than a sixteenth of the window [",
                                      window[0], ", ", window[1], "]: each pixel would be answered 256 times or more"));
  }
}

}  // namespace

LengthDraft ReadLength(const SectionReader& section) {
  LengthDraft length;
  length.mark = section.mark();
  uint64_t steps = 0;
  double epochs = 0;
  if (section.Integer("steps", 0, kMaxSteps, &steps)) {
    length.steps = steps;
    length.mark = section.Mark("steps");
  }
  if (section.Number("epochs", {.minimum = 0, .maximum = 1e6}, &epochs)) {
    length.epochs = epochs;
    length.mark = section.Mark("epochs");
  }
  if (section.Has("steps") && section.Has("epochs")) {
    section.Problem("epochs", "give either epochs or steps, not both");
    length.epochs.reset();
  }
  // Given but wrong was reported already; count it as given, so that no second problem says it is missing.
  if (!length.given() && (section.Has("steps") || section.Has("epochs"))) length.steps = 1;
  return length;
}

JobDraft ReadDraft(const YamlNodePtr& root, Problems* problems) {
  JobDraft job;
  JobPlan& plan = job.plan;
  const SectionReader top(root, "", JobSectionKeys(""), problems);
  if (!top.present()) return job;
  if (top.Require("name") && top.Text("name", &plan.name) && !IsJobName(plan.name)) {
    top.Problem("name", StrCat("'", Shorten(plan.name),
                               "' is no job name: lower-case letters, digits and inner '-', at most 63"));
  }
  top.Integer("seed", 0, UINT64_MAX, &plan.seed);
  top.Integer("students", 1, 1024, &plan.students);
  top.Integer("threads", 1, 1024, &plan.threads);
  top.Integer("batch_size", 1, 1 << 20, &plan.batch_size);
  if (plan.batch_size % plan.students != 0) {
    problems->Add(top.Mark("batch_size"),
                  StrCat("batch_size: ", plan.batch_size, " is not divisible by students ", plan.students, "; take ",
                         std::max(1u, plan.batch_size / plan.students) * plan.students));
  }
  job.batch_mark = top.Mark("batch_size");
  top.Integer("accumulate", 1, 1 << 16, &plan.accumulate);
  if (const uint64_t shares = uint64_t{plan.students} * plan.accumulate;
      plan.batch_size % plan.students == 0 && plan.batch_size % shares != 0) {
    top.Problem("accumulate", StrCat("batch_size ", plan.batch_size, " cannot be divided into ", plan.accumulate,
                                     " equal parts on each of the ", plan.students, " students; take a batch_size of ",
                                     std::max<uint64_t>(1, plan.batch_size / shares) * shares));
    plan.accumulate = 1;
  }
  top.Choice("autocast", {"none", "bf16"}, &plan.autocast);
  top.Flag("sync_batch_norm", &plan.sync_batch_norm);
  top.Choice("device", {"auto", "cpu", "cuda"}, &plan.device);
  if (top.Require("student")) ReadStudent(top.Find("student"), problems, &job);
  job.student_mark = top.Mark("student");
  if (plan.sync_batch_norm && !job.archive.empty()) {
    top.Problem("sync_batch_norm",
                "an archive's batch norms are parts of its own program and see the images of one rank; leave this "
                "out, or take a network of the zoo: student.arch");
  } else if (plan.sync_batch_norm && plan.students == 1) {
    problems->Warn(top.Mark("sync_batch_norm"), "sync_batch_norm: one student has all images of a batch anyway");
  }
  if (top.Text("teacher", &job.teacher) && !IsPlainName(job.teacher)) {
    top.Problem("teacher", StrCat("'", Shorten(job.teacher),
                                  "' is no model name: letters, digits and inner '-', '.', '_', at most 63"));
    job.teacher.clear();
  }
  job.teacher_mark = top.Mark("teacher");
  if (top.Require("data")) ReadData(top.Find("data"), problems, &job);
  ReadOptimizer(top.Find("optimizer"), "optimizer", problems, &job.optimizer);
  ReadSchedule(top.Find("schedule"), "schedule", problems, &job.schedule);
  const SectionReader checkpoint(top.Find("checkpoint"), "checkpoint", JobSectionKeys("checkpoint"), problems);
  checkpoint.Integer("every", 0, kMaxSteps, &plan.checkpoint_every);
  const SectionReader evaluate(top.Find("evaluate"), "evaluate", JobSectionKeys("evaluate"), problems);
  evaluate.Integer("every", 0, kMaxSteps, &plan.evaluate_every);
  evaluate.Flag("teacher", &job.evaluate_teacher);
  job.evaluate_teacher_given = evaluate.Has("teacher");
  evaluate.Flag("flip", &plan.evaluate_flip);
  ReadViews(evaluate, &job);
  job.evaluate_mark = evaluate.present() ? evaluate.Mark("teacher") : top.mark();
  top.Integer("log_every", 1, kMaxSteps, &plan.log_every);
  top.Flag("deterministic", &plan.deterministic);
  top.ByteSize("prefetch", 1 << 20, 1ull << 40, &plan.prefetch_bytes);
  job.prefetch_mark = top.Mark("prefetch");
  top.Choice("wire_dtype", {"f32", "f16", "bf16"}, &plan.wire_dtype);
  ReadSchedulePlan(top, problems, &job);
  plan.preset = job.preset;
  return job;
}

}  // namespace distill
