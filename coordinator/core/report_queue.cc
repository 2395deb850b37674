#include "coordinator/core/report_queue.h"

#include <algorithm>
#include <iterator>

namespace distill {

void ReportQueue::Count(const QueuedReport& report, int change) {
  Counts& counts = counts_[report.job_id];
  (report.progress ? counts.progress : counts.events) += static_cast<size_t>(change);
  if (counts.progress == 0 && counts.events == 0) counts_.erase(report.job_id);
}

void ReportQueue::AddProgress(const std::string& job_id, const JobProgress& progress) {
  if (const auto found = counts_.find(job_id); found != counts_.end() && found->second.progress >= kMostOfAJob) {
    const auto oldest = std::find_if(reports_.begin(), reports_.end(), [&](const QueuedReport& report) {
      return report.job_id == job_id && report.progress.has_value();
    });
    Count(*oldest, -1);
    reports_.erase(oldest);
  }
  reports_.push_back({job_id, progress, std::nullopt});
  Count(reports_.back(), 1);
}

bool ReportQueue::AddEvent(const std::string& job_id, EventRecord event) {
  if (const auto found = counts_.find(job_id); found != counts_.end() && found->second.events >= kMostOfAJob) {
    return false;
  }
  reports_.push_back({job_id, std::nullopt, std::move(event)});
  Count(reports_.back(), 1);
  return true;
}

std::vector<QueuedReport> ReportQueue::Take(size_t most) {
  const auto end = reports_.begin() + static_cast<std::ptrdiff_t>(std::min(most, reports_.size()));
  std::vector<QueuedReport> taken(std::make_move_iterator(reports_.begin()), std::make_move_iterator(end));
  reports_.erase(reports_.begin(), end);
  for (const QueuedReport& report : taken) Count(report, -1);
  return taken;
}

void ReportQueue::PutBack(std::vector<QueuedReport> reports) {
  for (const QueuedReport& report : reports) Count(report, 1);
  reports_.insert(reports_.begin(), std::make_move_iterator(reports.begin()), std::make_move_iterator(reports.end()));
}

}  // namespace distill
