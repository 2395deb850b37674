#include "student_worker/train/evaluate.h"

#include <torch/torch.h>

#include <algorithm>
#include <functional>

#include "common/str_cat.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/train/evaluation_views.h"
#include "student_worker/train/tensor_io.h"
#include "student_worker/train/trainable_set.h"

namespace distill {
namespace {

constexpr uint64_t kMaxBatch = 256;
// A rank looks up from its work between views, so a batch must not take long: 256 images of 64x64, 20 of 224x224, one
// or two of 512x1024.
constexpr uint64_t kPixelsOfBatch = 1 << 20;

std::vector<int64_t> Numbers(const torch::Tensor& tensor) {
  const torch::Tensor flat = tensor.to(torch::kCPU).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

// uint8 pixels (n, C, H, W) -> (n, K), or (n, K, H, W) of a net that answers for every pixel. nullopt: `go_on` said no.
StatusOr<std::optional<torch::Tensor>> ScoresOf(StudentNet* net, const torch::Tensor& pixels, const ModelSpec& spec,
                                                const EvaluationViews& views, const std::function<bool()>& go_on) {
  ShownPictures pictures(&views, pixels);
  ViewAnswers answers(&views);
  for (size_t i = 0; i < views.views().size(); ++i) {
    if (!go_on()) return std::optional<torch::Tensor>();
    const torch::Tensor x = NormalizePixels(pictures.At(i).contiguous(), spec, /*channels_last=*/true);
    if (x.size(2) == spec.image_height && x.size(3) == spec.image_width) {
      DISTILL_ASSIGN_OR_RETURN(const std::vector<torch::Tensor> taps, net->Forward(x, {""}));
      answers.Add(i, taps[0]);
    } else {
      DISTILL_ASSIGN_OR_RETURN(const torch::Tensor logits, net->ForwardAtAnySize(x));
      answers.Add(i, logits);
    }
  }
  return std::optional<torch::Tensor>(answers.Scores());
}

// (n, K, ...) scores -> classes, one for each label.
std::vector<int64_t> Classes(const torch::Tensor& scores) { return Numbers(scores.argmax(1)); }

// (n, K) scores -> how many classes have a larger one than the label's; of those without a label than class 0's.
std::vector<int64_t> Larger(const torch::Tensor& scores, const std::vector<int64_t>& labels) {
  const torch::Tensor index = torch::tensor(labels, torch::kInt64).clamp_min(0).view({-1, 1}).to(scores.device());
  return Numbers(scores.gt(scores.gather(1, index)).sum(1));
}

}  // namespace

StatusOr<std::optional<Score>> Evaluate(StudentNet* net, const SampleReader& test, const JobPlan& plan,
                                        Lockstep* lockstep, const JobControl& control, torch::Device device) {
  const uint64_t rank = lockstep->group()->rank(), ranks = lockstep->group()->world_size();
  const uint64_t begin = test.size() * rank / ranks, end = test.size() * (rank + 1) / ranks;
  const ModelSpec& spec = plan.student;
  const bool dense = test.has_label_maps();
  ScoreTally tally(spec.num_classes, dense);
  DISTILL_ASSIGN_OR_RETURN(const EvaluationViews views, EvaluationViews::Create(plan, test.height(), test.width()));
  const uint64_t pixels_of_image = std::max(test.label_map_bytes(), views.most_pixels());
  const uint64_t batch = std::clamp<uint64_t>(kPixelsOfBatch / pixels_of_image, 1, kMaxBatch);
  bool stopped = false;
  const int threads = at::get_num_threads();
  const Status counted = lockstep->Together("evaluate", [&]() -> Status {
    if (dense != net->architecture().dense()) {
      return absl::InvalidArgumentError(StrCat(spec.arch, " answers for every ", dense ? "image" : "pixel",
                                               ", but the test set has a label for every ", dense ? "pixel" : "image"));
    }
    at::set_num_threads(threads);  // this may be a thread of its own
    const torch::NoGradGuard no_grad;
    const EvalModeGuard eval_mode(net);
    const auto go_on = [&] { return !control.revoked() && !lockstep->stopping(); };
    for (uint64_t start = begin; start < end; start += batch) {
      const uint64_t n = std::min(batch, end - start);
      DISTILL_ASSIGN_OR_RETURN(Samples samples, test.ReadRange(start, n));
      const torch::Tensor pixels =
          torch::from_blob(samples.pixels.data(),
                           {static_cast<int64_t>(n), test.channels(), test.height(), test.width()}, torch::kUInt8);
      DISTILL_ASSIGN_OR_RETURN(const std::optional<torch::Tensor> scores,
                               ScoresOf(net, pixels.to(device), spec, views, go_on));
      if (!scores.has_value()) {
        if (control.revoked()) return absl::CancelledError("the assignment was revoked");
        stopped = true;
        return OkStatus();
      }
      const std::vector<int64_t> labels = LabelsOf(samples);
      tally.Add(Classes(*scores), labels, dense ? std::vector<int64_t>() : Larger(*scores, labels));
    }
    return OkStatus();
  });
  DISTILL_RETURN_IF_ERROR(Annotate(counted, "evaluation"));
  std::vector<double> values = tally.counts();
  values.push_back(stopped ? 1 : 0);
  DISTILL_ASSIGN_OR_RETURN(Lockstep::Round round,
                           lockstep->Meet({.failed = false, .waiting = false, .values = std::move(values)}));
  if (round.sums.back() > 0) return std::optional<Score>();
  round.sums.pop_back();
  tally.SetCounts(std::move(round.sums));
  return std::optional<Score>(tally.Result());
}

}  // namespace distill
