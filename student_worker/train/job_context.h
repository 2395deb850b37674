// What the parts of one running job share on one rank: the assignment, what was loaded for it, the ranks' group, where
// the job stands. Torch is in here; job_runner.h is the face without it.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTEXT_H_
#define DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTEXT_H_

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/collective/collective_group.h"
#include "common/plan/plan.h"
#include "common/status.h"
#include "common/zoo/student_net.h"
#include "student_worker/data/sample_reader.h"
#include "student_worker/data/training_images.h"
#include "student_worker/train/job_runner.h"
#include "student_worker/train/lockstep.h"
#include "student_worker/train/progress_reporter.h"
#include "student_worker/train/score.h"

namespace distill {

// Where the job stands; equal on all ranks, the scores apart, which rank 0 alone has after a resume.
struct Position {
  uint32_t stage = 0;                // the next stage to run or continue
  uint64_t step = 0;                 // steps done in it
  bool trained = false;              // all its steps are done; it is still to be measured, kept and committed
  uint64_t skipped_steps = 0;        // of `step`: those in which a teacher's map held NaN or infinity
  uint64_t total_skipped_steps = 0;  // the same over all stages
  double loss = 0;                   // of the last step
  Score score;                       // of the student, the newest
  Score teacher_score;
};

// Owned by the training thread, as is everything in it; what others may touch says so.
struct JobContext {
  JobContext(const StudentAssignment& job_assignment, const JobEnvironment& job_environment, JobControl* job_control);

  const StudentAssignment& assignment;  // the caller of RunJob keeps these three for as long as the job runs
  const JobPlan& plan;
  const JobEnvironment& environment;
  JobControl* const control;  // not owned: the agent keeps it as long

  std::string plan_digest;
  torch::Device device = torch::kCPU;
  std::shared_ptr<CollectiveGroup> group;  // shared with JobControl's abort function, which another thread may be in
  std::unique_ptr<Lockstep> lockstep;
  TrainingImages images;
  SampleReaders readers;
  std::shared_ptr<const SampleReader> test;  // shared with nobody, but handed on as it is
  std::shared_ptr<StudentNet> net;
  Position position;
  ProgressReporter reporter;

  bool leader() const { return assignment.rank == 0; }
  std::string folder() const;                  // <work-dir>/<job_id>
  uint64_t StepsBefore(uint32_t stage) const;  // of all stages before
  bool TrainsHead(uint32_t stage) const;       // whether it changes the student's answers, so that they are measured
  // Work of rank 0 alone, which the others wait for in lock-step.
  Status LeaderDoes(const char* thread_name, const std::function<Status()>& work);
};

// A report to the coordinator as the job sees it: kAborted (a newer generation exists, whose assignment is on its way)
// is a revocation and no failure; a coordinator that knows neither worker nor job will again.
Status FromCoordinator(const Status& status);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_JOB_CONTEXT_H_
