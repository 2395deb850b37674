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

StageDraft CwdStage(const JobDraft& job, const StagePairs& pairs, uint64_t steps) {
  StageDraft stage = Stage(job, "train", steps);
  if (job.cwd.kd_weight < 1) stage.losses.push_back(Loss(job, "cross_entropy", 1 - job.cwd.kd_weight));
  if (job.cwd.kd_weight > 0) stage.losses.push_back(KdLoss(job, job.cwd.kd_weight, job.cwd.kd_temperature));
  for (const StagePair& pair : pairs.pairs) {
    LossDraft loss = FeatureLoss(job, "cwd", job.cwd.weight, pair);
    loss.knobs["temperature"] = job.cwd.temperature;
    stage.losses.push_back(std::move(loss));
  }
  return stage;
}

// Steps of each of `phases` parts of the budget: by `shares`, or equal. The first parts take the remainder.
std::vector<uint64_t> SplitBudget(uint64_t total, const std::vector<double>& shares, size_t phases) {
  std::vector<double> weights = shares.empty() ? std::vector<double>(phases, 1) : shares;
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<uint64_t> steps;
  uint64_t given = 0;
  for (const double weight : weights) {
    steps.push_back(static_cast<uint64_t>(std::floor(static_cast<double>(total) * (weight / sum))));
    given += steps.back();
  }
  for (size_t i = 0; given < total; i = (i + 1) % phases) {
    if (weights[i] == 0) continue;
    ++steps[i];
    ++given;
  }
  return steps;
}

std::vector<StageDraft> SskdStages(const JobDraft& job, const StagePairs& pairs, uint64_t total_steps,
                                   uint64_t finetune_steps) {
  const SskdOptions& options = job.sskd;
  const std::string& policy = options.policy;
  const size_t phases = pairs.pairs.size();
  const std::vector<uint64_t> steps = SplitBudget(total_steps, options.phase_shares, phases + 1);
  std::vector<StageDraft> stages;
  const auto add_loss = [&](StageDraft* stage, const StagePair& pair) {
    LossDraft loss = FeatureLoss(job, options.feature_loss, 1, pair);
    loss.adapter = options.adapter;
    loss.tap_position = options.tap_position;
    loss.knobs["reduction"] = options.reduction;
    stage->losses.push_back(std::move(loss));
  };
  std::vector<std::string> before;  // modules of the phases so far
  for (size_t k = 0; k < phases; ++k) {
    const StagePair& pair = pairs.pairs[k];
    before.insert(before.end(), pair.modules.begin(), pair.modules.end());
    if (policy == "joint") continue;
    StageDraft stage = Stage(job, StrCat("mimic-", k + 1), steps[k]);
    const bool alone = policy == "freeze_previous" || policy == "blockwise";
    stage.trainable = alone ? pair.modules : before;
    if (policy == "blockwise" && k > 0) {
      stage.teacher_input = pairs.pairs[k - 1].teacher_tap;
      stage.student_input = pairs.pairs[k - 1].student_tap;
      stage.input_mark = job.preset_mark;
    }
    for (size_t j = policy == "cumulative_sum" ? 0 : k; j <= k; ++j) add_loss(&stage, pairs.pairs[j]);
    stages.push_back(std::move(stage));
  }
  if (policy == "joint") {
    StageDraft stage = Stage(job, "mimic", std::accumulate(steps.begin(), steps.end() - 1, uint64_t{0}));
    stage.trainable = before;
    for (const StagePair& pair : pairs.pairs) add_loss(&stage, pair);
    stages.push_back(std::move(stage));
  }
  StageDraft head = Stage(job, "head", steps[phases]);
  head.trainable = pairs.head_modules;
  head.losses.push_back(Loss(job, "cross_entropy", 1));
  stages.push_back(std::move(head));
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
    StageDraft finetune = Stage(job, "finetune", finetune_steps);
    finetune.length.mark = options.finetune.mark;
    finetune.optimizer.lr = options.finetune_lr;
    finetune.losses.push_back(Loss(job, "cross_entropy", 1));
    stages.push_back(std::move(finetune));
  }
  return stages;
}

}  // namespace

std::vector<std::string> PresetNames() { return {"scratch", "kd", "cwd", "sskd"}; }
std::vector<std::string> SskdPolicies() {
  return {"freeze_previous", "cumulative_last", "cumulative_sum", "joint", "blockwise"};
}
bool PresetNeedsTeacher(const std::string& preset) { return preset == "kd" || preset == "cwd" || preset == "sskd"; }
bool PresetNeedsPairs(const std::string& preset) { return preset == "cwd" || preset == "sskd"; }

std::vector<StageDraft> ExpandPreset(const JobDraft& job, const StagePairs& pairs, uint64_t total_steps,
                                     uint64_t finetune_steps) {
  if (job.preset == "kd") return {KdStage(job, total_steps)};
  if (job.preset == "cwd") return {CwdStage(job, pairs, total_steps)};
  if (job.preset == "sskd") return SskdStages(job, pairs, total_steps, finetune_steps);
  StageDraft stage = Stage(job, "train", total_steps);
  stage.losses.push_back(Loss(job, "cross_entropy", 1));
  return {stage};
}

}  // namespace distill
