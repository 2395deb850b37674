// An exponential moving average of a net's weights (Polyak and Juditsky 1992; in the form of Tarvainen and Valpola
// 2017, arXiv:1703.01780): after the n-th update, n counting from 1,
// clang-format off
//     average = d average + (1 - d) weights,   d = min(decay, (1 + n) / (10 + n))
// clang-format on
// so that the first updates, which know little, do not hold on to where training began. It starts from the weights as
// they are when it is made, and takes in the floating-point buffers (batch norm's statistics) as well.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_WEIGHT_AVERAGE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_WEIGHT_AVERAGE_H_

#include <torch/types.h>

#include <cstdint>
#include <vector>

#include "student_worker/train/tensor_io.h"

namespace distill {

// Owned by the training thread.
class WeightAverage {
 public:
  // `weights`: parameters and buffers of the net, its own tensors, which must keep their places; those that are not
  // floating point (counters) are left out. decay in [0, 1).
  WeightAverage(const std::vector<NamedTensor>& weights, double decay);

  void Update();
  // Exchanges average and weights, in place. Twice: as before. No Update() between the two.
  void Swap();
  // n above.
  uint64_t updates() const { return updates_; }
  void set_updates(uint64_t updates) { updates_ = updates; }
  // The live averages, named "ema.<parameter or buffer>".
  const std::vector<NamedTensor>& State() const { return state_; }

 private:
  const double decay_;
  uint64_t updates_ = 0;
  std::vector<torch::Tensor> weights_;   // the net's own
  std::vector<torch::Tensor> averages_;  // in their order
  std::vector<NamedTensor> state_;       // the same tensors as averages_
};

// Puts the average in the net's place while it lives; null: does nothing.
class AveragedWeightsGuard {
 public:
  explicit AveragedWeightsGuard(WeightAverage* average) : average_(average) {
    if (average_ != nullptr) average_->Swap();
  }
  ~AveragedWeightsGuard() {
    if (average_ != nullptr) average_->Swap();
  }
  AveragedWeightsGuard(const AveragedWeightsGuard&) = delete;
  AveragedWeightsGuard& operator=(const AveragedWeightsGuard&) = delete;

 private:
  WeightAverage* const average_;  // not owned, outlives the guard
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_WEIGHT_AVERAGE_H_
