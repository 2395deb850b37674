// A collective group as it is after an abort that nobody told of.
#ifndef DISTILL_TESTS_STUDENT_WORKER_TRAIN_SILENTLY_ABORTED_GROUP_H_
#define DISTILL_TESTS_STUDENT_WORKER_TRAIN_SILENTLY_ABORTED_GROUP_H_

#include <atomic>
#include <memory>
#include <vector>

#include "common/collective/collective_group.h"

namespace distill {

// A group on GPUs that is aborted behind the job's back, by the watchdog of a communication library: from then on every
// operation returns at once as if it had succeeded, with numbers that nobody else had a part in. Only Check() tells.
class SilentlyAbortedGroup : public CollectiveGroup {
 public:
  SilentlyAbortedGroup(std::shared_ptr<CollectiveGroup> group, const std::atomic<bool>* aborted)
      : group_(std::move(group)), aborted_(aborted) {}
  Status Connect() override { return group_->Connect(); }
  uint32_t rank() const override { return group_->rank(); }
  uint32_t world_size() const override { return group_->world_size(); }
  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override {
    if (!*aborted_) return group_->AllReduceSum(tensors);
    for (torch::Tensor& tensor : tensors) tensor.mul_(world_size());
    return OkStatus();
  }
  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    return *aborted_ ? OkStatus() : group_->Broadcast(tensors, root);
  }
  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    return group_->MakeReducer(parameters);
  }
  Status Check() override {
    return *aborted_ ? absl::AbortedError("an operation did not end within its time-out") : group_->Check();
  }
  void Abort() override { group_->Abort(); }

 private:
  const std::shared_ptr<CollectiveGroup> group_;
  const std::atomic<bool>* const aborted_;  // of the test, which outlives the job
};

}  // namespace distill

#endif  // DISTILL_TESTS_STUDENT_WORKER_TRAIN_SILENTLY_ABORTED_GROUP_H_
