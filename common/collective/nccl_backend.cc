#include <pthread.h>

#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/collective/collective_backend.h"
#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"

namespace distill {
namespace {

class NcclBackend : public CollectiveBackend {
 public:
  NcclBackend(const c10::intrusive_ptr<CoordinatorStore>& store, const CollectiveGroup::Options& options)
      : plugin_(LoadedCudaPlugin()), store_(store), options_(options) {}

  ~NcclBackend() override {
    if (aborting_.joinable()) aborting_.join();
  }

  c10::DeviceType device() const override { return c10::DeviceType::CUDA; }
  c10d::ProcessGroup::BackendType type() const override { return c10d::ProcessGroup::BackendType::NCCL; }

  void Connect() override {
    TORCH_CHECK(plugin_ != nullptr, "an NCCL group before LoadCudaRuntime");
    const c10::Device device(options_.device);
    c10::intrusive_ptr<c10d::Backend> backend;
    plugin_->make_nccl(store_, static_cast<int>(options_.rank), static_cast<int>(options_.world_size), options_.timeout,
                       &backend);
    {
      absl::MutexLock lock(&mutex_);
      TORCH_CHECK_WITH(DistBackendError, !aborted_, "aborted before it was connected");
      backend_ = backend;
    }
    plugin_->connect_nccl(*backend, device.has_index() ? device.index() : 0);
  }
  void Abort() override {
    store_->Abort();
    absl::MutexLock lock(&mutex_);
    if (std::exchange(aborted_, true) || backend_ == nullptr) return;
    // NCCL can take seconds over it, and the caller is the thread that sends heartbeats.
    const auto abort = [plugin = plugin_, backend = backend_] { plugin->abort_nccl(*backend); };
    try {
      aborting_ = std::thread([abort] {
        pthread_setname_np(pthread_self(), "nccl-abort");
        abort();
      });
    } catch (const std::exception&) {
      abort();  // no thread to be had
    }
  }
  Status Check() override {
    const std::string error = plugin_->nccl_error(*c10d());
    return error.empty() ? OkStatus() : absl::AbortedError(error);
  }
  c10::intrusive_ptr<c10d::Backend> c10d() override {
    absl::MutexLock lock(&mutex_);
    return backend_;
  }

 private:
  const CudaPlugin* const plugin_;  // lives until the process ends
  const c10::intrusive_ptr<CoordinatorStore> store_;
  const CollectiveGroup::Options options_;
  absl::Mutex mutex_;
  c10::intrusive_ptr<c10d::Backend> backend_ ABSL_GUARDED_BY(mutex_);  // null until it is about to connect
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread aborting_ ABSL_GUARDED_BY(mutex_);  // joined by the destructor
};

}  // namespace

std::shared_ptr<CollectiveBackend> MakeNcclBackend(const c10::intrusive_ptr<CoordinatorStore>& store,
                                                   const CollectiveGroup::Options& options) {
  return std::make_shared<NcclBackend>(store, options);
}

}  // namespace distill
