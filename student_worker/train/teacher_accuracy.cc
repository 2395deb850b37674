#include "student_worker/train/teacher_accuracy.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr int kInFlight = 8;  // batches; logits are small, pixels are what this holds

// Shared with the pool's callbacks, which may come after the caller has given up.
struct Tally {
  absl::Mutex mutex;
  int in_flight ABSL_GUARDED_BY(mutex) = 0;
  uint64_t correct ABSL_GUARDED_BY(mutex) = 0;
  Status error ABSL_GUARDED_BY(mutex);
};

StatusOr<uint64_t> CountCorrect(const FeatureBatch& features, const std::vector<int64_t>& labels) {
  const uint64_t n = labels.size();
  if (features.taps.size() != 1 || features.taps[0].dtype != WireDtype::kF32 || features.taps[0].shape.size() != 2 ||
      features.taps[0].shape[0] != n || features.taps[0].shape[1] == 0 ||
      features.taps[0].bytes.size != ByteSize(features.taps[0].shape, WireDtype::kF32)) {
    return absl::InvalidArgumentError(
        StrCat("the teacher's output is not float32 logits of ", n, " images; it cannot be evaluated"));
  }
  const uint64_t classes = features.taps[0].shape[1];
  std::vector<float> logits(n * classes);
  std::memcpy(logits.data(), features.taps[0].bytes.data, features.taps[0].bytes.size);
  uint64_t correct = 0;
  for (uint64_t i = 0; i < n; ++i) {
    const auto row = logits.begin() + i * classes;
    correct += std::max_element(row, row + classes) - row == labels[i] ? 1 : 0;
  }
  return correct;
}

}  // namespace

StatusOr<double> MeasureTeacherAccuracy(TeacherPool* pool, const Dataset& test, uint32_t batch_size,
                                        const std::function<bool()>& tick) {
  const auto tally = std::make_shared<Tally>();
  // Waits until at most `limit` batches are in flight.
  const auto wait = [&](int limit) -> Status {
    while (true) {
      {
        absl::MutexLock lock(&tally->mutex);
        auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(tally->mutex) {
          return !tally->error.ok() || tally->in_flight <= limit;
        };
        const bool met = tally->mutex.AwaitWithTimeout(absl::Condition(&ready), absl::Milliseconds(200));
        if (met) return tally->error;
      }
      if (!tick()) return absl::CancelledError("the teacher's evaluation was stopped");
    }
  };
  std::vector<uint64_t> tickets;
  Status status;
  uint64_t id = 0;
  for (uint64_t start = 0; start < test.size() && status.ok(); start += batch_size) {
    const uint64_t n = std::min<uint64_t>(batch_size, test.size() - start);
    std::vector<uint8_t> pixels(n * test.image_bytes());
    std::vector<int64_t> labels;
    for (uint64_t i = 0; i < n; ++i) {
      test.CopyImage(start + i, pixels.data() + i * test.image_bytes());
      labels.push_back(test.label(start + i));
    }
    ImageBatch images{static_cast<uint32_t>(n), test.channels(), test.height(), test.width(),
                      Buffer::FromVector(std::move(pixels))};
    {
      absl::MutexLock lock(&tally->mutex);
      ++tally->in_flight;
    }
    tickets.push_back(
        pool->Fetch(id++, std::move(images), [tally, labels = std::move(labels)](StatusOr<FeatureBatch> features) {
          StatusOr<uint64_t> correct =
              features.ok() ? CountCorrect(*features, labels) : StatusOr<uint64_t>(features.status());
          absl::MutexLock lock(&tally->mutex);
          --tally->in_flight;
          if (correct.ok()) {
            tally->correct += *correct;
          } else if (tally->error.ok()) {
            tally->error = correct.status();
          }
        }));
    status = wait(kInFlight - 1);
  }
  if (status.ok()) status = wait(0);
  if (!status.ok()) {
    for (uint64_t ticket : tickets) pool->Cancel(ticket);  // answered ones are ignored
    return Annotate(status, "evaluating the teacher");
  }
  absl::MutexLock lock(&tally->mutex);
  return static_cast<double>(tally->correct) / static_cast<double>(test.size());
}

}  // namespace distill
