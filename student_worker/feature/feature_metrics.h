// What a TeacherPool counts, under the names of docs/services.md.
//
// Thread-safe, as metrics are.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_FEATURE_METRICS_H_
#define DISTILL_STUDENT_WORKER_FEATURE_FEATURE_METRICS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "common/metrics/metrics.h"
#include "common/status.h"

namespace distill {

class FeatureMetrics {
 public:
  // Not owned, outlives this; null: nothing is counted.
  explicit FeatureMetrics(MetricsRegistry* registry);

  // `shared`: through shared memory.
  void Received(size_t bytes, bool shared);
  // A request ended so, `took` after it was made.
  void Ended(const Status& status, std::chrono::duration<double> took);
  // A request was taken from a teacher and waits for another one.
  void Resent();
  // A request that one teacher has was sent to a second one.
  void AskedSecond();
  // A teacher was set aside: it fell silent, or else it answered wrongly.
  void SetAside(bool silent);
  void Connected(size_t teachers);
  void InFlight(uint64_t bytes);

 private:
  // All null without a registry.
  Counter* bytes_ = nullptr;
  Counter* shared_bytes_ = nullptr;
  Counter* ok_ = nullptr;
  Counter* error_ = nullptr;
  Counter* cancelled_ = nullptr;
  Counter* resends_ = nullptr;
  Counter* seconds_asked_ = nullptr;
  Counter* silent_ = nullptr;
  Counter* wrong_ = nullptr;
  Histogram* latency_ = nullptr;
  Gauge* connected_ = nullptr;
  Gauge* in_flight_ = nullptr;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_FEATURE_METRICS_H_
