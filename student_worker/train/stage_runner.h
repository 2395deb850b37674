// Runs one stage of a plan, step by step: freezes what does not train, makes a new optimizer, schedule and gradient
// reducer over exactly what does, and holds the stage's own state (optimizer, adapters).
//
// A step: input -> normalised pixels -> student forward up to the deepest tap -> losses in float32 -> the ranks meet ->
// backward with gradient averaging -> optimizer -> average of the weights. The meeting comes before backward, where all
// ranks' collectives must match: there they learn whether one of them failed (then nobody steps), is still waiting for
// its input, or was asked to stop.
//
// With JobPlan.sync_batch_norm batch norms talk to the other ranks in the forward and the backward pass. The ranks then
// meet a first time when they wait for their inputs, and begin the forward pass together; a rank that fails in it
// breaks the group up, as its collectives are missing from then on.
//
// With JobPlan.accumulate above 1 a step takes that many inputs one after another, each as above up to backward;
// gradients add up on each rank and are averaged over ranks with the last one. The objective of the step is the mean of
// its parts', which is the whole batch's wherever parts have equally many things to take the mean over.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STAGE_RUNNER_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STAGE_RUNNER_H_

#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/zoo/batch_norm.h"
#include "common/zoo/student_net.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/lr_schedule.h"
#include "student_worker/train/objective.h"
#include "student_worker/train/stage_optimizer.h"
#include "student_worker/train/step_source.h"
#include "student_worker/train/weight_average.h"

namespace distill {

// Seconds of one step by part. On CUDA, time to enqueue: the device is waited for in `loss` only.
struct StepSeconds {
  double data = 0;           // waiting for pixels
  double wait_features = 0;  // waiting for teachers
  double forward = 0;        // normalisation and student forward
  double loss = 0;           // adapters and losses
  double sync = 0;           // meeting the other ranks: mostly waiting for the slowest
  double backward = 0;       // with gradient averaging
  double optimizer = 0;
};

struct StepResult {
  bool stepped = false;       // false: the ranks agreed to stop before this step, nothing moved
  bool skipped = false;       // a rank's teacher map held NaN or infinity: the step counts as done, nothing was learnt
  std::string skipped_tap;    // when skipped: this rank's bad tap, "" when it was another rank's
  bool cancel = false;        // agreed by all ranks: checkpoint and stop after this step
  bool terminate = false;     // likewise
  std::vector<double> terms;  // unweighted losses and details of the whole batch, as names(); empty when skipped
  double loss = 0;            // weighted sum of the losses
  double learning_rate = 0;
  StepSeconds seconds;
};

// Owned by the training thread. After an error the runner is of no use and the group must be dropped.
class StageRunner {
 public:
  struct Options {
    const JobPlan* plan = nullptr;  // none of the pointers is owned; all outlive the runner
    uint32_t stage = 0;
    StudentNet* net = nullptr;  // on `device`
    Lockstep* lockstep = nullptr;
    torch::Device device = torch::kCPU;
  };
  // Freezes and unfreezes the net's modules; trainable parameters that no loss reaches stay frozen (a warning names the
  // first). Does not talk to the other ranks. kInvalidArgument: the stage contradicts the student (module or tap that
  // does not exist, unknown loss, optimizer or schedule); the message names the stage.
  static StatusOr<std::unique_ptr<StageRunner>> Create(const Options& options);
  ~StageRunner();
  // Makes the gradient reducer. All ranks call it together, once, before the first step and when they know that
  // Create() succeeded on each of them: a rank that is missing here would be waited for.
  Status JoinRanks();

  // What the teacher must deliver; empty: the stage needs no teacher.
  const std::vector<TapRequest>& teacher_taps() const { return objective_.teacher_taps(); }
  const std::vector<std::string>& names() const { return objective_.names(); }
  // What people should know, whole sentences, each once in a stage: those since the last call.
  std::vector<std::string> TakeWarnings() { return std::exchange(warnings_, {}); }

  // Takes step `step` (0-based, inside the stage), for which it reads JobPlan.accumulate inputs. All ranks call it
  // together.
  // Errors: the source's; kFailedPrecondition: a loss is NaN or infinite (names step, loss and taps), or the teacher's
  // maps were in many steps in a row; kAborted: a peer failed or is lost; kCancelled: revoked.
  StatusOr<StepResult> Step(StepSource* source, uint64_t step);

