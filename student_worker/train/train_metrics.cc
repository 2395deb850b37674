#include "student_worker/train/train_metrics.h"

#include <limits>

#include "common/wall_clock.h"

namespace distill {
namespace {

constexpr char kTermName[] = "distill_student_loss_term";
constexpr char kTermHelp[] = "Unweighted value of one loss of the stage at the last step, mean over ranks.";

constexpr char kScoreName[] = "distill_student_score_ratio";
constexpr char kScoreHelp[] = "Newest results of the student on the test set by metric, 0 to 1; no series before.";
constexpr char kTeacherScoreName[] = "distill_student_teacher_score_ratio";
constexpr char kTeacherScoreHelp[] = "Results of the teacher on the test set by metric, 0 to 1; no series before.";

}  // namespace

TrainMetrics::TrainMetrics(MetricsRegistry* registry)
    : registry_(registry),
      steps_(registry->GetCounter("distill_student_steps_total", "Optimizer steps taken by this rank.")),
      images_(registry->GetCounter("distill_student_images_total", "Images this rank has trained on.")),
      loss_(registry->GetGauge("distill_student_loss",
                               "Weighted sum of the stage's losses at the last step, mean over ranks.")),
      learning_rate_(registry->GetGauge("distill_student_learning_rate", "Learning rate of the last step.")),
      generation_(registry->GetGauge("distill_student_generation",
                                     "Generation of the job this rank takes part in; 0 when idle.")),
      stage_(registry->GetGauge("distill_student_stage", "Index of the stage that is running.")),
      last_step_(
          registry->GetGauge("distill_student_last_step_timestamp_seconds", "Unix time of the last optimizer step.")),
      checkpoint_seconds_(registry->GetHistogram("distill_student_checkpoint_seconds", "Time to write a checkpoint.",
                                                 SecondsBuckets())),
      checkpoint_failures_(
          registry->GetCounter("distill_student_checkpoint_failures_total", "Checkpoints that were not written.")),
      not_finite_losses_(registry->GetCounter("distill_student_not_finite_losses_total",
                                              "Steps whose loss was NaN or infinite; each ends its job.")),
      skipped_steps_(registry->GetCounter("distill_student_skipped_steps_total",
                                          "Steps skipped because a teacher map held NaN or infinity.")) {}

void TrainMetrics::ObserveStep(uint32_t images, double loss, double learning_rate,
                               const std::vector<std::pair<std::string, double>>& seconds,
                               const std::vector<std::pair<std::string, double>>& terms) {
  steps_.Add();
  images_.Add(images);
  loss_.Set(loss);
  learning_rate_.Set(learning_rate);
  last_step_.Set(WallClock());
  for (const auto& [part, value] : seconds) {
    Histogram*& histogram = parts_[part];
    if (histogram == nullptr) {
      histogram = &registry_->GetHistogram("distill_student_step_seconds", "Time of one part of a training step.",
                                           SecondsBuckets(), {{"part", part}});
    }
    histogram->Observe(value);
  }
  for (const auto& [term, value] : terms) {
    Gauge*& gauge = terms_[term];
    if (gauge == nullptr) gauge = &registry_->GetGauge(kTermName, kTermHelp, {{"term", term}});
    gauge->Set(value);
  }
}

void TrainMetrics::ObserveCheckpoint(double seconds) { checkpoint_seconds_.Observe(seconds); }
void TrainMetrics::CountCheckpointFailure() { checkpoint_failures_.Add(); }
void TrainMetrics::CountNotFiniteLoss() { not_finite_losses_.Add(); }
void TrainMetrics::CountSkippedStep() { skipped_steps_.Add(); }

void TrainMetrics::Show(const Score& score, const char* name, const char* help, std::map<std::string, Gauge*>* series) {
  for (auto it = series->begin(); it != series->end();) {
    if (score.Find(it->first) != nullptr) {
      ++it;
    } else {
      registry_->Remove(name, {{"metric", it->first}});
      it = series->erase(it);
    }
  }
  for (const NamedNumber& metric : score.metrics) {
    Gauge*& gauge = (*series)[metric.name];
    if (gauge == nullptr) gauge = &registry_->GetGauge(name, help, {{"metric", metric.name}});
    gauge->Set(metric.value);
  }
}

void TrainMetrics::SetScore(const Score& score) { Show(score, kScoreName, kScoreHelp, &scores_); }

void TrainMetrics::SetTeacherScore(const Score& score) {
  Show(score, kTeacherScoreName, kTeacherScoreHelp, &teacher_scores_);
}

void TrainMetrics::SetPosition(uint64_t generation, uint32_t stage) {
  generation_.Set(static_cast<double>(generation));
  stage_.Set(stage);
}

void TrainMetrics::CountJob(const std::string& outcome) {
  registry_
      ->GetCounter("distill_student_jobs_total", "Assignments this worker has ended, by outcome.",
                   {{"outcome", outcome}})
      .Add();
}

void TrainMetrics::EndJob() {
  for (const auto& [term, gauge] : terms_) registry_->Remove(kTermName, {{"term", term}});
  terms_.clear();
  generation_.Set(0);
}

}  // namespace distill
