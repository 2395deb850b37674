#include "coordinator/jobfile/draft_reader.h"

#include <algorithm>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "common/zoo/architecture.h"
#include "coordinator/jobfile/presets.h"
#include "coordinator/jobfile/section_reader.h"
#include "coordinator/jobfile/text_checks.h"

namespace distill {
namespace {

constexpr uint64_t kMaxSteps = 1'000'000'000;
constexpr uint64_t kMaxImages = 10'000'000'000;
constexpr uint32_t kMaxImageSide = 16384;
constexpr NumberRange kPositive{.minimum = 0, .minimum_exclusive = true};
constexpr NumberRange kShare{.minimum = 0, .maximum = 1};
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

void ReadStudent(const YamlNodePtr& node, Problems* problems, JobDraft* job) {
  ModelSpec* const spec = &job->plan.student;
  const SectionReader student(node, "student", JobSectionKeys("student"), problems);
  if (!student.present()) return;
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
  ReadPath(student, "weights", &spec->weights);
  std::vector<YamlMark> marks;
  student.Texts("weights_modules", &job->weights_globs, &marks);
  job->weights_mark = student.Mark("weights_modules");
  if (student.Has("weights_modules") && !student.Has("weights")) {
    student.Problem("weights_modules", "says which modules come from `weights`, which is missing");
  }
}

void ReadData(const YamlNodePtr& node, Problems* problems, JobDraft* job) {
  const SectionReader data(node, "data", JobSectionKeys("data"), problems);
  if (!data.present()) return;
  data.Choice("format", {"idx", "image_folder"}, &job->plan.data.format);
  if (data.Require("path")) ReadPath(data, "path", &job->plan.data.path);
  data.Integer("train_size", 1, kMaxImages, &job->train_size);
  data.Integer("train_limit", 0, kMaxImages, &job->plan.data.train_limit);
  if (job->train_size != 0 && job->plan.data.train_limit > job->train_size) {
    data.Problem("train_limit", StrCat(job->plan.data.train_limit, " is more than data.train_size ", job->train_size));
  }
  data.Integer("test_limit", 0, kMaxImages, &job->plan.data.test_limit);
  data.Integer("holdout", 0, kMaxImages, &job->plan.data.holdout);
  const uint64_t rank_batch = job->plan.batch_size / job->plan.students;
  if (rank_batch > 0 && job->plan.data.holdout % rank_batch != 0) {
    data.Problem("holdout", StrCat(job->plan.data.holdout, " is no multiple of a rank's batch of ", rank_batch,
                                   "; take ", std::max<uint64_t>(1, job->plan.data.holdout / rank_batch) * rank_batch));
  }
  const SectionReader augment(data.Find("augment"), "data.augment", JobSectionKeys("data.augment"), problems);
  augment.Integer("crop_padding", 0, 1024, &job->plan.data.crop_padding);
  augment.Flag("horizontal_flip", &job->plan.data.horizontal_flip);
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
  const SectionReader sskd(top.Find("sskd"), "sskd", JobSectionKeys("sskd"), problems);
  sskd.Choice("policy", SskdPolicies(), &job->sskd.policy);
  std::vector<std::string> adapters = {"auto"};
  for (const std::string_view kind : AdapterKinds()) adapters.emplace_back(kind);
  sskd.Choice("adapter", adapters, &job->sskd.adapter);
  sskd.Choice("feature_loss", {"l2", "l1", "smooth_l1"}, &job->sskd.feature_loss);
  sskd.Choice("reduction", {"mean", "sum_over_batch"}, &job->sskd.reduction);
  sskd.Choice("tap_position", {"post_relu", "pre_relu"}, &job->sskd.tap_position);
  sskd.Choice("frozen_bn", {"eval", "train"}, &job->sskd.frozen_bn);
  sskd.Flag("restart_lr", &job->sskd.restart_lr);
  sskd.Choice("select", {"last", "best"}, &job->sskd.select);
  sskd.Integer("patience", 0, 1'000'000, &job->sskd.patience);
  sskd.Numbers("phase_shares", {.minimum = 0, .maximum = 1e6}, &job->sskd.phase_shares);
  job->sskd.phase_shares_mark = sskd.Mark("phase_shares");
  const SectionReader finetune(sskd.Find("finetune"), "sskd.finetune", JobSectionKeys("sskd.finetune"), problems);
  job->sskd.finetune_lr = job->optimizer.lr / 10;
  finetune.Number("lr", kPositive, &job->sskd.finetune_lr);
  job->sskd.finetune = ReadLength(finetune);
  if (finetune.present() && !job->sskd.finetune.given()) {
    problems->Add(finetune.mark(), "sskd.finetune: give its length as epochs or steps (it comes on top of the budget)");
  }
  for (const std::string& name : {std::string("kd"), std::string("cwd"), std::string("sskd")}) {
    if (top.Has(name) && job->preset != name) {
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
    problems->Add(top.mark(), StrCat("missing 'preset' (one of scratch, kd, cwd, sskd) or 'stages'"));
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

void ReadOptimizer(const YamlNodePtr& node, const std::string& path, Problems* problems, OptimizerPlan* out) {
  const SectionReader section(node, path, JobSectionKeys("optimizer"), problems);
  section.Choice("type", {"sgd", "adam"}, &out->type);
  section.Number("lr", kPositive, &out->lr);
  section.Number("momentum", kShareBelowOne, &out->momentum);
  section.Number("weight_decay", {.minimum = 0}, &out->weight_decay);
  section.Flag("nesterov", &out->nesterov);
  section.Number("clip_norm", {.minimum = 0}, &out->clip_norm);
  if (!section.present()) return;
  if (out->nesterov && out->type == "sgd" && out->momentum == 0) {
    section.Problem("nesterov", "needs a momentum above 0");
  }
  if (out->nesterov && out->type == "adam") section.Problem("nesterov", "belongs to sgd, not to adam");
}

void ReadSchedule(const YamlNodePtr& node, const std::string& path, Problems* problems, SchedulePlan* out) {
  const SectionReader section(node, path, JobSectionKeys("schedule"), problems);
  section.Choice("type", {"constant", "cosine", "step"}, &out->type);
  section.Number("warmup", kShareBelowOne, &out->warmup);
  section.Number("gamma", {.minimum = 0, .maximum = 1, .minimum_exclusive = true}, &out->gamma);
  const NumberRange inside{.minimum = 0, .maximum = 1, .minimum_exclusive = true, .maximum_exclusive = true};
  if (section.Numbers("milestones", inside, &out->milestones) &&
      std::adjacent_find(out->milestones.begin(), out->milestones.end(), std::greater_equal<>()) !=
          out->milestones.end()) {
    section.Problem("milestones", "must ascend");
  }
  if (!section.present()) return;
  if (out->type == "step" && out->milestones.empty()) {
    section.Problem("type", "'step' needs milestones, for example [0.5, 0.75]");
  }
  if (out->type != "step" && section.Has("milestones")) {
    section.Problem("milestones", StrCat("belong to type 'step', not to '", out->type, "'"));
  }
  if (out->type != "step") out->milestones.clear();
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
  top.Choice("device", {"auto", "cpu", "cuda"}, &plan.device);
  if (top.Require("student")) ReadStudent(top.Find("student"), problems, &job);
  job.student_mark = top.Mark("student");
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
  top.Integer("log_every", 1, kMaxSteps, &plan.log_every);
  top.Flag("deterministic", &plan.deterministic);
  top.ByteSize("prefetch", 1 << 20, 1ull << 40, &plan.prefetch_bytes);
  top.Choice("wire_dtype", {"f32", "f16", "bf16"}, &plan.wire_dtype);
  ReadSchedulePlan(top, problems, &job);
  plan.preset = job.preset;
  return job;
}

}  // namespace distill
