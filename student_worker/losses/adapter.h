// Lifts the student's map to the teacher's channel count before a loss: a 1x1 convolution without bias.
//
// Without bias because for CWD a constant per channel has no effect, and for L2 the batch norm before the tap can
// shift. Trained with the stage (optimizer, gradient synchronisation, checkpoint), dropped at its end, never exported:
// the next stage reads the raw map.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_ADAPTER_H_
#define DISTILL_STUDENT_WORKER_LOSSES_ADAPTER_H_

#include <torch/nn/module.h>

#include <memory>
#include <string>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Thread-compatible.
class Adapter : public torch::nn::Module {
 public:
  // Weight [out, in, 1, 1], float32, uniform in +-1/sqrt(in) (torch's default for convolutions). It depends on the
  // arguments alone, not on torch's global generator, so every rank and every restart gets the same one.
  Adapter(int64_t in_channels, int64_t out_channels, uint64_t seed);

  // (N, in, H, W) -> (N, out, H, W). Computes in the input's dtype.
  torch::Tensor forward(const torch::Tensor& x);

  torch::Tensor weight;
};

// The adapter a loss asks for, or null for "none". The seed is mixed with the names of stage and loss: two adapters of
// a job differ. kInvalidArgument: unknown kind, or channel counts of zero.
StatusOr<std::shared_ptr<Adapter>> MakeAdapter(const LossPlan& loss, const std::string& stage_name, uint64_t job_seed);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_LOSSES_ADAPTER_H_
