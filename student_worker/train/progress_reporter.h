// What a rank tells the coordinator about its job while it runs: rank 0's progress, any rank's events. No torch here.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_PROGRESS_REPORTER_H_
#define DISTILL_STUDENT_WORKER_TRAIN_PROGRESS_REPORTER_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "common/fleet/fleet_client.h"
#include "student_worker/train/score.h"

namespace distill {

// Owned by the training thread, but for Event(), which any thread may call.
class ProgressReporter {
 public:
  // Neither is owned; both outlive the reporter.
  ProgressReporter(const StudentAssignment& assignment, FleetClient* fleet) : assignment_(assignment), fleet_(fleet) {}

  // What later reports say of the job until it changes.
  void SetScores(const Score& student, const Score& teacher);
  // A stage begins, or goes on, at `step` of it. `terms`: names of its losses.
  void BeginStage(uint32_t stage, uint64_t step, uint64_t total_step, uint64_t skipped_steps,
                  std::vector<std::string> terms);

  // Of one step that was taken: loss, its terms in the order of BeginStage(), seconds by part of the step.
  void AddStep(double loss, double learning_rate, const std::vector<double>& terms,
               const std::vector<std::pair<std::string, double>>& seconds);
  // Rank 0 reports what it is doing: "loading", "evaluating", "checkpointing", "training", ...
  void Phase(const std::string& phase);
  // Rank 0 reports where the stage stands: means over the steps since the last call. `images`: of one step over all
  // ranks. Nothing to report: nothing is sent.
  void ReportSteps(uint64_t step, uint64_t total_step, uint64_t skipped_steps, uint32_t images);
  // Time that was spent on other things than steps does not count for their speed.
  void RestartClock() { last_report_ = Clock::now(); }
  double SecondsSinceReport() const;

  // Into the log of this process and the job's events.
  void Event(EventLevel level, EventType type, const std::string& text) const;

  double learning_rate() const { return progress_.learning_rate; }

 private:
  using Clock = std::chrono::steady_clock;

  bool leader() const { return assignment_.rank == 0; }

  const StudentAssignment& assignment_;
  FleetClient* const fleet_;
  JobProgress progress_;
  // Sums since the last report of steps.
  std::vector<std::string> term_names_;
  uint64_t steps_ = 0;
  double loss_ = 0;
  std::vector<double> terms_;
  std::vector<std::pair<std::string, double>> seconds_;
  Clock::time_point last_report_ = Clock::now();
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_PROGRESS_REPORTER_H_
