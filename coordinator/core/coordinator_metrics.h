// What the coordinator counts. Names are documented in docs/services.md. Thread-safe.
#ifndef DISTILL_COORDINATOR_CORE_COORDINATOR_METRICS_H_
#define DISTILL_COORDINATOR_CORE_COORDINATOR_METRICS_H_

#include <string>

#include "common/metrics/metrics.h"
#include "coordinator/core/cluster_state.h"
#include "coordinator/core/decide.h"

namespace distill {

class CoordinatorMetrics {
 public:
  explicit CoordinatorMetrics(MetricsRegistry* registry);

  void SetEpoch(uint64_t epoch);
  // Gauges of jobs by state and workers by kind and state.
  void SetCluster(double now, const DecideOptions& options, const ClusterState& state);
  void CountSubmission(const std::string& result);  // accepted, existed, dry_run, refused
  void CountHeartbeat(WorkerKind kind);
  void CountGeneration();
  void CountEnded(JobState state);
  void CountEvents(size_t n);
  void CountCommit(bool ok);
  void ObserveWrite(double seconds);

 private:
  MetricsRegistry* const registry_;  // not owned; outlives the coordinator
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_COORDINATOR_METRICS_H_
