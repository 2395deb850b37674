#include "common/collective/collective_group.h"

#include <torch/torch.h>

#include <atomic>

#include "common/collective/collective_backend.h"
#include "common/collective/group_checks.h"
#include "common/cuda/cuda_runtime.h"
#include "common/str_cat.h"

namespace distill {
namespace {

// World size 1: every sum is there already.
class SoloReducer : public GradientReducer {
 public:
  Status PrepareForForward() override { return OkStatus(); }
  Status PrepareForBackward(const std::vector<torch::Tensor>&) override { return OkStatus(); }
};

class SoloGroup : public CollectiveGroup {
 public:
  SoloGroup(const Options& options, c10::DeviceType device) : options_(options), device_(device) {}
  uint32_t rank() const override { return 0; }
  uint32_t world_size() const override { return 1; }
  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override { return CheckAll(tensors, "all-reduce"); }
  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    if (root != 0) return absl::InvalidArgumentError(StrCat("broadcast: root ", root, " of 1 rank"));
    return CheckAll(tensors, "broadcast");
  }
  Status Connect() override { return OkStatus(); }
  Status Check() override { return aborted_ ? Lost(options_) : OkStatus(); }
  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    DISTILL_RETURN_IF_ERROR(CheckParameters(parameters, device_));
    return std::make_unique<SoloReducer>();
  }
  void Abort() override { aborted_ = true; }

 private:
  Status CheckAll(const std::vector<torch::Tensor>& tensors, std::string_view what) const {
    if (aborted_) return Lost(options_);
    return CheckTensors(tensors, device_, what);
  }
  const Options options_;
  const c10::DeviceType device_;
  std::atomic<bool> aborted_{false};  // set by Abort() on any thread
};

}  // namespace

Status CheckTensors(const std::vector<torch::Tensor>& tensors, c10::DeviceType device, std::string_view what) {
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].defined() && tensors[i].device().type() == device) continue;
    return absl::InvalidArgumentError(StrCat(what, ": tensor ", i, " is ",
                                             tensors[i].defined() ? tensors[i].device().str() : "undefined",
                                             ", must be on ", c10::DeviceTypeName(device, /*lower_case=*/true)));
  }
  return OkStatus();
}

Status CheckParameters(const std::vector<torch::Tensor>& parameters, c10::DeviceType device) {
  if (parameters.empty()) return absl::InvalidArgumentError("gradient reducer: no parameter trains");
  DISTILL_RETURN_IF_ERROR(CheckTensors(parameters, device, "gradient reducer"));
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].requires_grad()) {
      return absl::InvalidArgumentError(StrCat("gradient reducer: parameter ", i, " does not require a gradient"));
    }
  }
  return OkStatus();
}

Status Lost(const CollectiveGroup::Options& options) {
  return absl::AbortedError(
      StrCat("rank ", options.rank, " of ", options.world_size,
             ": the group was aborted or lost a member; form a new one under the next generation"));
}

StatusOr<std::unique_ptr<CollectiveGroup>> CollectiveGroup::Create(const Options& options,
                                                                   std::shared_ptr<KvClient> store) {
  if (options.world_size == 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(StrCat("rank ", options.rank, " of ", options.world_size, " is impossible"));
  }
  if (options.timeout <= std::chrono::milliseconds::zero()) {
    return absl::InvalidArgumentError(
        StrCat("time-out of ", options.timeout.count(), " ms for collectives must be positive"));
  }
  const bool cuda = options.device.starts_with("cuda");
  if (!cuda && options.device != "cpu") {
    return absl::InvalidArgumentError(StrCat("collectives on device '", options.device, "': must be cpu or cuda:N"));
  }
  if (cuda) DISTILL_RETURN_IF_ERROR(LoadCudaRuntime());
  if (options.world_size == 1) {
    return std::make_unique<SoloGroup>(options, cuda ? c10::DeviceType::CUDA : c10::DeviceType::CPU);
  }
  if (store == nullptr)
    return absl::InvalidArgumentError(StrCat("a group of ", options.world_size, " ranks needs a store"));
  const auto c10d_store = c10::make_intrusive<CoordinatorStore>(std::move(store), options.timeout);
  return MakeC10dGroup(options, c10d_store,
                       cuda ? MakeNcclBackend(c10d_store, options) : MakeGlooBackend(c10d_store, options));
}

}  // namespace distill
