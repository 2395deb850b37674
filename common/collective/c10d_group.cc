#include <pthread.h>
#include <torch/torch.h>

#include <torch/csrc/distributed/c10d/reducer.hpp>

#include <algorithm>
#include <atomic>
#include <exception>
#include <stdexcept>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/collective/collective_backend.h"
#include "common/collective/group_checks.h"
#include "common/failure_kind.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"
#include "common/torch_status.h"

namespace distill {
namespace {

using Clock = std::chrono::steady_clock;

// How soon a wait for the other ranks sees Abort().
constexpr std::chrono::milliseconds kWaitPiece{200};

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
      return TorchStatus(error, "gradient reducer");
    }
  }
  Status PrepareForBackward(const std::vector<torch::Tensor>& outputs) override {
    try {
      reducer_->prepare_for_backward(outputs);
      return OkStatus();
    } catch (const std::exception& error) {
      return TorchStatus(error, "gradient reducer");
    }
  }

 private:
  std::unique_ptr<c10d::Reducer> reducer_;
};

// One Connect() of a backend, on a thread that may have to be given up: a library that hangs in there (NCCL's bootstrap
// waits for a missing rank without end) must not take the caller with it. Shared by both threads. Thread-safe.
class Connecting {
 public:
  explicit Connecting(std::shared_ptr<CollectiveBackend> backend) : backend_(std::move(backend)) {}

  static std::thread Start(const std::shared_ptr<Connecting>& self) {
    return std::thread([self] {
      pthread_setname_np(pthread_self(), "group-connect");
      std::exception_ptr error;
      try {
        self->backend_->Connect();
      } catch (...) {
        error = std::current_exception();
      }
      absl::MutexLock lock(&self->mutex_);
      self->error_ = error;
      self->done_ = true;
    });
  }
  void Abort() {
    absl::MutexLock lock(&mutex_);
    aborted_ = true;
  }
  // True when it has ended, by itself or with an error.
  bool AwaitEnd(std::chrono::milliseconds timeout) {
    absl::MutexLock lock(&mutex_);
    return AwaitFor(&mutex_, absl::Condition(&done_), absl::FromChrono(timeout));
  }
  bool AwaitEndOrAbort(std::chrono::milliseconds timeout) {
    absl::MutexLock lock(&mutex_);
    auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return done_ || aborted_; };
    AwaitFor(&mutex_, absl::Condition(&over), absl::FromChrono(timeout));
    return done_;
  }
  // REQUIRES: it has ended.
  void RethrowError() {
    absl::MutexLock lock(&mutex_);
    if (error_ != nullptr) std::rethrow_exception(error_);
  }

 private:
  const std::shared_ptr<CollectiveBackend> backend_;  // shared with the group, which may go first
  absl::Mutex mutex_;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  std::exception_ptr error_ ABSL_GUARDED_BY(mutex_);
};

class C10dGroup : public CollectiveGroup {
 public:
  C10dGroup(const Options& options, const c10::intrusive_ptr<CoordinatorStore>& store,
            std::shared_ptr<CollectiveBackend> backend, std::chrono::milliseconds abort_grace)
      : options_(options),
        abort_grace_(abort_grace),
        store_(store),
        backend_(std::move(backend)),
        connecting_(std::make_shared<Connecting>(backend_)) {}

  // Without Abort, c10d would wait here for operations that can no longer end.
  ~C10dGroup() override { Abort(); }

  Status Connect() override {
    Status status = ConnectAll();
    if (status.ok() && lost_) status = Lost(options_);
    if (!status.ok()) Abort();
    return status;
  }

  uint32_t rank() const override { return options_.rank; }
  uint32_t world_size() const override { return options_.world_size; }

