// What a process tells about itself, under the names that Prometheus' client libraries use.
#ifndef DISTILL_COMMON_METRICS_PROCESS_METRICS_H_
#define DISTILL_COMMON_METRICS_PROCESS_METRICS_H_

#include <string>

#include "common/metrics/metrics.h"

namespace distill {

// process_start_time_seconds, process_cpu_seconds_total, process_resident_memory_bytes. Thread-compatible.
class ProcessMetrics {
 public:
  // `registry` is not owned and outlives this. The start time is that of the constructor: make it early.
  explicit ProcessMetrics(MetricsRegistry* registry);
  // Reads the present values; takes microseconds.
  void Refresh();

 private:
  Counter& cpu_seconds_;
  Gauge& resident_bytes_;
};

// Sets distill_folder_free_bytes and distill_folder_size_bytes, labelled `folder`, to what the file system that holds
// `path` says. Leaves them as they are when it says nothing. May block as long as the file system does. Thread-safe.
void MeasureFolder(const std::string& folder, const std::string& path, MetricsRegistry* registry);

}  // namespace distill

#endif  // DISTILL_COMMON_METRICS_PROCESS_METRICS_H_
