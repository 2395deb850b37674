// Progress and events of heartbeats on their way to the store. Many are written in one transaction, so that one disk
// serves many jobs; while the disk takes none, the newest progress and the oldest events are kept.
//
// Thread-compatible.
#ifndef DISTILL_COORDINATOR_CORE_REPORT_QUEUE_H_
#define DISTILL_COORDINATOR_CORE_REPORT_QUEUE_H_

#include <cstddef>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/store/job_record.h"

namespace distill {

// One of the two is set.
struct QueuedReport {
  std::string job_id;
  std::optional<JobProgress> progress;
  std::optional<EventRecord> event;  // with its source
};

class ReportQueue {
 public:
  static constexpr size_t kMostOfAJob = 2000;  // of progress, and of events

  // Pushes the job's oldest progress out when there is too much of it.
  void AddProgress(const std::string& job_id, const JobProgress& progress);
  // False: there is no room; the worker keeps the event and sends it again.
  bool AddEvent(const std::string& job_id, EventRecord event);
  bool empty() const { return reports_.empty(); }

  // The oldest ones, at most `most`, in order.
  std::vector<QueuedReport> Take(size_t most);
  // Reports that could not be stored go back to the front.
  void PutBack(std::vector<QueuedReport> reports);

 private:
  struct Counts {
    size_t progress = 0, events = 0;
  };
  void Count(const QueuedReport& report, int change);

  std::deque<QueuedReport> reports_;
  std::map<std::string, Counts> counts_;  // by job; none is zero
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_REPORT_QUEUE_H_
