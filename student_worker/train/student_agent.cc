#include "student_worker/train/student_agent.h"

#include <pthread.h>

#include "absl/time/time.h"
#include "common/failure_kind.h"
#include "common/log.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

const char* Name(JobEnd end) {
  switch (end) {
    case JobEnd::kFinished:
      return "finished";
    case JobEnd::kCancelled:
      return "cancelled";
    case JobEnd::kFailed:
      return "failed";
    default:
      return "interrupted";
  }
}

}  // namespace

StudentAgent::~StudentAgent() {
  if (trainer_.joinable()) Shutdown(std::chrono::milliseconds(0));
}

FleetClient::Callbacks StudentAgent::callbacks() {
  FleetClient::Callbacks callbacks;
  callbacks.on_student_assignment = [this](std::optional<StudentAssignment> assignment) {
    std::shared_ptr<JobControl> old;
    {
      absl::MutexLock lock(&mutex_);
      if (assignment.has_value()) {
        const auto id = std::pair(assignment->job_id, assignment->generation);
        const auto same = [&](const std::optional<Work>& work) {
          return work.has_value() && std::pair(work->assignment.job_id, work->assignment.generation) == id;
        };
        // The same assignment again (the coordinator restarted): what runs goes on, what has ended stays ended.
        if (same(running_) || same(next_) || last_ == id) return;
      }
      next_.reset();
      if (assignment.has_value()) {
        auto control = std::make_shared<JobControl>(assignment->teachers);
        next_ = Work{std::move(*assignment), std::move(control)};
      }
      if (running_.has_value()) old = running_->control;
    }
    if (old != nullptr) old->Revoke();
  };
  callbacks.on_teachers = [this](std::vector<TeacherEndpoint> teachers) {
    if (const auto control = CurrentControl(); control != nullptr) control->SetTeachers(std::move(teachers));
  };
  callbacks.on_cancel = [this] {
    if (const auto control = CurrentControl(); control != nullptr) control->Cancel();
  };
  return callbacks;
}

std::shared_ptr<JobControl> StudentAgent::CurrentControl() {
  absl::MutexLock lock(&mutex_);
  if (next_.has_value()) return next_->control;
  return running_.has_value() ? running_->control : nullptr;
}

void StudentAgent::Start(FleetClient* fleet) {
  environment_.fleet = fleet;
  trainer_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "trainer");
    Run();
  });
}

void StudentAgent::Run() {
  while (true) {
    Work work;
    {
      absl::MutexLock lock(&mutex_);
      auto something = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopping_ || next_.has_value(); };
      mutex_.Await(absl::Condition(&something));
      if (stopping_) {
        stopped_ = true;
        return;
      }
      work = *std::exchange(next_, std::nullopt);
      running_ = work;
    }
    const StudentAssignment& assignment = work.assignment;
    environment_.fleet->SetCurrent(assignment.job_id, assignment.generation);
    LogInfo("job starts", {{"job", assignment.job_id},
                           {"name", assignment.plan.name},
                           {"generation", assignment.generation},
                           {"rank", assignment.rank},
                           {"world_size", assignment.world_size}});
    const JobOutcome outcome = RunJob(assignment, environment_, work.control.get());
    Report(assignment, outcome);
    if (EndsProcess(outcome.status) && environment_.on_unusable) environment_.on_unusable(outcome.status);
    environment_.metrics->CountJob(Name(outcome.end));
    environment_.metrics->EndJob();
    {
      absl::MutexLock lock(&mutex_);
      last_ = {assignment.job_id, assignment.generation};
      running_.reset();
    }
    environment_.fleet->SetCurrent("", 0);
  }
}

void StudentAgent::Report(const StudentAssignment& assignment, const JobOutcome& outcome) {
  if (outcome.end != JobEnd::kFailed) {
    LogInfo("job ends", {{"job", assignment.job_id},
                         {"generation", assignment.generation},
                         {"outcome", Name(outcome.end)},
                         {"remark", ToStd(outcome.status.message())}});
    return;
  }
  LogError("job fails", {{"job", assignment.job_id},
                         {"generation", assignment.generation},
                         {"retryable", outcome.retryable},
                         {"reason", ToStd(outcome.status.message())}});
  const Status reported = environment_.fleet->ReportFailure(
      assignment.job_id, assignment.generation, outcome.retryable ? FailureKind::kPassing : FailureKind::kJob,
      StrCat("rank ", assignment.rank, ": ", outcome.status.message()));
  if (!reported.ok()) {
    LogWarning("the failure could not be reported; the coordinator will notice that this worker is idle",
               {{"job", assignment.job_id}, {"reason", ToStd(reported.message())}});
  }
}

void StudentAgent::Shutdown(std::chrono::milliseconds grace) {
  std::shared_ptr<JobControl> control;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (running_.has_value()) control = running_->control;
  }
  if (control != nullptr) control->Terminate();
  {
    absl::MutexLock lock(&mutex_);
    AwaitFor(&mutex_, absl::Condition(&stopped_), absl::FromChrono(grace));
    if (stopped_) control.reset();
  }
  if (control != nullptr) {
    LogWarning("the job did not stop in time and is broken off", {});
    control->Revoke();
  }
  if (trainer_.joinable()) trainer_.join();
}

}  // namespace distill
