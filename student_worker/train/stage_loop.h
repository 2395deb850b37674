// Runs one stage of a job: its input from loader and teachers, step after step, with reports, measurements and
// checkpoints when they are due, until its steps are done, it has stopped improving (patience) or the ranks stop.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_STAGE_LOOP_H_
#define DISTILL_STUDENT_WORKER_TRAIN_STAGE_LOOP_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "student_worker/feature/teacher_pool.h"
#include "student_worker/pipeline/step_pipeline.h"
#include "student_worker/train/best_weights.h"
#include "student_worker/train/job_checkpoints.h"
#include "student_worker/train/job_context.h"
#include "student_worker/train/stage_runner.h"

namespace distill {

// A connection to the teachers of the job's plan for `taps`; its list of teachers is still empty. Errors as
// TeacherPool::Create; kInvalidArgument: the plan names no teacher.
StatusOr<std::unique_ptr<TeacherPool>> ConnectTeachers(const JobContext& job, const std::vector<TapRequest>& taps);

// Scores the student on the test set; all ranks together. False: the ranks were asked to stop meanwhile.
StatusOr<bool> MeasureStudent(JobContext* job);

// One stage, from where job->position stands in it. Owned by the training thread.
class StageLoop {
 public:
  // Neither is owned; both outlive this.
  StageLoop(JobContext* job, JobCheckpoints* checkpoints);

  // nullopt: the stage is trained (job->position.trained), and the net holds its result on all ranks. Otherwise the job
  // stopped inside the stage, after a checkpoint: kCancelled or kTerminated. Errors: as StageRunner and JobCheckpoints;
  // kFailedPrecondition also when no step of the stage taught anything.
  StatusOr<std::optional<JobEnd>> Run();

 private:
  Status SetUp();
  Status SetUpAlone();
  void CountStep(const StepResult& result);
  // Events about skipped steps: the first one with its reason, then at 10, 100, 1000, ...
  void ReportSkipped(const StepResult& result);
  // Measures on held-out images, by the stage's objective or a metric, and keeps the best weights. True when the stage
  // ends early (patience).
  StatusOr<bool> MeasureHeldOut();
  Status MeasureHeldOutAlone();   // the objective; rank 0
  Status MeasureHeldOutMetric();  // all ranks together
  // Rank 0: whether the weights are the best so far; `lowest` is what is compared, `what` and `value` what is told.
  void Judge(const std::string& what, double value, double lowest);
  StatusOr<JobEnd> Stop(const StepResult& result);
  Status Finish();

  JobContext* const job_;
  JobCheckpoints* const checkpoints_;
  const StagePlan& stage_;
  const bool measures_held_out_;
  const uint64_t measure_every_;
  std::unique_ptr<StageRunner> runner_;
  std::unique_ptr<TeacherPool> pool_;
  std::unique_ptr<StepPipeline> pipeline_;
  BestWeights best_;  // rank 0
  bool told_bad_tap_ = false;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_STAGE_LOOP_H_
