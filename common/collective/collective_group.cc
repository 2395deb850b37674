#include "common/collective/collective_group.h"

#include <cxxabi.h>
#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <typeinfo>

#include "common/collective/c10d_group.h"
#include "common/collective/coordinator_store.h"
#include "common/cuda/cuda_runtime.h"
#include "common/str_cat.h"
#include "common/torch_status.h"

namespace distill {
namespace {

std::string TypeName(const std::exception& error) {
  int failed = 0;
  char* name = abi::__cxa_demangle(typeid(error).name(), nullptr, nullptr, &failed);
  const std::string text = failed == 0 ? name : "";
  std::free(name);
  return text;
}

// Gloo's exception classes are not declared in the wheel's headers, and some of its errors are wrapped by c10d: so by
// name and text.
bool ComesFromTransport(const std::exception& error, const std::string& message) {
  if (dynamic_cast<const c10::DistError*>(&error) != nullptr) return true;
  if (TypeName(error).starts_with("gloo::")) return true;
  for (const char* mark :
       {"gloo/transport", "NCCL", "Connection closed by peer", "Socket closed", "Timed out waiting"}) {
    if (message.find(mark) != std::string::npos) return true;
  }
  return false;
}

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
  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override { return Check(tensors, "all-reduce"); }
  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    if (root != 0) return absl::InvalidArgumentError(StrCat("broadcast: root ", root, " of 1 rank"));
    return Check(tensors, "broadcast");
  }
  Status Barrier() override { return Check({}, "barrier"); }
  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    DISTILL_RETURN_IF_ERROR(CheckParameters(parameters, device_));
    return std::make_unique<SoloReducer>();
  }
  void Abort() override { aborted_ = true; }

 private:
  Status Check(const std::vector<torch::Tensor>& tensors, std::string_view what) const {
    if (aborted_) return Lost(options_);
    return CheckTensors(tensors, device_, what);
  }
  const Options options_;
  const c10::DeviceType device_;
  std::atomic<bool> aborted_{false};  // set by Abort() on any thread
};

class C10dReducer : public GradientReducer {
 public:
  C10dReducer(const std::vector<torch::Tensor>& parameters, const c10::intrusive_ptr<c10d::ProcessGroup>& group) {
    const std::vector<bool> sparse(parameters.size(), false);
    std::vector<std::vector<size_t>> buckets;
    std::tie(buckets, std::ignore) = c10d::compute_bucket_assignment_by_size(
        parameters, {c10d::kDefaultFirstBucketBytes, c10d::kDefaultBucketBytesCap}, sparse);
    // Gradients become ready from the last layer to the first.
    std::reverse(buckets.begin(), buckets.end());
    reducer_ = std::make_unique<c10d::Reducer>(
        parameters, std::move(buckets), group, sparse, c10d::kDefaultBucketBytesCap,
        /*find_unused_parameters=*/false,
        // Gradients that are views of buckets cannot be detached or resized by an optimizer.
        /*gradient_as_bucket_view=*/false, /*param_names=*/std::unordered_map<size_t, std::string>(),
        c10d::kDefaultFirstBucketBytes, /*skip_all_reduce_unused_params=*/false,
        /*use_python_reducer=*/false, /*bucket_bytes_cap_list=*/std::vector<int64_t>());
  }
  Status PrepareForForward() override {
    try {
      reducer_->rebuild_buckets();
      reducer_->prepare_for_forward();
      return OkStatus();
    } catch (const std::exception& error) {
      return CollectiveStatus(error);
    }
  }
  Status PrepareForBackward(const std::vector<torch::Tensor>& outputs) override {
    try {
      reducer_->prepare_for_backward(outputs);
      return OkStatus();
    } catch (const std::exception& error) {
      return CollectiveStatus(error);
    }
  }

 private:
  std::unique_ptr<c10d::Reducer> reducer_;
};

class C10dGroup : public CollectiveGroup {
 public:
  C10dGroup(const Options& options, const c10::intrusive_ptr<c10d::Store>& store, C10dBackend backend)
      : options_(options), backend_(std::move(backend)) {
    process_group_ = c10::make_intrusive<c10d::ProcessGroup>(store, static_cast<int>(options.rank),
                                                             static_cast<int>(options.world_size));
    process_group_->setBackend(backend_.device, backend_.type, backend_.backend);
    process_group_->setDefaultBackend(backend_.type);
  }

  // Without Abort, c10d would wait here for operations that can no longer end.
  ~C10dGroup() override { Abort(); }

