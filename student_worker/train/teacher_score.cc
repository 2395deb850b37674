#include "student_worker/train/teacher_score.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"

namespace distill {
namespace {

constexpr int kInFlight = 8;  // batches; logits are small, pixels are what this holds

// Shared with the pool's callbacks, which may come after the caller has given up.
struct Tally {
  Tally(uint32_t classes, bool pixels) : score(classes, pixels) {}
  absl::Mutex mutex;
  int in_flight ABSL_GUARDED_BY(mutex) = 0;
  ScoreTally score ABSL_GUARDED_BY(mutex);
  Status error ABSL_GUARDED_BY(mutex);
};

struct Answers {
  std::vector<int64_t> classes;  // of the largest logits, one for each label
  std::vector<int64_t> larger;   // of images: how many classes have a larger logit than the label's
};

// `positions` answers in each of n images.
StatusOr<Answers> AnswersOf(const FeatureBatch& features, uint64_t n, uint64_t positions, uint64_t rank,
                            const std::vector<int64_t>& labels) {
  const WireTensor* tap = features.taps.size() == 1 ? &features.taps[0] : nullptr;
  const auto fits = [&] {
    if (tap == nullptr || tap->dtype != WireDtype::kF32 || tap->shape.size() != rank) return false;
    if (tap->shape[0] != n || tap->shape[1] == 0) return false;
    return tap->bytes.size == n * tap->shape[1] * positions * sizeof(float);
  };
  if (!fits()) {
    return absl::InvalidArgumentError(StrCat("the teacher's output is not float32 logits of ", n, " images",
                                             rank == 4 ? " for every pixel" : "", "; it cannot be evaluated"));
  }
  const uint64_t classes = tap->shape[1];
  std::vector<float> logits(n * classes * positions);  // (n, K, positions)
  std::memcpy(logits.data(), tap->bytes.data, tap->bytes.size);
  Answers answers{.classes = std::vector<int64_t>(n * positions, 0), .larger = {}};
  for (uint64_t i = 0; i < n; ++i) {
    const float* const image = logits.data() + i * classes * positions;
    for (uint64_t k = 1; k < classes; ++k) {
      for (uint64_t p = 0; p < positions; ++p) {
        int64_t& found = answers.classes[i * positions + p];
        if (image[k * positions + p] > image[found * positions + p]) found = static_cast<int64_t>(k);
      }
    }
  }
  for (uint64_t i = 0; rank == 2 && i < n; ++i) {
    const float* const image = logits.data() + i * classes;
    const uint64_t label = labels[i] < 0 ? 0 : static_cast<uint64_t>(labels[i]);
    answers.larger.push_back(
        label < classes ? std::count_if(image, image + classes, [&](float logit) { return logit > image[label]; })
                        : static_cast<int64_t>(classes));
  }
  return answers;
}

}  // namespace

StatusOr<Score> MeasureTeacherScore(TeacherPool* pool, const SampleReader& test, uint32_t classes, uint32_t batch_size,
                                    uint64_t window_bytes, const std::function<bool()>& tick) {
  const auto tally = std::make_shared<Tally>(classes, test.has_label_maps());
  const uint64_t positions = test.has_label_maps() ? test.label_map_bytes() : 1;
  const uint64_t rank = test.has_label_maps() ? 4 : 2;
  // Waits until at most `limit` batches are in flight.
  const auto wait = [&](int limit) -> Status {
    while (true) {
      {
        absl::MutexLock lock(&tally->mutex);
        auto ready = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(tally->mutex) {
          return !tally->error.ok() || tally->in_flight <= limit;
        };
        const bool met = AwaitFor(&tally->mutex, absl::Condition(&ready), absl::Milliseconds(200));
        if (met) return tally->error;
      }
      if (!tick()) return absl::CancelledError("the teacher's evaluation was stopped");
    }
  };
  // Not less than one image: whether one fits is the coordinator's to know at submit, and the pool's to say.
  const uint64_t answer_bytes = classes * positions * sizeof(float);
  const uint64_t batch = std::clamp<uint64_t>(std::min({window_bytes / answer_bytes, kMaxAnswerBytes / answer_bytes,
                                                        kMaxPixelBytes / std::max<uint64_t>(1, test.image_bytes())}),
                                              1, std::clamp<uint32_t>(batch_size, 1, kMaxBatchImages));
  std::vector<uint64_t> tickets;
  Status status;
  uint64_t id = 0;
  for (uint64_t start = 0; start < test.size() && status.ok(); start += batch) {
    const uint64_t n = std::min(batch, test.size() - start);
    StatusOr<Samples> samples = test.ReadRange(start, n);
    if (!samples.ok()) {
      status = samples.status();
      break;
    }
    std::vector<int64_t> labels = LabelsOf(*samples);
    ImageBatch images{static_cast<uint32_t>(n), test.channels(), test.height(), test.width(),
                      Buffer::FromVector(std::move(samples->pixels))};
    {
      absl::MutexLock lock(&tally->mutex);
      ++tally->in_flight;
    }
    tickets.push_back(
        pool->Fetch(id++, std::move(images), [=, labels = std::move(labels)](StatusOr<FeatureBatch> features) {
          const StatusOr<Answers> answers =
              features.ok() ? AnswersOf(*features, n, positions, rank, labels) : StatusOr<Answers>(features.status());
          absl::MutexLock lock(&tally->mutex);
          --tally->in_flight;
          if (answers.ok()) {
            tally->score.Add(answers->classes, labels, answers->larger);
          } else if (tally->error.ok()) {
            tally->error = answers.status();
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
  return tally->score.Result();
}

}  // namespace distill
