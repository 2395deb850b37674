// The optimizer of one stage over exactly the parameters that train in it: torch's SGD, Adam or AdamW, or LAMB,
// with its state by name.
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
  // "sgd": momentum, weight decay, Nesterov as in torch.optim.SGD without dampening. "adam": beta1, beta2, eps, weight
  // decay added to the gradient, as in torch.optim.Adam. "adamw": weight decay apart from the gradient, as in
  // torch.optim.AdamW. "lamb": lamb.h. `momentum` and `nesterov` are read by sgd alone.
  // With decay_norms_and_biases false, parameters of one dimension do not decay, whatever their group says, and have no
  // trust ratio under lamb. ema_decay and lr_mult are for the caller.
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

  // The live state, named "optimizer.<parameter>.<kind>" with kind momentum_buffer (SGD), exp_avg, exp_avg_sq (the
  // others). Parameters that were never stepped get their zeros here, which is what torch would start from. SGD without
  // momentum has none.
  std::vector<NamedTensor> StateTensors();
  // Steps that Adam, AdamW or LAMB took, equal for all parameters; 0 for SGD.
  int64_t StepCount();
  void SetStepCount(int64_t count);

 private:
  StageOptimizer() = default;

  // Adds exp_avg and exp_avg_sq of all parameters; State: torch's class that holds them.
  template <typename State>
  void AddMoments(std::vector<NamedTensor>* tensors);

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
