#include "coordinator/cli/job_progress.h"

#include <algorithm>
#include <cmath>

#include "common/score/score.h"
#include "common/str_cat.h"
#include "coordinator/cli/units.h"

namespace distill::cli {

bool IsEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

std::string StateName(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_QUEUED:
      return "queued";
    case v1::JOB_STATE_RUNNING:
      return "running";
    case v1::JOB_STATE_SUCCEEDED:
      return "succeeded";
    case v1::JOB_STATE_FAILED:
      return "failed";
    case v1::JOB_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unknown";
  }
}

v1::JobState StateOf(std::string_view name) {
  for (const v1::JobState state : {v1::JOB_STATE_QUEUED, v1::JOB_STATE_RUNNING, v1::JOB_STATE_SUCCEEDED,
                                   v1::JOB_STATE_FAILED, v1::JOB_STATE_CANCELLED}) {
    if (StateName(state) == name) return state;
  }
  return v1::JOB_STATE_UNSPECIFIED;
}

Style StateStyle(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_QUEUED:
      return Style::kYellow;
    case v1::JOB_STATE_RUNNING:
      return Style::kCyan;
    case v1::JOB_STATE_SUCCEEDED:
      return Style::kGreen;
    case v1::JOB_STATE_FAILED:
      return Style::kRed;
    case v1::JOB_STATE_CANCELLED:
      return Style::kYellow;
    default:
      return Style::kNone;
  }
}

bool HasProgress(const v1::Job& job) { return job.has_progress() && job.progress().time() > 0; }

bool HasArtifacts(const v1::Job& job) {
  return job.has_artifacts() && !(job.artifacts().safetensors().empty() && job.artifacts().torchscript().empty());
}

const v1::StageResult* ResultOf(const v1::Job& job, int stage) {
  for (const v1::StageResult& result : job.stages_done()) {
    if (result.stage() == static_cast<uint32_t>(stage)) return &result;
  }
  return nullptr;
}

JobPosition PositionOf(const v1::Job& job) {
  JobPosition position;
  const int stages = job.plan().stages_size();
  if (job.state() == v1::JOB_STATE_SUCCEEDED) {
    position.stage = stages;
  } else {
    while (position.stage < stages && ResultOf(job, position.stage) != nullptr) ++position.stage;
    // Rank 0's report may be one stage behind the commits, or ahead of a list that was cut.
    if (HasProgress(job) && job.progress().stage() < static_cast<uint32_t>(stages)) {
      position.stage = std::max(position.stage, static_cast<int>(job.progress().stage()));
    }
  }
  for (int i = 0; i < stages; ++i) {
    position.total_steps += job.plan().stages(i).steps();
    if (i < position.stage) position.done_steps += job.plan().stages(i).steps();
  }
  if (position.stage < stages) {
    position.stage_steps = job.plan().stages(position.stage).steps();
    if (HasProgress(job) && job.progress().stage() == static_cast<uint32_t>(position.stage)) {
      position.step = std::min<uint64_t>(job.progress().step(), position.stage_steps);
    }
    position.done_steps += position.step;
  }
  return position;
}

const v1::Score& StudentScore(const v1::Job& job) {
  return HasArtifacts(job) ? job.artifacts().student_score() : job.progress().score();
}

const v1::Score& TeacherScore(const v1::Job& job) {
  if (job.plan().teachers().empty()) return v1::Score::default_instance();
  return HasArtifacts(job) ? job.artifacts().teacher_score() : job.progress().teacher_score();
}

std::string FormatScore(const v1::Score& score) {
  std::string text;
  for (const v1::NamedValue& metric : score.metrics()) {
    StrAppend(&text, text.empty() ? "" : ", ", MetricLabel(metric.name()), " ", FormatPercent(metric.value()));
  }
  return text.empty() ? "-" : text;
}

std::string FormatHeadline(const v1::Score& score) {
  if (score.metrics().empty()) return "-";
  return StrCat(MetricLabel(score.metrics(0).name()), " ", FormatPercent(score.metrics(0).value()));
}

double ElapsedSeconds(const v1::Job& job, double now) {
  const double start = job.started_time() > 0 ? job.started_time() : job.submitted_time();
  const double end = job.finished_time() > 0 ? job.finished_time() : now;
  return start > 0 ? std::max(0.0, end - start) : 0;
}

bool IsStalled(const v1::Job& job, double now) {
  if (job.wait() == v1::JOB_WAIT_TEACHER) return true;
  if (job.state() != v1::JOB_STATE_RUNNING || !HasProgress(job)) return false;
  // Rank 0 reports after five seconds, with the step that is then done.
  const double rate = job.progress().images_per_second();
  const double step = std::isfinite(rate) && rate > 0 ? job.plan().batch_size() / rate : 0;
  return now - job.progress().time() > std::max(20.0, 3 * (5 + step));
}

Eta EstimateEta(const v1::Job& job, double now) {
  Eta eta;
  if (job.state() != v1::JOB_STATE_RUNNING || !HasProgress(job) || job.plan().batch_size() == 0) return eta;
  if (IsStalled(job, now)) return eta;
  const double steps_per_second = job.progress().images_per_second() / job.plan().batch_size();
  if (!std::isfinite(steps_per_second) || steps_per_second <= 0) return eta;
  // The report ages; but clocks of two machines differ, so no more than half a minute is believed.
  const double age = std::clamp(now - job.progress().time(), 0.0, 30.0);
  const JobPosition position = PositionOf(job);
  const double stage = static_cast<double>(position.stage_steps - position.step) / steps_per_second;
  const double whole = static_cast<double>(position.total_steps - position.done_steps) / steps_per_second;
  eta.stage_seconds = std::max(0.0, stage - age);
  eta.job_seconds = std::max(0.0, whole - age);
  return eta;
}

}  // namespace distill::cli
