// A stage's objective: the weighted sum of its losses on taps of student and teacher, with the adapters between them.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_

#include <torch/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/losses/adapter.h"
#include "student_worker/losses/loss.h"
#include "student_worker/train/tensor_io.h"

namespace distill {

// Owned by the training thread.
class Objective {
 public:
  // Losses of weight 0 are left out altogether: their taps are not asked for and their adapters do not exist.
  // kInvalidArgument: unknown loss, adapter or wire dtype, or no loss of non-zero weight.
  static StatusOr<Objective> Create(const JobPlan& plan, const StagePlan& stage);

  // Taps that Compute reads, each once. "" is the network's output.
  const std::vector<std::string>& student_taps() const { return student_taps_; }
  // Logits travel as float32, maps in the plan's wire dtype. Where that is narrower and only CWD reads the map, its row
  // maximum is subtracted before the cast: CWD does not see the difference and the rounding error shrinks about
  // fifty-fold.
  const std::vector<TapRequest>& teacher_taps() const { return teacher_taps_; }

  // Weights of the adapters, named "adapter.<loss>.weight", in the order of the losses.
  std::vector<NamedTensor> AdapterParameters() const;
  void MoveTo(torch::Device device);

  struct Value {
    torch::Tensor total;        // weighted sum, float32 [], differentiable
    std::vector<double> terms;  // unweighted, in the order of names()
  };
  // `student`, `teacher`: in the order of the taps above. Waits for the device once, to look at the values.
  // Errors name the loss and its taps. kInvalidArgument: shapes (see Loss). kFailedPrecondition: a term is NaN or
  // infinite.
  StatusOr<Value> Compute(const std::vector<torch::Tensor>& student, const std::vector<torch::Tensor>& teacher,
                          const torch::Tensor& labels) const;

  // A scalar that depends on every tap and adapter, for a pass that needs the graph and no loss.
  torch::Tensor Touch(const std::vector<torch::Tensor>& student) const;

  // Names and weights of the terms.
  const std::vector<std::string>& names() const { return names_; }
  double Total(const std::vector<double>& terms) const;

 private:
  struct Term {
    std::string description;  // "loss 'cwd-1' (student tap layer1, teacher tap layer1)"
    double weight;
    std::unique_ptr<Loss> loss;
    std::shared_ptr<Adapter> adapter;  // null: none; shared as torch modules are
    size_t student_index;
    size_t teacher_index;  // kNone: reads no teacher
  };
  static constexpr size_t kNone = static_cast<size_t>(-1);

  std::vector<Term> terms_;
  std::vector<std::string> names_;
  std::vector<std::string> student_taps_;
  std::vector<TapRequest> teacher_taps_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_
