#include "student_worker/train/job_context.h"

#include "common/failure_kind.h"
#include "common/str_cat.h"

namespace distill {

JobContext::JobContext(const StudentAssignment& job_assignment, const JobEnvironment& job_environment,
                       JobControl* job_control)
    : assignment(job_assignment),
      plan(job_assignment.plan),
      environment(job_environment),
      control(job_control),
      reporter(job_assignment, job_environment.fleet) {}

std::string JobContext::folder() const { return StrCat(environment.work_dir, "/", assignment.job_id); }

uint64_t JobContext::StepsBefore(uint32_t stage) const {
  uint64_t steps = 0;
  for (uint32_t s = 0; s < stage; ++s) steps += plan.stages[s].steps;
  return steps;
}

bool JobContext::TrainsHead(uint32_t stage) const {
  for (const std::string& head : net->architecture().HeadModules()) {
    for (const std::string& path : plan.stages[stage].trainable) {
      if (IsUnder(head, path) || IsUnder(path, head)) return true;
    }
  }
  return false;
}

Status JobContext::LeaderDoes(const char* thread_name, const std::function<Status()>& work) {
  return lockstep->Together(thread_name, leader() ? work : nullptr);
}

Status FromCoordinator(const Status& status) {
  if (status.code() == StatusCode::kAborted) return absl::CancelledError(status.message());
  if (status.code() == StatusCode::kNotFound) return WithKind(status, FailureKind::kPassing);
  return status;
}

}  // namespace distill