  Status AllReduceSum(std::vector<torch::Tensor>& tensors) override {
    return RunEach(tensors, "all-reduce",
                   [this](std::vector<torch::Tensor>& one) { return backend_->c10d()->allreduce(one); });
  }

  Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) override {
    if (root >= options_.world_size) {
      return absl::InvalidArgumentError(StrCat("broadcast: root ", root, " of ", options_.world_size, " ranks"));
    }
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return RunEach(tensors, "broadcast", [this, options](std::vector<torch::Tensor>& one) {
      return backend_->c10d()->broadcast(one, options);
    });
  }

  StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) override {
    DISTILL_RETURN_IF_ERROR(CheckParameters(parameters, backend_->device()));
    std::unique_ptr<GradientReducer> reducer;
    DISTILL_RETURN_IF_ERROR(Run([&] { reducer = std::make_unique<C10dReducer>(parameters, process_group_); }));
    return reducer;
  }

  Status Check() override {
    if (lost_) return Lost(options_);
    const Status status = backend_->Check();
    if (!status.ok()) {
      Abort();
      return absl::AbortedError(StrCat("rank ", options_.rank, " of ", options_.world_size,
                                       ": lost contact with the group: ", status.message()));
    }
    return lost_ ? Lost(options_) : OkStatus();
  }

  void Abort() override {
    if (lost_.exchange(true)) return;
    connecting_->Abort();
    store_->Abort();
    backend_->Abort();
  }

 private:
  Status ConnectAll() {
    DISTILL_RETURN_IF_ERROR(MeetAllRanks());
    std::thread thread = Connecting::Start(connecting_);
    const bool in_time = connecting_->AwaitEndOrAbort(options_.timeout);
    const bool aborted = lost_;
    if (!in_time) {
      Abort();
      if (!connecting_->AwaitEnd(abort_grace_)) {
        thread.detach();  // it holds what it needs
        return WithEndOfProcess(
            WithKind(absl::InternalError(StrCat(Context(), ": connecting hangs, ", abort_grace_.count(),
                                                " ms after it was aborted; this process cannot form a group any more")),
                     FailureKind::kPassing));
      }
    }
    thread.join();
    try {
      connecting_->RethrowError();
    } catch (const std::invalid_argument& error) {
      return absl::InvalidArgumentError(error.what());
    } catch (const std::exception& error) {
      if (aborted) return Lost(options_);
      if (!in_time) return TooLate();
      const Status store_error = store_->first_error();
      if (!store_error.ok()) return Annotate(store_error, Context());
      return TorchStatus(error, Context());
    }
    if (aborted) return Lost(options_);
    if (!in_time) return TooLate();
    process_group_ = c10::make_intrusive<c10d::ProcessGroup>(store_, static_cast<int>(options_.rank),
                                                             static_cast<int>(options_.world_size));
    process_group_->setBackend(backend_->device(), backend_->type(), backend_->c10d());
    process_group_->setDefaultBackend(backend_->type());
    return OkStatus();
  }

  std::string Context() const {
    return StrCat("forming the group as rank ", options_.rank, " of ", options_.world_size, " at ", options_.host);
  }
  Status TooLate() const {
    return absl::AbortedError(StrCat(Context(), ": not connected within ", options_.timeout.count(), " ms"));
  }

  // Waits until every rank is about to connect, so that a missing one is named instead of hanging the others in a
  // connect.
  Status MeetAllRanks() {
    const auto key = [](uint32_t rank) { return StrCat("connecting/", rank); };
    KvClient& client = store_->client();
    DISTILL_RETURN_IF_ERROR(client.Set(key(options_.rank), options_.host));
    std::vector<std::string> keys;
    for (uint32_t rank = 0; rank < options_.world_size; ++rank) keys.push_back(key(rank));
    const auto deadline = Clock::now() + options_.timeout;
    while (!lost_) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
      const Status status =
          client.Wait(keys, std::clamp(left, std::chrono::milliseconds(0), std::chrono::milliseconds(kWaitPiece)));
      if (status.code() != StatusCode::kDeadlineExceeded) return status;
      if (left > kWaitPiece) continue;
      std::string missing;
      for (uint32_t rank = 0; rank < options_.world_size; ++rank) {
        const StatusOr<bool> there = client.Check({keys[rank]});
        if (there.ok() && !*there) StrAppend(&missing, missing.empty() ? "" : ", ", rank);
      }
      return absl::DeadlineExceededError(StrCat("rank ", options_.rank, " waited ", options_.timeout.count(),
                                                " ms for ", options_.world_size,
                                                " ranks; missing: ", missing.empty() ? "none any more" : missing));
    }
    return Lost(options_);
  }

  // Calls `operation`, which may throw. After a failure nothing runs any more.
  template <typename F>
  Status Run(const F& operation) {
    if (lost_) return Lost(options_);
    try {
      operation();
      // Aborted meanwhile: on a GPU that is no error of the operation, but its results are none.
      return lost_ ? Lost(options_) : OkStatus();
    } catch (const std::exception& error) {
      const bool aborted = lost_;
      const Status status = TorchStatus(error, "collective");
      Abort();
      return aborted ? Lost(options_) : status;
    }
  }

  // Starts `operation` on all tensors, then waits for all. Backends want dense row-major memory; others go through a
  // copy.
  template <typename F>
  Status RunEach(std::vector<torch::Tensor>& tensors, std::string_view what, const F& operation) {
    DISTILL_RETURN_IF_ERROR(CheckTensors(tensors, backend_->device(), what));
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
  const std::chrono::milliseconds abort_grace_;
  const c10::intrusive_ptr<CoordinatorStore> store_;
  const std::shared_ptr<CollectiveBackend> backend_;  // shared with the thread that connects
  const std::shared_ptr<Connecting> connecting_;      // shared with the thread that connects
  c10::intrusive_ptr<c10d::ProcessGroup> process_group_;
  std::atomic<bool> lost_{false};  // set by Abort() on any thread, or by a failed operation
};

}  // namespace

std::unique_ptr<CollectiveGroup> MakeC10dGroup(const CollectiveGroup::Options& options,
                                               const c10::intrusive_ptr<CoordinatorStore>& store,
                                               std::shared_ptr<CollectiveBackend> backend,
                                               std::chrono::milliseconds abort_grace) {
  return std::make_unique<C10dGroup>(options, store, std::move(backend), abort_grace);
}

}  // namespace distill
