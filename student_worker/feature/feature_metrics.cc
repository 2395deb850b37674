#include "student_worker/feature/feature_metrics.h"

#include <string>

namespace distill {

FeatureMetrics::FeatureMetrics(MetricsRegistry* registry) {
  if (registry == nullptr) return;
  const std::string requests = "distill_student_feature_requests_total";
  const std::string requests_help = "Feature requests that ended, by result.";
  bytes_ =
      &registry->GetCounter("distill_student_feature_bytes_total", "Bytes of feature maps received from teachers.");
  shared_bytes_ = &registry->GetCounter("distill_student_feature_shared_memory_bytes_total",
                                        "Those of the bytes that came through shared memory.");
  ok_ = &registry->GetCounter(requests, requests_help, {{"result", "ok"}});
  error_ = &registry->GetCounter(requests, requests_help, {{"result", "error"}});
  cancelled_ = &registry->GetCounter(requests, requests_help, {{"result", "cancelled"}});
  resends_ = &registry->GetCounter("distill_student_feature_resends_total",
                                   "Feature requests taken from a teacher unanswered and sent again.");
  seconds_asked_ = &registry->GetCounter("distill_student_feature_seconds_asked_total",
                                         "Feature requests that a second teacher was asked too, because the first was "
                                         "late or is tried out.");
  const std::string aside = "distill_student_teachers_set_aside_total";
  const std::string aside_help = "Times that a teacher was set aside for a while, by why.";
  silent_ = &registry->GetCounter(aside, aside_help, {{"reason", "silent"}});
  wrong_ = &registry->GetCounter(aside, aside_help, {{"reason", "wrong"}});
  latency_ = &registry->GetHistogram("distill_student_feature_latency_seconds",
                                     "Time from asking for features to having all of them, waiting included.",
                                     SecondsBuckets());
  connected_ = &registry->GetGauge("distill_student_teachers_connected", "Teachers with an open feature stream.");
  in_flight_ = &registry->GetGauge("distill_student_feature_inflight_bytes",
                                   "Bytes of feature maps granted to teachers or received and not yet released.");
}

void FeatureMetrics::Received(size_t bytes, bool shared) {
  if (bytes_ == nullptr) return;
  bytes_->Add(static_cast<double>(bytes));
  if (shared) shared_bytes_->Add(static_cast<double>(bytes));
}

void FeatureMetrics::Ended(const Status& status, std::chrono::duration<double> took) {
  if (ok_ == nullptr) return;
  if (status.ok()) {
    ok_->Add();
    latency_->Observe(took.count());
  } else {
    (status.code() == StatusCode::kCancelled ? cancelled_ : error_)->Add();
  }
}

void FeatureMetrics::Resent() {
  if (resends_ != nullptr) resends_->Add();
}

void FeatureMetrics::AskedSecond() {
  if (seconds_asked_ != nullptr) seconds_asked_->Add();
}

void FeatureMetrics::SetAside(bool silent) {
  if (silent_ != nullptr) (silent ? silent_ : wrong_)->Add();
}

void FeatureMetrics::Connected(size_t teachers) {
  if (connected_ != nullptr) connected_->Set(static_cast<double>(teachers));
}

void FeatureMetrics::InFlight(uint64_t bytes) {
  if (in_flight_ != nullptr) in_flight_->Set(static_cast<double>(bytes));
}

}  // namespace distill
