#include "student_worker/train/evaluate.h"

#include <torch/torch.h>

#include <algorithm>

#include "common/str_cat.h"
#include "common/zoo/zoo_net.h"
#include "student_worker/train/tensor_io.h"
#include "student_worker/train/trainable_set.h"

namespace distill {
namespace {

constexpr uint64_t kMaxBatch = 256;
// A rank looks up from its work between batches, so a batch must not take long: 256 images of 64x64, 20 of 224x224, one
// or two of 512x1024.
constexpr uint64_t kPixelsOfBatch = 1 << 20;

std::vector<int64_t> Numbers(const torch::Tensor& tensor) {
  const torch::Tensor flat = tensor.to(torch::kCPU).contiguous();
  return {flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel()};
}

// uint8 pixels (n, C, H, W) -> (n, K), or (n, K, H, W) of a net that answers for every pixel: logits, or the sum of two
// views' probabilities.
StatusOr<torch::Tensor> ScoresOf(StudentNet* net, const torch::Tensor& pixels, const JobPlan& plan) {
  const auto logits_of = [&](const torch::Tensor& view) -> StatusOr<torch::Tensor> {
    DISTILL_ASSIGN_OR_RETURN(std::vector<torch::Tensor> taps,
                             net->Forward(NormalizePixels(view, plan.student, /*channels_last=*/true), {""}));
    return std::move(taps[0]);
  };
  DISTILL_ASSIGN_OR_RETURN(torch::Tensor logits, logits_of(pixels));
  if (!plan.evaluate_flip) return logits;
  DISTILL_ASSIGN_OR_RETURN(const torch::Tensor mirrored, logits_of(pixels.flip({3})));
  const torch::Tensor other = mirrored.softmax(1);
  return logits.softmax(1) + (other.dim() == 4 ? other.flip({3}) : other);
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
  const uint64_t batch = std::clamp<uint64_t>(kPixelsOfBatch / test.label_map_bytes(), 1, kMaxBatch);
  const ModelSpec& spec = plan.student;
  const bool dense = test.has_label_maps();
  ScoreTally tally(spec.num_classes, dense);
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
    for (uint64_t start = begin; start < end; start += batch) {
      if (control.revoked()) return absl::CancelledError("the assignment was revoked");
      if (lockstep->stopping()) {
        stopped = true;
        return OkStatus();
      }
      const uint64_t n = std::min(batch, end - start);
      DISTILL_ASSIGN_OR_RETURN(Samples samples, test.ReadRange(start, n));
      const torch::Tensor pixels =
          torch::from_blob(samples.pixels.data(),
                           {static_cast<int64_t>(n), test.channels(), test.height(), test.width()}, torch::kUInt8);
      DISTILL_ASSIGN_OR_RETURN(const torch::Tensor scores, ScoresOf(net, pixels.to(device), plan));
      const std::vector<int64_t> labels = LabelsOf(samples);
      tally.Add(Classes(scores), labels, dense ? std::vector<int64_t>() : Larger(scores, labels));
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
