#include "student_worker/train/student_agent.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>

#include "absl/time/time.h"
#include "common/exit_codes.h"
#include "common/failure_kind.h"
#include "common/failure_kind_name.h"
#include "common/log.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "student_worker/train/failure_class.h"

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

StudentAgent::StudentAgent(JobEnvironment environment, StudentAgentOptions options)
    : environment_(std::move(environment)), options_(std::move(options)) {}

StudentAgent::~StudentAgent() {
  // A test that failed half-way gets here with a job that runs.
  if (trainer_.joinable()) (void)Shutdown(std::chrono::milliseconds(0), std::chrono::hours(1));
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
      if (running_.has_value()) {
        old = running_->control;
        unwinding_ = true;
      }
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
  watch_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "unwind-watch");
    Watch();
  });
}

void StudentAgent::SetArchives(std::shared_ptr<const StudentArchives> archives) {
  absl::MutexLock lock(&mutex_);
  environment_.archives = std::move(archives);
}

void StudentAgent::Watch() {
  while (true) {
    std::string job;
    {
      absl::MutexLock lock(&mutex_);
      auto something = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stopped_ || unwinding_; };
      mutex_.Await(absl::Condition(&something));
      if (stopped_) return;
      const uint64_t before = ended_;
      auto left = [this, before]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return ended_ != before; };
      if (AwaitFor(&mutex_, absl::Condition(&left), absl::FromChrono(options_.unwind_limit))) continue;
      unwinding_ = false;  // told once
      job = running_->assignment.job_id;
    }
    const std::string reason = StrCat("the trainer has not left job ", job, " ", options_.unwind_limit.count() / 1000.0,
                                      " s after it was taken away; it hangs, perhaps in a disk that does not answer");
    if (options_.on_stuck) {
      options_.on_stuck(reason);
      continue;
    }
    LogError(StrCat(reason, ". The process ends, to be started anew"), {{"job", job}});
    _exit(kExitTemporary);
  }
}

void StudentAgent::Run() {
  while (true) {
    Work work;
    JobEnvironment environment;
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
      environment = environment_;
    }
    const StudentAssignment& assignment = work.assignment;
    environment_.fleet->SetCurrent(assignment.job_id, assignment.generation);
    LogInfo("job starts", {{"job", assignment.job_id},
                           {"name", assignment.plan.name},
                           {"generation", assignment.generation},
                           {"rank", assignment.rank},
                           {"world_size", assignment.world_size}});
    const JobOutcome outcome = RunJob(assignment, environment, work.control.get());
    Report(assignment, outcome);
    if (EndsProcess(outcome.status) && environment_.on_unusable) environment_.on_unusable(outcome.status);
    environment_.metrics->CountJob(Name(outcome.end));
    environment_.metrics->EndJob();
    {
      absl::MutexLock lock(&mutex_);
      last_ = {assignment.job_id, assignment.generation};
      running_.reset();
      unwinding_ = false;
      ++ended_;
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
                         {"fault", Name(outcome.kind)},
                         {"reason", ToStd(outcome.status.message())}});
  const Status reported =
      environment_.fleet->ReportFailure(assignment.job_id, assignment.generation, outcome.kind,
                                        StrCat("rank ", assignment.rank, ": ", outcome.status.message()));
  if (!reported.ok()) {
    LogWarning("the failure could not be reported; the coordinator will notice that this worker is idle",
               {{"job", assignment.job_id}, {"reason", ToStd(reported.message())}});
  }
}

bool StudentAgent::Shutdown(std::chrono::milliseconds grace, std::chrono::milliseconds unwind) {
  std::shared_ptr<JobControl> control;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    if (running_.has_value()) control = running_->control;
  }
  if (control != nullptr) control->Terminate();
  bool stopped = !trainer_.joinable();
  if (!stopped) {
    absl::MutexLock lock(&mutex_);
    stopped = AwaitFor(&mutex_, absl::Condition(&stopped_), absl::FromChrono(grace));
  }
  if (!stopped) {
    LogWarning("the job did not stop in time and is broken off", {});
    const absl::Duration end = SteadyNow() + absl::FromChrono(unwind);
    // Before the other ranks notice: their next group is to be formed without this process.
    if (environment_.fleet != nullptr) environment_.fleet->Drain();
    if (control != nullptr) control->Revoke();
    absl::MutexLock lock(&mutex_);
    stopped = AwaitFor(&mutex_, absl::Condition(&stopped_), std::max(end - SteadyNow(), absl::ZeroDuration()));
  }
  if (!stopped) return false;
  if (trainer_.joinable()) trainer_.join();
  if (watch_.joinable()) watch_.join();
  return true;
}

}  // namespace distill
