// What the Open Inference Protocol's ModelStatistics tells of each model: of the requests that came over it.
#ifndef DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_STATISTICS_H_
#define DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_STATISTICS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {

// Thread-safe.
class InferStatistics {
 public:
  using Duration = std::chrono::nanoseconds;

  // One request.
  struct Times {
    Duration total{0};   // from its arrival to its answer being ready to go
    Duration input{0};   // reading it
    Duration queue{0};   // waiting for the model
    Duration infer{0};   // the forward pass, which other requests may have shared
    Duration output{0};  // writing the answer
  };
  struct Totals {
    uint64_t answered = 0, failed = 0;  // requests
    uint64_t images = 0;                // of those answered
    Times times;                        // of those answered, added up
    Duration failed_time{0};
    int64_t last_unix_ms = 0;  // when one was last answered; 0: never
  };

  // `model`: index into the engine's models.
  void Answered(size_t model, uint32_t images, const Times& times);
  void Failed(size_t model, Duration total);
  // All zero of a model that was never asked.
  Totals Of(size_t model) const;

 private:
  mutable absl::Mutex mutex_;
  std::map<size_t, Totals> totals_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_INFERENCE_V2_INFER_STATISTICS_H_
