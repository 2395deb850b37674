#include "student_worker/train/evaluate.h"

#include <torch/torch.h>

#include <algorithm>

#include "student_worker/train/tensor_io.h"
#include "student_worker/train/trainable_set.h"

namespace distill {
namespace {

constexpr uint64_t kBatch = 256;

}  // namespace

StatusOr<double> EvaluateAccuracy(ZooNet* net, const Dataset& test, const ModelSpec& spec, Lockstep* lockstep,
                                  const JobControl& control, torch::Device device) {
  const uint64_t rank = lockstep->group()->rank(), ranks = lockstep->group()->world_size();
  const uint64_t begin = test.size() * rank / ranks, end = test.size() * (rank + 1) / ranks;
  Status status;
  double correct = 0;
  {
    torch::NoGradGuard no_grad;
    const EvalModeGuard eval_mode(net);
    for (uint64_t start = begin; start < end && status.ok(); start += kBatch) {
      if (control.revoked()) return absl::CancelledError("the assignment was revoked");
      const uint64_t n = std::min(kBatch, end - start);
      torch::Tensor pixels =
          torch::empty({static_cast<int64_t>(n), test.channels(), test.height(), test.width()}, torch::kUInt8);
      std::vector<int64_t> labels;
      for (uint64_t i = 0; i < n; ++i) {
        test.CopyImage(start + i, pixels.data_ptr<uint8_t>() + i * test.image_bytes());
        labels.push_back(test.label(start + i));
      }
      auto logits = net->Forward(NormalizePixels(pixels.to(device), spec, /*channels_last=*/true), {""});  // (n, K)
      status = logits.status();
      if (status.ok()) {
        correct += (*logits)[0].argmax(1).to(torch::kCPU).eq(torch::tensor(labels, torch::kInt64)).sum().item<double>();
      }
    }
  }
  // A rank that failed meets the others all the same, so that nobody waits for it.
  auto round = lockstep->Meet({.failed = !status.ok(), .waiting = false, .values = {correct}});
  DISTILL_RETURN_IF_ERROR(status);
  DISTILL_RETURN_IF_ERROR(round.status());
  if (round->failed > 0) return absl::AbortedError("evaluation: another rank failed; it reports why");
  return round->sums[0] / static_cast<double>(test.size());
}

}  // namespace distill
