#include "student_worker/train/lockstep.h"

#include <pthread.h>
#include <torch/torch.h>

#include <future>
#include <thread>

#include "common/str_cat.h"

namespace distill {
namespace {

Status RunGuarded(const std::function<Status()>& work) {
  try {
    return work();
  } catch (const std::exception& error) {
    return absl::InternalError(StrCat("unexpected exception: ", error.what()));
  }
}

}  // namespace

Lockstep::Lockstep(CollectiveGroup* group, const JobControl* control, torch::Device device,
                   std::chrono::milliseconds beat)
    : group_(group), control_(control), device_(device), beat_(beat) {}

StatusOr<Lockstep::Round> Lockstep::Meet(const Report& report) {
  if (control_->revoked()) return absl::CancelledError("the assignment was revoked");
  std::vector<double> values = {report.failed ? 1.0 : 0.0, report.waiting ? 1.0 : 0.0,
                                control_->cancelled() ? 1.0 : 0.0, control_->terminating() ? 1.0 : 0.0};
  values.insert(values.end(), report.values.begin(), report.values.end());
  if (group_->world_size() > 1) {
    std::vector<torch::Tensor> tensors = {torch::tensor(values, torch::kFloat64).to(device_)};
    if (Status status = group_->AllReduceSum(tensors); !status.ok()) {
      return control_->revoked() ? absl::CancelledError("the assignment was revoked") : status;
    }
    const torch::Tensor sums = tensors[0].to(torch::kCPU);
    values.assign(sums.data_ptr<double>(), sums.data_ptr<double>() + sums.numel());
  }
  Round round;
  round.failed = static_cast<uint32_t>(values[0]);
  round.waiting = static_cast<uint32_t>(values[1]);
  round.cancel = values[2] > 0;
  round.terminate = values[3] > 0;
  round.sums.assign(values.begin() + 4, values.end());
  if (round.failed > 0 && !report.failed) peer_failed_ = true;
  return round;
}

Status Lockstep::Together(const char* thread_name, const std::function<Status()>& work) {
  if (group_->world_size() == 1) return work ? RunGuarded(work) : OkStatus();
  std::future<Status> result;
  std::thread helper;
  if (work) {
    std::packaged_task<Status()> task([&work] { return RunGuarded(work); });
    result = task.get_future();
    helper = std::thread([thread_name, task = std::move(task)]() mutable {
      pthread_setname_np(pthread_self(), thread_name);
      task();
    });
  }
  bool done = !work;
  Status own;
  Status met;
  while (true) {
    if (!done && result.wait_for(beat_) == std::future_status::ready) {
      own = result.get();
      done = true;
    }
    const auto round = Meet({.failed = done && !own.ok(), .waiting = !done, .values = {}});
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
  if (helper.joinable()) helper.join();
  if (!done) own = result.get();
  return own.ok() ? met : own;
}

}  // namespace distill
