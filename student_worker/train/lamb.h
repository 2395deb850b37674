// LAMB: Adam whose step is scaled, parameter by parameter, to the size of the parameter.
//
// Source: You et al., ICLR 2020, arXiv:1904.00962, algorithm 2, with phi(z) = z. For each parameter x with gradient g,
// t counting from 1:
// clang-format off
//     m = beta1 m + (1 - beta1) g            v = beta2 v + (1 - beta2) g^2
//     r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay x
//     x = x - lr |x| / |r| r                 (a ratio of 1 where |x| or |r| is 0)
// clang-format on
// As in the authors' code, parameters may be left out of the scaling (`adapt` false): those that do not decay.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_LAMB_H_
#define DISTILL_STUDENT_WORKER_TRAIN_LAMB_H_

#include <torch/optim/adamw.h>
#include <torch/optim/optimizer.h>

#include <memory>
#include <vector>

namespace distill {

struct LambOptions : public torch::optim::OptimizerCloneableOptions<LambOptions> {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  bool adapt = true;
  double get_lr() const override { return lr; }
  void set_lr(const double value) override { lr = value; }
};

// Owned by the training thread. Its state by parameter is torch's AdamWParamState (step, exp_avg, exp_avg_sq).
class Lamb : public torch::optim::Optimizer {
 public:
  explicit Lamb(const std::vector<torch::optim::OptimizerParamGroup>& groups)
      : Optimizer(groups, std::make_unique<LambOptions>()) {}
  // Takes no closure. Parameters without a gradient stay as they are. Reads two norms of each parameter on its device
  // and never waits for it.
  torch::Tensor step(LossClosure closure = nullptr) override;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_LAMB_H_
