// The student's Prometheus series. Names: distill_student_*. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_TRAIN_METRICS_H_
#define DISTILL_STUDENT_WORKER_TRAIN_TRAIN_METRICS_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "common/metrics/metrics.h"
#include "student_worker/train/score.h"

namespace distill {

// Written by the training thread; the registry's handles are thread-safe.
class TrainMetrics {
 public:
  // `registry` is not owned and outlives this.
  explicit TrainMetrics(MetricsRegistry* registry);

  // `seconds`: parts of the step; `terms`: unweighted losses by name.
  void ObserveStep(uint32_t images, double loss, double learning_rate,
                   const std::vector<std::pair<std::string, double>>& seconds,
                   const std::vector<std::pair<std::string, double>>& terms);
  void ObserveCheckpoint(double seconds);
  void CountCheckpointFailure();
  void CountNotFiniteLoss();
  void CountSkippedStep();
  void SetScore(const Score& score);
  void SetTeacherScore(const Score& score);
  void SetPosition(uint64_t generation, uint32_t stage);
  void CountJob(const std::string& outcome);  // "finished", "cancelled", "failed", "interrupted"
  // Drops the series of the loss terms, which belong to one job. What was measured stays to be seen until the next job
  // measures.
  void EndJob();

 private:
  // Sets the series of `score`'s metrics under `name`, and drops those that it has not.
  void Show(const Score& score, const char* name, const char* help, std::map<std::string, Gauge*>* series);

  MetricsRegistry* const registry_;
  Counter& steps_;
  Counter& images_;
  Gauge& loss_;
  Gauge& learning_rate_;
  Gauge& generation_;
  Gauge& stage_;
  Gauge& last_step_;
  Histogram& checkpoint_seconds_;
  Counter& checkpoint_failures_;
  Counter& not_finite_losses_;
  Counter& skipped_steps_;
  std::map<std::string, Histogram*> parts_;  // owned by the registry, like the gauges below
  std::map<std::string, Gauge*> terms_;
  std::map<std::string, Gauge*> scores_, teacher_scores_;  // by metric
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_TRAIN_METRICS_H_
