// A stage's objective: the weighted sum of its losses on taps of student and teacher, with the layers between them.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_
#define DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_

#include <torch/types.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "student_worker/losses/conv_block.h"
#include "student_worker/losses/loss.h"
#include "student_worker/train/stage_optimizer.h"
#include "student_worker/train/tensor_io.h"

namespace distill {

// The factor on a loss's weight when `progress` of the stage's steps, in [0, 1), are done (WeightSchedulePlan).
double WeightFactor(const WeightSchedulePlan& schedule, double progress);

// True for Compute's error about a term that is NaN or infinite, also after Annotate.
bool IsNotFinite(const Status& status);

// Owned by the training thread.
class Objective {
 public:
  // Losses of weight 0 are left out altogether: their taps are not asked for and their layers do not exist.
  // kInvalidArgument: unknown loss, adapter, weight schedule or wire dtype, or no loss of non-zero weight.
  static StatusOr<Objective> Create(const JobPlan& plan, const StagePlan& stage);

  // Taps that Compute reads, each once. "" is the network's output.
  const std::vector<std::string>& student_taps() const { return student_taps_; }
  // What the teacher is asked for, in the order of Inputs::teacher: common/plan/teacher_requests.h.
  const std::vector<TapRequest>& teacher_taps() const { return teacher_taps_; }
  // Which of teacher_taps() takes the place of the student's map at stage.student_input; none: no such input.
  std::optional<size_t> teacher_input() const { return teacher_input_; }

  // Parameters that the losses and adapters bring along, a group for each loss that has any. Names:
  // "adapter.<loss>.weight", "loss.<loss>.gamma.weight". They are trained with the student, kept in checkpoints, never
  // exported.
  std::vector<ParameterGroup> OwnParameters() const;
  // Indices into OwnParameters() of the groups whose loss has weight 0 at `progress`.
  std::vector<size_t> Asleep(double progress) const;
  void MoveTo(torch::Device device);
  // Of all layers that losses bring along: ConvBlock::SetNormRanks.
  void SetNormRanks(NormRanks* ranks);

  struct Inputs {
    std::vector<torch::Tensor> student;  // in the order of student_taps()
    std::vector<torch::Tensor> teacher;  // in the order of teacher_taps()
    torch::Tensor labels;                // see LossInputs; undefined where no loss reads any
    int64_t labelled = -1;               // see LossInputs
    torch::Tensor visible;               // float32 [N, 4], see LossInputs; undefined: all
    double progress = 0;                 // share of the stage's steps that are done, in [0, 1)
    uint64_t draw = 0;                   // differs between steps
    int64_t first_image = 0;             // place of the first image in the batch of all ranks
  };
  // What one rank computed on its part of the batch.
  struct Part {
    std::vector<double> report;         // report_size() numbers, to be summed over ranks
    std::vector<torch::Tensor> losses;  // by term, unweighted, with graph; undefined: asleep, or for Combine to compute
    std::vector<double> weights;        // by term, 0 while asleep
    std::vector<double> counts;         // by term: Loss::Count
    std::vector<LossInputs> inputs;     // by term, of those that need the whole batch
    torch::Tensor asleep;  // 0, with a gradient of 0 to what sleeping losses read and own; may be undefined
  };
  // The objective on the whole batch.
  struct Value {
    torch::Tensor total;  // float32 []; its gradients, averaged over ranks, are those of the weighted sum of terms
    std::vector<double> terms;  // in the order of names(), the same on all ranks: unweighted losses, then their details
    double weighted = 0;        // the weighted sum of the terms
  };
  // Waits for the device once, to look at the values. Errors name the loss and its taps. kInvalidArgument: shapes (see
  // Loss). kFailedPrecondition: a term is NaN or infinite.
  StatusOr<Part> Compute(const Inputs& inputs) const;
  size_t report_size() const { return 2 * terms_.size() + (names_.size() - terms_.size()); }
  // `sums`: of all ranks' reports. `group`: theirs, for losses that compare samples of all ranks, whose maps are sent
  // now; null: this rank is alone and `sums` its own report. All ranks call it together. Errors: the group's, and
  // Compute's for those losses, the same on all ranks.
  StatusOr<Value> Combine(const Part& part, const std::vector<double>& sums, CollectiveGroup* group) const;

  // What is wrong with a teacher's maps, from WireTensor::largest: nothing is read for it.
  struct MapFaults {
    std::string not_finite;             // the first tap that holds a NaN or an infinity; "" when none does
    std::vector<std::string> vanished;  // sentences about maps without a value that the wire's type holds well
  };
  static MapFaults LookAt(const std::vector<TapRequest>& taps, const std::vector<WireTensor>& maps);

  // 0, and depends on every tap and all own parameters, for a pass that needs the graph and no loss.
  torch::Tensor Touch(const std::vector<torch::Tensor>& student) const;

  // Names of the terms, then of their details ("tat-layer3/entropy").
  const std::vector<std::string>& names() const { return names_; }

 private:
  struct Term {
    std::string description;  // "loss 'cwd-1' (student tap layer1, teacher tap layer1)"
    std::string name;
    double weight;
    WeightSchedulePlan schedule;
    OwnParametersPlan own;
    std::unique_ptr<Loss> loss;
    std::shared_ptr<ConvBlock> adapter;  // null: none; shared as torch modules are
    size_t student_index;
    std::optional<size_t> teacher_index;  // none: reads no teacher
  };
  static std::vector<NamedTensor> OwnOf(const Term& term);  // the term's group in OwnParameters(), if it has any
  static torch::Tensor TouchTerm(const Term& term, const torch::Tensor& student);
  static Status CheckFinite(const Term& term, double value);

  std::vector<Term> terms_;
  std::vector<std::string> names_;
  std::vector<std::string> student_taps_;
  std::vector<TapRequest> teacher_taps_;
  std::optional<size_t> teacher_input_;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_OBJECTIVE_H_
