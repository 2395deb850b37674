#include "student_worker/train/lockstep.h"

#include <pthread.h>
#include <torch/torch.h>

#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/torch_status.h"

namespace distill {
namespace {

Status Revoked() { return absl::CancelledError("the assignment was revoked"); }

// `work` with its exceptions as a Status.
Status RunGuarded(const std::function<Status()>& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return TorchStatus(error, "unexpected exception");
  } catch (...) {
    return absl::InternalError("an exception that is none of std's");
  }
}

// One piece of work on a thread of its own, which the destructor joins at the latest.
class Helper {
 public:
  // `device` is the thread's current one. Throws std::system_error when no thread can be started.
  Helper(const char* name, torch::Device device, const std::function<Status()>& work)
      : thread_([this, name, device, &work] {
          pthread_setname_np(pthread_self(), name);
          Status status = RunGuarded([device, &work] {
            const c10::DeviceGuard on_device(device);
            return work();
          });
          absl::MutexLock lock(&mutex_);
          status_ = std::move(status);
        }) {}
  ~Helper() {
    if (thread_.joinable()) thread_.join();
  }
  // Nothing: it is still at work.
  std::optional<Status> Await(std::chrono::milliseconds timeout) {
    absl::MutexLock lock(&mutex_);
    auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return status_.has_value(); };
    AwaitFor(&mutex_, absl::Condition(&done), absl::FromChrono(timeout));
    return status_;
  }
  Status Join() {
    thread_.join();
    absl::MutexLock lock(&mutex_);
    return *status_;
  }

 private:
  absl::Mutex mutex_;
  std::optional<Status> status_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;  // last: it uses the others
};

}  // namespace

Lockstep::Lockstep(CollectiveGroup* group, const JobControl* control, torch::Device device,
                   std::chrono::milliseconds beat)
    : group_(group), control_(control), device_(device), beat_(beat) {}

Status Lockstep::Sum(std::vector<double>* values) {
  std::vector<torch::Tensor> tensors = {torch::tensor(*values, torch::kFloat64).to(device_)};
  DISTILL_RETURN_IF_ERROR(group_->AllReduceSum(tensors));
  const torch::Tensor sums = tensors[0].to(torch::kCPU);
  DISTILL_RETURN_IF_ERROR(group_->Check());
  values->assign(sums.data_ptr<double>(), sums.data_ptr<double>() + sums.numel());
  return OkStatus();
}

StatusOr<Lockstep::Round> Lockstep::Meet(const Report& report) {
  if (control_->revoked()) return Revoked();
  Status status;
  Round round;
  try {
    // The first number counts those who are there.
    std::vector<double> values = {1.0, report.failed ? 1.0 : 0.0, report.waiting ? 1.0 : 0.0,
                                  control_->cancelled() ? 1.0 : 0.0, control_->terminating() ? 1.0 : 0.0};
    values.insert(values.end(), report.values.begin(), report.values.end());
    if (group_->world_size() > 1) status = Sum(&values);
    if (status.ok() && values[0] != group_->world_size()) {
      status = absl::AbortedError(StrCat("a sum over ", group_->world_size(), " ranks came back with the parts of ",
                                         values[0], "; the group is broken"));
    }
    if (status.ok()) {
      round.failed = static_cast<uint32_t>(values[1]);
      round.waiting = static_cast<uint32_t>(values[2]);
      round.cancel = values[3] > 0;
      round.terminate = values[4] > 0;
      round.sums.assign(values.begin() + 5, values.end());
    }
  } catch (const std::exception& error) {
    status = TorchStatus(error, "meeting of the ranks");
  }
  if (!status.ok()) {
    group_->Abort();
    return control_->revoked() ? Revoked() : status;
  }
  if (round.failed > 0 && !report.failed) peer_failed_ = true;
  if (round.cancel) cancel_asked_ = true;
  if (round.cancel || round.terminate) stopping_ = true;
  return round;
}

Status Lockstep::Together(const char* thread_name, const std::function<Status()>& work) {
  if (group_->world_size() == 1) return work ? RunGuarded(work) : OkStatus();
  std::optional<Status> own;  // nothing: still at work
  std::optional<Helper> helper;
  if (!work) {
    own = OkStatus();
  } else {
    try {
      helper.emplace(thread_name, device_, work);
    } catch (const std::exception& error) {
      own = absl::ResourceExhaustedError(StrCat("no thread for '", thread_name, "': ", error.what()));
    }
  }
  Status met;
  while (true) {
    if (!own.has_value()) own = helper->Await(beat_);
    const auto round = Meet({.failed = own.has_value() && !own->ok(), .waiting = !own.has_value(), .values = {}});
    if (!round.ok()) {
      met = round.status();
      break;
    }
    if (round->failed > 0) {
      met = absl::AbortedError("another rank failed; it reports why");
      break;
    }
    if (round->waiting == 0) break;
  }
  if (!own.has_value()) own = helper->Join();
  return own->ok() ? met : *own;
}

}  // namespace distill
