#include "teacher_server/inference_v2/infer_statistics.h"

namespace distill {

void InferStatistics::Answered(size_t model, uint32_t images, const Times& times) {
  // People read it: the wall clock, whatever it is set to.
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  absl::MutexLock lock(&mutex_);
  Totals& totals = totals_[model];
  ++totals.answered;
  totals.images += images;
  totals.times.total += times.total;
  totals.times.input += times.input;
  totals.times.queue += times.queue;
  totals.times.infer += times.infer;
  totals.times.output += times.output;
  totals.last_unix_ms = std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

void InferStatistics::Failed(size_t model, Duration total) {
  absl::MutexLock lock(&mutex_);
  Totals& totals = totals_[model];
  ++totals.failed;
  totals.failed_time += total;
}

InferStatistics::Totals InferStatistics::Of(size_t model) const {
  absl::MutexLock lock(&mutex_);
  const auto found = totals_.find(model);
  return found == totals_.end() ? Totals{} : found->second;
}

}  // namespace distill
