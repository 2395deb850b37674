#include "student_worker/train/teacher_score.h"

#include <algorithm>
#include <cmath>
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

// What the views of a batch of n images were answered. Written by one callback at a time, under Tally::mutex; whoever
// brings the last view has it alone.
struct Views {
  std::vector<int64_t> labels;
  int missing = 1;
  std::vector<float> scores;  // (n, K, positions): logits, or the sum of the views' probabilities
};

struct Answers {
  std::vector<int64_t> classes;  // of the largest scores, one for each label
  std::vector<int64_t> larger;   // of images: how many classes have a larger score than the label's
};

// (n, K, positions)
StatusOr<std::vector<float>> LogitsOf(const FeatureBatch& features, uint64_t n, uint64_t positions, uint64_t rank) {
  const WireTensor* tap = features.taps.size() == 1 ? &features.taps[0] : nullptr;
  const auto fits = [&] {
    if (tap == nullptr || tap->encoding.dtype != WireDtype::kF32 || tap->shape.size() != rank) return false;
    if (tap->shape[0] != n || tap->shape[1] == 0) return false;
    return tap->bytes.size == n * tap->shape[1] * positions * sizeof(float);
  };
  if (!fits()) {
    return absl::InvalidArgumentError(StrCat("the teacher's output is not float32 logits of ", n, " images",
                                             rank == 4 ? " for every pixel" : "", "; it cannot be evaluated"));
  }
  const uint64_t classes = tap->shape[1];
  std::vector<float> logits(n * classes * positions);
  std::memcpy(logits.data(), tap->bytes.data, tap->bytes.size);
  if (tap->layout == TensorLayout::kRowMajor) return logits;
  std::vector<float> moved(logits.size());  // from (n, positions, K)
  for (uint64_t i = 0; i < n; ++i) {
    const float* const from = logits.data() + i * classes * positions;
    float* const to = moved.data() + i * classes * positions;
    for (uint64_t p = 0; p < positions; ++p) {
      for (uint64_t k = 0; k < classes; ++k) to[k * positions + p] = from[p * classes + k];
    }
  }
  return moved;
}

// Softmax over the classes of logits (n, K, positions), in place.
void ToProbabilities(uint64_t classes, uint64_t positions, std::vector<float>* logits) {
  for (size_t image = 0; image < logits->size(); image += classes * positions) {
    for (uint64_t p = 0; p < positions; ++p) {
      float* const first = logits->data() + image + p;
      float largest = *first;
      for (uint64_t k = 1; k < classes; ++k) largest = std::max(largest, first[k * positions]);
      double sum = 0;
      for (uint64_t k = 0; k < classes; ++k) sum += first[k * positions] = std::exp(first[k * positions] - largest);
      for (uint64_t k = 0; k < classes; ++k) first[k * positions] = static_cast<float>(first[k * positions] / sum);
    }
  }
}

// Turns each row of `width` values round.
template <typename T>
void Mirror(uint64_t width, std::vector<T>* values) {
  for (size_t row = 0; row < values->size(); row += width) {
    std::reverse(values->data() + row, values->data() + row + width);
  }
}

// Of images with `positions` answers each.
Answers AnswersOf(const Views& views, uint64_t positions, bool pixels) {
  const std::vector<int64_t>& labels = views.labels;  // n * positions
  const uint64_t n = labels.size() / positions, classes = views.scores.size() / labels.size();
  Answers answers{.classes = std::vector<int64_t>(labels.size(), 0), .larger = {}};
  for (uint64_t i = 0; i < n; ++i) {
    const float* const image = views.scores.data() + i * classes * positions;
    for (uint64_t k = 1; k < classes; ++k) {
      for (uint64_t p = 0; p < positions; ++p) {
        int64_t& found = answers.classes[i * positions + p];
        if (image[k * positions + p] > image[found * positions + p]) found = static_cast<int64_t>(k);
      }
    }
    if (pixels) continue;
    const uint64_t label = labels[i] < 0 ? 0 : static_cast<uint64_t>(labels[i]);
    answers.larger.push_back(
        label < classes ? std::count_if(image, image + classes, [&](float score) { return score > image[label]; })
                        : static_cast<int64_t>(classes));
  }
  return answers;
}

// Takes in what one view was answered; the last one completes the batch, whose answers count.
void Count(StatusOr<std::vector<float>> scores, uint64_t positions, bool pixels, Views* views, Tally* tally) {
  {
    absl::MutexLock lock(&tally->mutex);
    if (scores.ok() && !views->scores.empty() && scores->size() != views->scores.size()) {
      scores = absl::InvalidArgumentError("the teacher's outputs are of different numbers of classes");
    }
    if (!scores.ok()) {
      --tally->in_flight;
      if (tally->error.ok()) tally->error = scores.status();
      return;
    }
    if (views->scores.empty()) {
      views->scores = *std::move(scores);
    } else {
      for (size_t i = 0; i < scores->size(); ++i) views->scores[i] += (*scores)[i];
    }
    if (--views->missing > 0) {
      --tally->in_flight;
      return;
    }
  }
  const Answers answers = AnswersOf(*views, positions, pixels);
  absl::MutexLock lock(&tally->mutex);
  --tally->in_flight;
  tally->score.Add(answers.classes, views->labels, answers.larger);
}

}  // namespace

StatusOr<Score> MeasureTeacherScore(TeacherPool* pool, const SampleReader& test, const TeacherScoreOptions& options,
                                    const std::function<bool()>& tick) {
  const bool pixels = test.has_label_maps(), flip = options.flip;
  const auto tally = std::make_shared<Tally>(options.classes, pixels);
  const uint64_t positions = pixels ? test.label_map_bytes() : 1;
  const uint64_t rank = pixels ? 4 : 2;
  const uint64_t width = test.width();
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
  const uint64_t answer_bytes = options.classes * positions * sizeof(float);
  const uint64_t batch =
      std::clamp<uint64_t>(std::min({options.window_bytes / answer_bytes, kMaxAnswerBytes / answer_bytes,
                                     kMaxPixelBytes / std::max<uint64_t>(1, test.image_bytes())}),
                           1, std::clamp<uint32_t>(options.batch_size, 1, kMaxBatchImages));
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
    const auto views = std::make_shared<Views>();
    views->labels = LabelsOf(*samples);
    views->missing = flip ? 2 : 1;
    for (const bool mirrored : {false, true}) {
      if (mirrored && !flip) break;
      const bool last = mirrored || !flip;
      std::vector<uint8_t> shown = last ? std::move(samples->pixels) : samples->pixels;
      if (mirrored) Mirror(width, &shown);
      ImageBatch images{static_cast<uint32_t>(n), test.channels(), test.height(), test.width(),
                        Buffer::FromVector(std::move(shown))};
      {
        absl::MutexLock lock(&tally->mutex);
        ++tally->in_flight;
      }
      tickets.push_back(pool->Fetch(id++, std::move(images), [=](StatusOr<FeatureBatch> features) {
        StatusOr<std::vector<float>> scores =
            features.ok() ? LogitsOf(*features, n, positions, rank) : StatusOr<std::vector<float>>(features.status());
        if (scores.ok() && flip) {
          ToProbabilities(scores->size() / (n * positions), positions, &*scores);
          if (mirrored && pixels) Mirror(width, &*scores);
        }
        Count(std::move(scores), positions, pixels, views.get(), tally.get());
      }));
      status = wait(kInFlight - 1);
      if (!status.ok()) break;
    }
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
