// The only source that sees ProcessGroupGloo, and with it the declarations in gloo_compat/.
#define USE_C10D_GLOO
#include <torch/version.h>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>
#include <stdexcept>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/collective/collective_backend.h"
#include "common/str_cat.h"
#include "common/torch_status.h"

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11,
              "gloo_compat is checked against LibTorch 2.11 only: compare it with the new release first (its README.md "
              "says how)");

namespace distill {
namespace {

// LibTorch records every collective in a map of the whole process, into which it inserts without a lock (2.11,
// FlightRecorder::recordWithResetEnabled): two groups in one process corrupt it. Its switch is read from the
// environment when the first group is made; before main() no other thread reads or writes that. Somebody who wants the
// record sets the variable.
const bool recorder_is_off = setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0) == 0;

// Reaches the protected list of contexts without making an object of a class of our own.
struct GlooAccess : c10d::ProcessGroupGloo {
  static std::vector<std::shared_ptr<gloo::Context>>& Contexts(c10d::ProcessGroupGloo& group) {
    return group.*(&GlooAccess::contexts_);
  }
};

// Gloo has no abort. But when a receive runs out of time, it breaks all connections of the context and wakes all that
// wait on them. So wait a millisecond for a message that nobody sends. (Context::closeConnections would tell the peers,
// but not our own waiters.)
void BreakConnections(c10d::ProcessGroupGloo& group) {
  for (const std::shared_ptr<gloo::Context>& context : GlooAccess::Contexts(group)) {
    try {
      char byte = 0;
      const std::unique_ptr<gloo::transport::UnboundBuffer> buffer = context->createUnboundBuffer(&byte, sizeof byte);
      static_cast<gloo::transport::tcp::UnboundBuffer&>(*buffer).waitRecv(nullptr, std::chrono::milliseconds(1));
    } catch (const std::exception&) {
      // The time-out that was asked for.
    }
  }
}

std::shared_ptr<gloo::transport::Device> MakeDevice(const std::string& host) {
  try {
    // Lazy connections could ignore the time-out (gloo#520), so connect at once.
    return c10d::ProcessGroupGloo::createDeviceForHostname(host, /*lazyInit=*/false);
  } catch (const std::exception& error) {
    throw std::invalid_argument(StrCat("cannot listen for other ranks at '", host, "': ", TorchMessage(error),
                                       "; give an address or name of this machine that the other ranks reach"));
  }
}

class GlooBackend : public CollectiveBackend {
 public:
  GlooBackend(const c10::intrusive_ptr<CoordinatorStore>& store, const CollectiveGroup::Options& options)
      : store_(store), options_(options) {}

  c10::DeviceType device() const override { return c10::DeviceType::CPU; }
  c10d::ProcessGroup::BackendType type() const override { return c10d::ProcessGroup::BackendType::GLOO; }

  void Connect() override {
    auto gloo_options = c10d::ProcessGroupGloo::Options::create(options_.timeout);
    gloo_options->devices.push_back(MakeDevice(options_.host));
    // Connects in its constructor: what Abort() finds then is the store, through which addresses are exchanged, and
    // gloo's own time-out on the connections.
    auto group = c10::make_intrusive<c10d::ProcessGroupGloo>(store_, static_cast<int>(options_.rank),
                                                             static_cast<int>(options_.world_size), gloo_options);
    absl::MutexLock lock(&mutex_);
    group_ = std::move(group);
  }
  void Abort() override {
    store_->Abort();
    const auto group = this->group();
    if (group != nullptr) BreakConnections(*group);
  }
  // Operations on the CPU throw when they fail.
  Status Check() override { return OkStatus(); }
  c10::intrusive_ptr<c10d::Backend> c10d() override { return group(); }

 private:
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group() {
    absl::MutexLock lock(&mutex_);
    return group_;
  }

  const c10::intrusive_ptr<CoordinatorStore> store_;
  const CollectiveGroup::Options options_;
  absl::Mutex mutex_;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> group_ ABSL_GUARDED_BY(mutex_);  // null until connected
};

}  // namespace

std::shared_ptr<CollectiveBackend> MakeGlooBackend(const c10::intrusive_ptr<CoordinatorStore>& store,
                                                   const CollectiveGroup::Options& options) {
  return std::make_shared<GlooBackend>(store, options);
}

}  // namespace distill
