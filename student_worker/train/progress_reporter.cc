#include "student_worker/train/progress_reporter.h"

#include <algorithm>

#include "common/log.h"
#include "common/wall_clock.h"

namespace distill {
namespace {

LogLevel LevelOfLog(EventLevel level) {
  switch (level) {
    case EventLevel::kInfo:
      return LogLevel::kInfo;
    case EventLevel::kWarning:
      return LogLevel::kWarning;
    case EventLevel::kError:
      return LogLevel::kError;
  }
  return LogLevel::kInfo;
}

}  // namespace

void ProgressReporter::SetScores(const Score& student, const Score& teacher) {
  progress_.score.metrics = student.metrics;
  progress_.teacher_score.metrics = teacher.metrics;
}

void ProgressReporter::BeginStage(uint32_t stage, uint64_t step, uint64_t total_step, uint64_t skipped_steps,
                                  std::vector<std::string> terms) {
  JobProgress fresh;
  fresh.stage = stage;
  fresh.step = step;
  fresh.total_step = total_step;
  fresh.skipped_steps = skipped_steps;
  fresh.score = progress_.score;
  fresh.teacher_score = progress_.teacher_score;
  progress_ = std::move(fresh);
  term_names_ = std::move(terms);
  terms_.assign(term_names_.size(), 0.0);
  seconds_.clear();
  steps_ = 0;
  loss_ = 0;
  RestartClock();
}

void ProgressReporter::AddStep(double loss, double learning_rate, const std::vector<double>& terms,
                               const std::vector<std::pair<std::string, double>>& seconds) {
  ++steps_;
  loss_ += loss;
  progress_.learning_rate = learning_rate;
  for (size_t i = 0; i < terms_.size(); ++i) terms_[i] += terms[i];
  if (seconds_.empty()) {
    seconds_ = seconds;
  } else {
    for (size_t i = 0; i < seconds_.size(); ++i) seconds_[i].second += seconds[i].second;
  }
}

void ProgressReporter::Phase(const std::string& phase) {
  if (!leader()) return;
  progress_.phase = phase;
  progress_.time = WallClock();
  fleet_->ReportProgress(progress_);
}

void ProgressReporter::ReportSteps(uint64_t step, uint64_t total_step, uint64_t skipped_steps, uint32_t images) {
  if (steps_ == 0 && skipped_steps == progress_.skipped_steps) return;
  progress_.step = step;
  progress_.total_step = total_step;
  progress_.skipped_steps = skipped_steps;
  if (steps_ > 0) {
    const double count = static_cast<double>(steps_);
    progress_.images_per_second = count * images / std::max(1e-9, SecondsSinceReport());
    progress_.loss = loss_ / count;
    progress_.terms.clear();
    for (size_t i = 0; i < terms_.size(); ++i) progress_.terms.push_back({term_names_[i], terms_[i] / count});
    progress_.step_seconds.clear();
    for (const auto& [part, total] : seconds_) progress_.step_seconds.push_back({part, total / count});
  }
  Phase("training");
  steps_ = 0;
  loss_ = 0;
  std::fill(terms_.begin(), terms_.end(), 0.0);
  seconds_.clear();
  RestartClock();
}

double ProgressReporter::SecondsSinceReport() const {
  return std::chrono::duration<double>(Clock::now() - last_report_).count();
}

void ProgressReporter::Event(EventLevel level, EventType type, const std::string& text) const {
  Log(LevelOfLog(level), text,
      {{"job", assignment_.job_id}, {"generation", assignment_.generation}, {"rank", assignment_.rank}});
  fleet_->ReportEvent(assignment_.job_id, level, type, text);
}

}  // namespace distill
