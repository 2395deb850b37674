#include "coordinator/jobfile/presets.h"

#include <cmath>
#include <numeric>

#include "common/str_cat.h"

namespace distill {
namespace {

StageDraft Stage(const JobDraft& job, std::string name, uint64_t steps) {
  StageDraft stage;
  stage.name = std::move(name);
  stage.mark = job.preset_mark;
  stage.name_mark = job.preset_mark;
  stage.optimizer = job.optimizer;
  stage.schedule = job.schedule;
  stage.length.steps = steps;
  stage.length.mark = job.budget.mark;
  return stage;
}

LossDraft Loss(const JobDraft& job, std::string type, double weight) {
  LossDraft loss;
  loss.type = std::move(type);
  loss.weight = weight;
  loss.mark = loss.name_mark = loss.student_mark = loss.teacher_mark = loss.adapter_mark = job.preset_mark;
  return loss;
}

LossDraft KdLoss(const JobDraft& job, double weight, double temperature) {
  LossDraft loss = Loss(job, "kd", weight);
  loss.knobs["temperature"] = temperature;
  return loss;
}

LossDraft FeatureLoss(const JobDraft& job, std::string type, double weight, const StagePair& pair) {
  LossDraft loss = Loss(job, std::move(type), weight);
  loss.student_tap = pair.student_tap;
  loss.teacher_tap = pair.teacher_tap;
  return loss;
}

StageDraft KdStage(const JobDraft& job, uint64_t steps) {
  StageDraft stage = Stage(job, "train", steps);
  if (job.kd.weight < 1) stage.losses.push_back(Loss(job, "cross_entropy", 1 - job.kd.weight));
  stage.losses.push_back(KdLoss(job, job.kd.weight, job.kd.temperature));
  return stage;
}

// Labels and, where kd_weight is above 0, soft targets, to which feature losses are added.
StageDraft LabelledStage(const JobDraft& job, double kd_weight, double kd_temperature, uint64_t steps) {
  StageDraft stage = Stage(job, "train", steps);
  if (kd_weight < 1) stage.losses.push_back(Loss(job, "cross_entropy", 1 - kd_weight));
  if (kd_weight > 0) stage.losses.push_back(KdLoss(job, kd_weight, kd_temperature));
  return stage;
}

StageDraft LastStageStage(const JobDraft& job, const LastStageOptions& options, const StagePairs& pairs,
                          uint64_t steps) {
  StageDraft stage = LabelledStage(job, options.kd_weight, options.kd_temperature, steps);
  stage.losses.push_back(FeatureLoss(job, job.preset, options.weight, pairs.pairs.back()));
  // A mean over elements, so that one weight fits maps of any size.
  if (job.preset == "channel_transform") stage.losses.back().knobs["reduction"] = std::string("mean");
  return stage;
}

StageDraft CwdStage(const JobDraft& job, const StagePairs& pairs, uint64_t steps) {
  StageDraft stage = LabelledStage(job, job.cwd.kd_weight, job.cwd.kd_temperature, steps);
  for (const StagePair& pair : pairs.pairs) {
    LossDraft loss = FeatureLoss(job, "cwd", job.cwd.weight, pair);
    loss.knobs["temperature"] = job.cwd.temperature;
    stage.losses.push_back(std::move(loss));
  }
  return stage;
}

// Steps of each part of the budget. The first parts take the remainder.
std::vector<uint64_t> SplitBudget(uint64_t total, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<uint64_t> steps;
  uint64_t given = 0;
  for (const double weight : weights) {
    steps.push_back(static_cast<uint64_t>(std::floor(static_cast<double>(total) * (weight / sum))));
    given += steps.back();
  }
  for (size_t i = 0; given < total; i = (i + 1) % weights.size()) {
    if (weights[i] == 0) continue;
    ++steps[i];
    ++given;
  }
  return steps;
}

std::vector<StageDraft> SskdStages(const JobDraft& job, const StagePairs& pairs, const PresetSteps& lengths) {
  const SskdOptions& options = job.sskd;
  const std::string& policy = options.policy;
  const size_t phases = pairs.pairs.size();
  const std::vector<double> shares = SskdShares(job, pairs);
  const std::vector<uint64_t> steps = SplitBudget(lengths.backbone, shares);
  const uint64_t head_steps = SplitBudget(lengths.total, shares).back();
  std::vector<StageDraft> stages;
  const auto add_loss = [&](StageDraft* stage, size_t k) {
    LossDraft loss = FeatureLoss(job, options.feature_loss, 1, pairs.pairs[k]);
    loss.adapter = options.adapter;
    loss.tap_position = options.tap_position;
    loss.knobs["reduction"] = options.reduction;
    loss.knobs["spatial_mismatch"] = options.spatial_mismatch;
    if (k < options.stages.size()) {
      loss.mark = options.stages[k].mark;
      loss.student_mark = options.stages[k].student_mark;
      loss.teacher_mark = options.stages[k].teacher_mark;
    }
    stage->losses.push_back(std::move(loss));
  };
  std::vector<std::string> before;  // modules of the phases so far
  for (size_t k = 0; k < phases; ++k) {
    const StagePair& pair = pairs.pairs[k];
    before.insert(before.end(), pair.modules.begin(), pair.modules.end());
    if (policy == "joint") continue;
    StageDraft stage = Stage(job, StrCat("mimic-", k + 1), steps[k]);
    if (k < options.stages.size()) {
      stage.name = options.stages[k].name;
      stage.optimizer = options.stages[k].optimizer;
      stage.schedule = options.stages[k].schedule;
      stage.mark = options.stages[k].mark;
    }
    const bool alone = policy == "freeze_previous" || policy == "blockwise";
    stage.trainable = alone ? pair.modules : before;
    if (policy == "blockwise" && k > 0) {
      stage.teacher_input = pairs.pairs[k - 1].teacher_tap;
      stage.student_input = pairs.pairs[k - 1].student_tap;
      stage.input_mark = job.preset_mark;
    }
    for (size_t j = policy == "cumulative_sum" ? 0 : k; j <= k; ++j) add_loss(&stage, j);
    stages.push_back(std::move(stage));
  }
  if (policy == "joint") {
    StageDraft stage = Stage(job, "mimic", std::accumulate(steps.begin(), steps.end() - 1, uint64_t{0}));
    stage.trainable = before;
    for (size_t k = 0; k < phases; ++k) add_loss(&stage, k);
    stages.push_back(std::move(stage));
  }
  for (StageDraft& stage : stages) {
    stage.unlabelled_ok = options.unlabelled_ok;
    stage.unlabelled_mark = options.unlabelled_mark;
  }
  StageDraft head = Stage(job, "head", head_steps);
  head.trainable = pairs.head_modules;
  head.optimizer = options.head.optimizer;
  head.schedule = options.head.schedule;
  head.losses.push_back(Loss(job, "cross_entropy", 1));
  head.losses.back().knobs["label_smoothing"] = options.head.label_smoothing;
  // Before it the head is as it was initialised, and a metric of its answers is chance.
  head.select_by = options.select_by;
  head.select_by_mark = options.select_by_mark;
  stages.push_back(std::move(head));
  uint64_t total_steps = 0;
  for (const StageDraft& stage : stages) total_steps += *stage.length.steps;
  uint64_t done = 0;
  for (StageDraft& stage : stages) {
    stage.frozen_bn = options.frozen_bn;
    stage.select = options.select;
    stage.patience = options.patience;
    stage.select_mark = job.preset_mark;
    if (options.restart_lr || total_steps == 0) continue;
    stage.schedule.begin = static_cast<double>(done) / static_cast<double>(total_steps);
    done += *stage.length.steps;
    stage.schedule.end = static_cast<double>(done) / static_cast<double>(total_steps);
  }
  if (options.finetune.given()) {
    StageDraft finetune = Stage(job, "finetune", lengths.finetune);
    finetune.length.mark = options.finetune.mark;
    finetune.optimizer.lr = options.finetune_lr;
    finetune.losses.push_back(Loss(job, "cross_entropy", 1));
    stages.push_back(std::move(finetune));
  }
  return stages;
}

}  // namespace

std::vector<std::string> PresetNames() { return {"scratch", "kd", "cwd", "channel_transform", "tat", "sskd"}; }
std::vector<std::string> SskdPolicies() {
  return {"freeze_previous", "cumulative_last", "cumulative_sum", "joint", "blockwise"};
}
bool PresetNeedsTeacher(const std::string& preset) { return preset != "scratch"; }
bool PresetNeedsPairs(const std::string& preset) { return preset != "scratch" && preset != "kd"; }

std::vector<double> SskdShares(const JobDraft& job, const StagePairs& pairs) {
  const SskdOptions& options = job.sskd;
  if (!options.phase_shares.empty()) return options.phase_shares;
  std::vector<double> shares(pairs.pairs.size(), 1);
  for (size_t k = 0; k < options.stages.size(); ++k) shares[k] = options.stages[k].share;
  shares.push_back(options.head.share);
  return shares;
}

std::vector<StageDraft> ExpandPreset(const JobDraft& job, const StagePairs& pairs, const PresetSteps& steps) {
  if (job.preset == "kd") return {KdStage(job, steps.total)};
  if (job.preset == "cwd") return {CwdStage(job, pairs, steps.total)};
  if (job.preset == "channel_transform") return {LastStageStage(job, job.channel_transform, pairs, steps.total)};
  if (job.preset == "tat") return {LastStageStage(job, job.tat, pairs, steps.total)};
  if (job.preset == "sskd") return SskdStages(job, pairs, steps);
  StageDraft stage = Stage(job, "train", steps.total);
  stage.losses.push_back(Loss(job, "cross_entropy", 1));
  return {stage};
}

}  // namespace distill
