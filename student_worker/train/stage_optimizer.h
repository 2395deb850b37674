// The optimizer of one stage over exactly the parameters that train in it: torch's SGD or Adam, with its state by name.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STAGE_OPTIMIZER_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STAGE_OPTIMIZER_H_

#include <torch/optim/optimizer.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "student_worker/train/tensor_io.h"

namespace distill {

// Parameters that share settings.
struct ParameterGroup {
  std::vector<NamedTensor> parameters;
  double lr_mult = 1;                  // on the stage's learning rate
  bool constant_lr = false;            // true: the schedule's factor does not apply
  std::optional<double> weight_decay;  // none: the optimizer's
};

// Owned by the training thread.
class StageOptimizer {
 public:
  // "sgd": momentum, weight decay, Nesterov as in torch.optim.SGD without dampening. "adam": betas 0.9 and 0.999,
  // epsilon 1e-8, weight decay added to the gradient, as in torch.optim.Adam; `momentum` and `nesterov` are not read.
  // kInvalidArgument: unknown type, a negative or non-finite number, Nesterov without momentum, no parameters.
  static StatusOr<std::unique_ptr<StageOptimizer>> Create(const OptimizerPlan& plan,
                                                          std::vector<ParameterGroup> groups);

  // The rate of the next steps: plan.lr times the schedule's factor, times each group's own factor. The groups in
  // `asleep` (indices into Create's `groups`) do not move, not through weight decay either.
  void SetScheduleFactor(double factor, const std::vector<size_t>& asleep = {});
  // Gradients become undefined, not zero: a parameter that no loss reaches must not move through weight decay either.
  void ZeroGrad();
  // Clips the gradients to plan.clip_norm first, if that is above 0. Throws c10::Error when torch does.
  void Step();

  const std::vector<NamedTensor>& parameters() const { return parameters_; }

  // The live state, named "optimizer.<parameter>.<kind>" with kind momentum_buffer (SGD), exp_avg, exp_avg_sq (Adam).
  // Parameters that were never stepped get their zeros here, which is what torch would start from. SGD without momentum
  // has none.
  std::vector<NamedTensor> StateTensors();
  // Adam's step count, equal for all parameters; 0 for SGD.
  int64_t StepCount();
  void SetStepCount(int64_t count);

 private:
  StageOptimizer() = default;

  bool adam_ = false;
  OptimizerPlan plan_;
  struct GroupRates {
    size_t group = 0;  // as Create numbers them
    double lr_mult = 1;
    bool constant_lr = false;
    double weight_decay = 0;
  };
  std::vector<GroupRates> rates_;  // of the groups that have parameters, as torch numbers them
  std::vector<NamedTensor> parameters_;
  std::unique_ptr<torch::optim::Optimizer> optimizer_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STAGE_OPTIMIZER_H_
