#include "student_worker/train/evaluate.h"

#include <torch/torch.h>

#include <algorithm>

#include "common/str_cat.h"
#include "student_worker/train/tensor_io.h"
#include "student_worker/train/trainable_set.h"

namespace distill {
namespace {

constexpr uint64_t kMaxBatch = 256;
constexpr uint64_t kPixelsOfDenseBatch = 4 << 20;  // logits for every pixel take room

// (n, K, ...) logits -> classes, one for each label.
std::vector<int64_t> Classes(const torch::Tensor& logits) {
  const torch::Tensor classes = logits.argmax(1).to(torch::kCPU).contiguous();  // (n) or (n, H, W)
  return {classes.data_ptr<int64_t>(), classes.data_ptr<int64_t>() + classes.numel()};
}

}  // namespace

StatusOr<Score> Evaluate(ZooNet* net, const Dataset& test, const ModelSpec& spec, Lockstep* lockstep,
                         const JobControl& control, torch::Device device) {
  const uint64_t rank = lockstep->group()->rank(), ranks = lockstep->group()->world_size();
  const uint64_t begin = test.size() * rank / ranks, end = test.size() * (rank + 1) / ranks;
  const bool dense = test.has_label_maps();
  const uint64_t batch =
      dense ? std::clamp<uint64_t>(kPixelsOfDenseBatch / test.label_map_bytes(), 1, kMaxBatch) : kMaxBatch;
  ScoreTally tally(spec.num_classes, dense);
  Status status;
  if (dense != net->architecture().dense()) {
    status = absl::InvalidArgumentError(StrCat(spec.arch, " answers for every ", dense ? "image" : "pixel",
                                               ", but the test set has a label for every ", dense ? "pixel" : "image"));
  }
  {
    torch::NoGradGuard no_grad;
    const EvalModeGuard eval_mode(net);
    for (uint64_t start = begin; start < end && status.ok(); start += batch) {
      if (control.revoked()) return absl::CancelledError("the assignment was revoked");
      const uint64_t n = std::min(batch, end - start);
      torch::Tensor pixels =
          torch::empty({static_cast<int64_t>(n), test.channels(), test.height(), test.width()}, torch::kUInt8);
      for (uint64_t i = 0; i < n; ++i) {
        test.CopyImage(start + i, pixels.data_ptr<uint8_t>() + i * test.image_bytes());
      }
      // (n, K), or (n, K, H, W)
      auto logits = net->Forward(NormalizePixels(pixels.to(device), spec, /*channels_last=*/true), {""});
      status = logits.status();
      if (status.ok()) tally.Add(Classes((*logits)[0]), LabelsOf(test, start, n));
    }
  }
  // A rank that failed meets the others all the same, so that nobody waits for it.
  auto round = lockstep->Meet({.failed = !status.ok(), .waiting = false, .values = tally.counts()});
  DISTILL_RETURN_IF_ERROR(status);
  DISTILL_RETURN_IF_ERROR(round.status());
  if (round->failed > 0) return absl::AbortedError("evaluation: another rank failed; it reports why");
  tally.SetCounts(std::move(round->sums));
  return tally.Result();
}

}  // namespace distill