  uint32_t rank() const override { return options_.rank; }
  uint32_t world_size() const override { return options_.world_size; }

  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override {
    return RunEach(tensors, "all-reduce",
                   [this](std::vector<torch::Tensor>& one) { return backend_.backend->allreduce(one); });
  }

  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    if (root >= options_.world_size) {
      return absl::InvalidArgumentError(StrCat("broadcast: root ", root, " of ", options_.world_size, " ranks"));
    }
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return RunEach(tensors, "broadcast", [this, options](std::vector<torch::Tensor>& one) {
      return backend_.backend->broadcast(one, options);
    });
  }

  Status Barrier() override {
    return Run([this] { backend_.backend->barrier()->wait(); });
  }

  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    DISTILL_RETURN_IF_ERROR(CheckParameters(parameters, backend_.device));
    std::unique_ptr<GradientReducer> reducer;
    DISTILL_RETURN_IF_ERROR(Run([&] { reducer = std::make_unique<C10dReducer>(parameters, process_group_); }));
    return reducer;
  }

  void Abort() override {
    if (!lost_.exchange(true)) backend_.abort();
  }

 private:
  // Calls `operation`, which may throw. After a failure nothing runs any more.
  template <typename F>
  Status Run(const F& operation) {
    if (lost_) return Lost(options_);
    try {
      operation();
      return OkStatus();
    } catch (const std::exception& error) {
      const bool aborted = lost_;
      const Status status = CollectiveStatus(error);
      Abort();
      return aborted ? Lost(options_) : status;
    }
  }

  // Starts `operation` on all tensors, then waits for all. Backends want dense row-major memory; others go through a
  // copy.
  template <typename F>
  Status RunEach(std::vector<torch::Tensor>& tensors, std::string_view what, const F& operation) {
    DISTILL_RETURN_IF_ERROR(CheckTensors(tensors, backend_.device, what));
    return Run([&] {
      const torch::NoGradGuard no_grad;
      std::vector<std::vector<torch::Tensor>>
          dense;  // kept until the work is done: the backend holds references into it
      std::vector<c10::intrusive_ptr<c10d::Work>> works;
      dense.reserve(tensors.size());
      for (const torch::Tensor& tensor : tensors) {
        dense.push_back({tensor.detach().contiguous()});
        if (tensor.numel() > 0) works.push_back(operation(dense.back()));
      }
      for (const auto& work : works) work->wait();
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (!tensors[i].is_contiguous()) tensors[i].detach().copy_(dense[i][0]);
      }
    });
  }

  const Options options_;
  const C10dBackend backend_;
  c10::intrusive_ptr<c10d::ProcessGroup> process_group_;
  std::atomic<bool> lost_{false};  // set by Abort() on any thread, or by a failed operation
};

// Waits until every rank is about to connect. The store is the coordinator's, so that a missing rank is named within
// the time-out instead of hanging the others in a connect.
Status MeetAllRanks(const CollectiveGroup::Options& options, KvClient& client) {
  const auto key = [](uint32_t rank) { return StrCat("connecting/", rank); };
  DISTILL_RETURN_IF_ERROR(client.Set(key(options.rank), options.host));
  std::vector<std::string> keys;
  for (uint32_t rank = 0; rank < options.world_size; ++rank) keys.push_back(key(rank));
  const Status status = client.Wait(keys, options.timeout);
  if (status.code() != StatusCode::kDeadlineExceeded) return status;
  std::string missing;
  for (uint32_t rank = 0; rank < options.world_size; ++rank) {
    const StatusOr<bool> there = client.Check({keys[rank]});
    if (there.ok() && !*there) StrAppend(&missing, missing.empty() ? "" : ", ", rank);
  }
  return absl::DeadlineExceededError(StrCat("rank ", options.rank, " waited ", options.timeout.count(), " ms for ",
                                            options.world_size,
                                            " ranks; missing: ", missing.empty() ? "none any more" : missing));
}

}  // namespace

std::unique_ptr<CollectiveGroup> MakeC10dGroup(const CollectiveGroup::Options& options,
                                               const c10::intrusive_ptr<c10d::Store>& store, C10dBackend backend) {
  return std::make_unique<C10dGroup>(options, store, std::move(backend));
}

Status CollectiveStatus(const std::exception& error) {
  const std::string message = TorchMessage(error);
  if (ComesFromTransport(error, message)) return absl::AbortedError(StrCat("lost contact with the group: ", message));
  return TorchStatus(error, "collective or backward");
}

StatusOr<std::unique_ptr<CollectiveGroup>> CollectiveGroup::Form(const Options& options,
                                                                 std::shared_ptr<KvClient> store) {
  if (options.world_size == 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(StrCat("rank ", options.rank, " of ", options.world_size, " is impossible"));
  }
  if (options.timeout <= std::chrono::milliseconds::zero()) {
    return absl::InvalidArgumentError(
        StrCat("time-out of ", options.timeout.count(), " ms for collectives must be positive"));
  }
  const bool cuda = options.device == "cuda";
  if (!cuda && options.device != "cpu") {
    return absl::InvalidArgumentError(StrCat("collectives on device '", options.device, "': must be cpu or cuda"));
  }
  if (cuda) DISTILL_RETURN_IF_ERROR(LoadCudaRuntime());
  if (options.world_size == 1) {
    return std::make_unique<SoloGroup>(options, cuda ? c10::DeviceType::CUDA : c10::DeviceType::CPU);
  }
  if (store == nullptr)
    return absl::InvalidArgumentError(StrCat("a group of ", options.world_size, " ranks needs a store"));

  const auto deadline = CoordinatorStore::Clock::now() + options.timeout;
  DISTILL_RETURN_IF_ERROR(MeetAllRanks(options, *store));
  const auto c10d_store = c10::make_intrusive<CoordinatorStore>(store, options.timeout, deadline);
  try {
    C10dBackend backend = cuda ? MakeNcclBackend(c10d_store, options) : MakeGlooBackend(c10d_store, options);
    c10d_store->ClearDeadline();
    return MakeC10dGroup(options, c10d_store, std::move(backend));
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  } catch (const std::exception& error) {
    const Status store_error = c10d_store->first_error();
    const std::string context =
        StrCat("forming the group as rank ", options.rank, " of ", options.world_size, " at ", options.host);
    if (!store_error.ok()) return Annotate(store_error, context);
    return Annotate(CollectiveStatus(error), context);
  }
}

}  // namespace distill