  // The objective's weighted sum over `batches` inputs of the source, in eval mode, without gradients; mean over the
  // batches that were not skipped. Changes nothing. `step` is where the stage stands, for schedules. No meeting of
  // ranks: one of them may call it alone, on any thread while the others wait. Errors as Step; kCancelled also when
  // `tick` returns false, which is called before each batch and while the source is late. NaN when every batch was
  // skipped.
  StatusOr<double> Measure(StepSource* source, uint64_t batches, uint64_t step, const std::function<bool()>& tick);

  // The average of the net's weights over this stage's steps; null where the plan asks for none (ema_decay).
  WeightAverage* average() { return average_.get(); }

  // Optimizer state, the losses' own parameters and the average, by name, for a checkpoint.
  SafetensorsFile State();
  // The inverse. kFailedPrecondition: a tensor is missing, superfluous or of another shape (names it).
  Status LoadState(const SafetensorsFile& state);
  // Gives all ranks rank 0's.
  Status BroadcastState();

 private:
  StageRunner(const Options& options, Objective objective, LrSchedule schedule)
      : options_(options),
        stage_(options.plan->stages[options.stage]),
        parts_(std::max<uint32_t>(1, options.plan->accumulate)),
        objective_(std::move(objective)),
        schedule_(std::move(schedule)) {}
  struct Forwarded;
  // One part of a step, up to the ranks' meeting. False: they agreed to stop before it.
  StatusOr<bool> MeetOverPart(StepSource* source, uint64_t step, uint32_t part, StepResult* result,
                              Forwarded* forwarded, std::vector<double>* sums);
  // Looks at the input of a part, and keeps the buffers before the first one moves them.
  Status Receive(const StepInput& input, uint32_t part, Forwarded* forwarded);
  // Forward and losses of a part, unless a tap is broken.
  Status ComputePart(StepInput input, uint64_t step, uint32_t part, StepSeconds* seconds, Forwarded* forwarded);
  // Backward of a part; its terms and loss go into the result.
  Status Backward(const Forwarded& forwarded, const std::vector<double>& sums, bool last, StepResult* result);
  // Runs one backward pass whose gradients are thrown away, and makes the reducer lay its buckets out anew, which it
  // does once, after its first backward. Now, because the ranks talk then, and in a step a late rank would be
  // elsewhere. And because with three or more ranks the order of additions hangs on the layout: a resumed stage, whose
  // reducer is new, would differ in the last bit from one that went on.
  Status LayOutBuckets();
  // The first of the teacher's taps that holds a NaN or an infinity; "" when none does. kInvalidArgument: other taps
  // than the stage reads.
  StatusOr<std::string> BrokenTap(const StepInput& input) const;
  double Progress(uint64_t step) const;               // share of the stage's steps that are done
  std::vector<size_t> AsleepAt(uint64_t step) const;  // the optimizer's groups of losses with weight 0
  // REQUIRES: no tap is broken.
  StatusOr<Objective::Part> Forward(StepInput input, uint64_t step, uint32_t part, StepSeconds* seconds);
  // The student's answers at the objective's taps, float32.
  StatusOr<std::vector<torch::Tensor>> ForwardStudent(const torch::Tensor& pixels,
                                                      const std::vector<torch::Tensor>& teacher);
  // Forward moves the batch norms' running statistics; a step that is not taken must leave none of that behind, or it
  // would count twice when it is taken.
  void KeepBuffers();
  void RestoreBuffers();
  // After a step that was skipped; `tap` is this rank's reason, "" when it was another's.
  Status CountSkipped(const std::string& tap, uint64_t step);
  std::vector<NamedTensor> StateTensors();

  const Options options_;
  const StagePlan& stage_;
  const uint32_t parts_;  // of a step
  Objective objective_;
  LrSchedule schedule_;
  std::unique_ptr<StageOptimizer> optimizer_;
  size_t net_groups_ = 1;  // the optimizer's first groups; those of losses follow
  std::unique_ptr<WeightAverage> average_;
  std::vector<torch::Tensor> parameters_;  // that train
  std::unique_ptr<GradientReducer> reducer_;
  std::unique_ptr<NormRanks> norm_ranks_;    // null: batch norms see this rank's images alone
  std::vector<torch::Tensor> kept_buffers_;  // the net's, as they were before this step
  uint32_t skipped_in_a_row_ = 0;
  bool told_vanished_ = false;
  std::vector<std::string> warnings_;
};

// Gives all ranks rank 0's parameters and buffers. Ranks' batch-norm statistics drift apart while they train, since
// each sees its own part of the batch; they are made equal again at checkpoints, before evaluation and at stage ends.
// Train-mode forward does not read them, so these broadcasts change no gradient, and a resumed job finds the same state
// as an undisturbed one.
Status BroadcastNet(CollectiveGroup* group, StudentNet* net, bool buffers_only);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STAGE_RUNNER_H_
