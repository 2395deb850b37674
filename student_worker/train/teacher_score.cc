#include "student_worker/train/teacher_score.h"

#include <torch/torch.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/wire/limits.h"
#include "student_worker/train/evaluation_views.h"
#include "student_worker/train/tensor_io.h"

namespace distill {
namespace {

constexpr size_t kInFlight = 8;  // batches; logits are small, pixels are what this holds

// One request's answer. Shared with the pool's callback, which may come after the caller has given up.
struct Answer {
  absl::Mutex mutex;
  std::optional<StatusOr<FeatureBatch>> features ABSL_GUARDED_BY(mutex);
};

// Some images and what their views were answered.
struct Batch {
  Batch(const EvaluationViews* views, Samples read) : samples(std::move(read)), answers(views) {}
  Samples samples;
  ViewAnswers answers;
};

struct Request {
  std::shared_ptr<Answer> answer;
  std::shared_ptr<Batch> batch;  // shared by the requests for its views
  size_t view = 0;
};

std::vector<int64_t> Numbers(const torch::Tensor& tensor) {
  const torch::Tensor flat = tensor.contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

// [n, K], or [n, K, h, w]
StatusOr<torch::Tensor> LogitsOf(const FeatureBatch& features, int64_t n, const EvaluationViews::View& view,
                                 bool dense) {
  const WireTensor* const tap = features.taps.size() == 1 ? &features.taps[0] : nullptr;
  if (tap != nullptr && tap->encoding.dtype == WireDtype::kF32) {
    DISTILL_ASSIGN_OR_RETURN(torch::Tensor logits, FromWireTensor(*tap));
    const bool fits = logits.dim() == (dense ? 4 : 2) && logits.size(0) == n && logits.size(1) > 0 &&
                      (!dense || (logits.size(2) == view.size[0] && logits.size(3) == view.size[1]));
    if (fits) return logits;
  }
  return absl::InvalidArgumentError(StrCat("the teacher's output is not float32 logits of ", n, " images",
                                           dense ? " for every pixel" : "", "; it cannot be evaluated"));
}

// Takes in the answer to a view; that to the last one completes the batch, whose answers count.
Status Take(const EvaluationViews& views, const Request& request, const FeatureBatch& features, bool dense,
            ScoreTally* tally) {
  const auto n = static_cast<int64_t>(request.batch->samples.labels.size());
  DISTILL_ASSIGN_OR_RETURN(const torch::Tensor logits, LogitsOf(features, n, views.views()[request.view], dense));
  request.batch->answers.Add(request.view, logits);
  if (request.view + 1 < views.views().size()) return OkStatus();
  const torch::Tensor scores = request.batch->answers.Scores();
  const std::vector<int64_t> labels = LabelsOf(request.batch->samples);
  std::vector<int64_t> larger;
  if (!dense) {
    // A label beyond the teacher's classes has all of them before it.
    const torch::Tensor index = torch::tensor(labels, torch::kInt64).clamp_min(0).view({-1, 1});
    const torch::Tensor known = index.lt(scores.size(1)).squeeze(1);
    const torch::Tensor own = scores.gather(1, index.clamp_max(scores.size(1) - 1));
    larger =
        Numbers(torch::where(known, scores.gt(own).sum(1), torch::full_like(known, scores.size(1), torch::kInt64)));
  }
  tally->Add(Numbers(scores.argmax(1)), labels, larger);
  return OkStatus();
}

// Its first images, as they travel.
ImageBatch Pixels(const torch::Tensor& shown) {
  const torch::Tensor plain = shown.contiguous();
  const auto* const bytes = plain.const_data_ptr<uint8_t>();
  const auto side = [&](int64_t axis) { return static_cast<uint32_t>(plain.size(axis)); };
  return {side(0), side(1), side(2), side(3), Buffer::FromVector({bytes, bytes + plain.numel()})};
}

}  // namespace

StatusOr<Score> MeasureTeacherScore(TeacherPool* pool, const SampleReader& test, const JobPlan& plan,
                                    const std::function<bool()>& tick) {
  const torch::NoGradGuard no_grad;
  const bool dense = test.has_label_maps();
  const uint32_t classes = plan.student.num_classes;
  DISTILL_ASSIGN_OR_RETURN(const EvaluationViews views, EvaluationViews::Create(plan, test.height(), test.width()));
  ScoreTally tally(classes, dense);
  std::deque<Request> requests;  // in the order in which they were sent, which is that of the views
  // Takes answers in until at most `limit` are missing.
  const auto wait = [&](size_t limit) -> Status {
    while (requests.size() > limit) {
      const Request& first = requests.front();
      while (true) {
        absl::MutexLock lock(&first.answer->mutex);
        const auto there = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(first.answer->mutex) {
          return first.answer->features.has_value();
        };
        if (AwaitFor(&first.answer->mutex, absl::Condition(&there), absl::Milliseconds(200))) {
          DISTILL_RETURN_IF_ERROR(first.answer->features->status());
          break;
        }
        if (!tick()) return absl::CancelledError("the teacher's evaluation was stopped");
      }
      FeatureBatch features;
      {
        absl::MutexLock lock(&first.answer->mutex);
        features = *std::move(*first.answer->features);
      }
      DISTILL_RETURN_IF_ERROR(Take(views, first, features, dense, &tally));
      requests.pop_front();
    }
    return OkStatus();
  };
  // Not less than one image: whether one fits is the coordinator's to know at submit, and the pool's to say.
  const uint64_t answer_bytes = classes * (dense ? views.most_pixels() : 1) * sizeof(float);
  const uint64_t pixel_bytes = std::max<uint64_t>(1, test.channels() * views.most_pixels());
  const uint32_t part = plan.batch_size / std::max<uint32_t>(1, plan.students * plan.accumulate);
  const uint64_t most = std::clamp<uint64_t>(
      std::min({plan.prefetch_bytes / answer_bytes, kMaxAnswerBytes / answer_bytes, kMaxPixelBytes / pixel_bytes}), 1,
      std::clamp<uint32_t>(part, 1, kMaxBatchImages));
  std::vector<uint64_t> tickets;
  const auto send_all = [&]() -> Status {
    uint64_t id = 0;
    for (uint64_t start = 0; start < test.size(); start += most) {
      const uint64_t n = std::min(most, test.size() - start);
      DISTILL_ASSIGN_OR_RETURN(Samples samples, test.ReadRange(start, n));
      const auto batch = std::make_shared<Batch>(&views, std::move(samples));
      ShownPictures pictures(
          &views,
          torch::from_blob(batch->samples.pixels.data(),
                           {static_cast<int64_t>(n), test.channels(), test.height(), test.width()}, torch::kUInt8));
      for (size_t view = 0; view < views.views().size(); ++view) {
        const auto answer = std::make_shared<Answer>();
        requests.push_back({answer, batch, view});
        tickets.push_back(pool->Fetch(id++, Pixels(pictures.At(view)), [answer](StatusOr<FeatureBatch> features) {
          absl::MutexLock lock(&answer->mutex);
          answer->features = std::move(features);
        }));
        DISTILL_RETURN_IF_ERROR(wait(kInFlight - 1));
      }
    }
    return wait(0);
  };
  const Status status = send_all();
  if (!status.ok()) {
    for (uint64_t ticket : tickets) pool->Cancel(ticket);  // answered ones are ignored
    return Annotate(status, "evaluating the teacher");
  }
  return tally.Result();
}

}  // namespace distill
