// How the ranks of a group reach one another: Gloo, NCCL, or what a test puts in their place. Private to
// common/collective and its tests.
#ifndef DISTILL_COMMON_COLLECTIVE_COLLECTIVE_BACKEND_H_
#define DISTILL_COMMON_COLLECTIVE_COLLECTIVE_BACKEND_H_

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <chrono>
#include <memory>

#include "common/collective/collective_group.h"
#include "common/collective/coordinator_store.h"

namespace distill {

// unconnected -> connected -> aborted; also unconnected -> aborted.
class CollectiveBackend {
 public:
  virtual ~CollectiveBackend() = default;
  virtual c10::DeviceType device() const = 0;
  virtual c10d::ProcessGroup::BackendType type() const = 0;

  // Connects this rank with all others. Called once, on a thread of its own. Throws what the library throws, and
  // std::invalid_argument where the caller's options are wrong. May hang in spite of its own time-out and of Abort():
  // the caller has a limit of its own.
  virtual void Connect() = 0;
  // From any thread, at any time, also while Connect() runs: that and all operations, running and later, fail as soon
  // as the library can be moved to. Throws nothing.
  virtual void Abort() = 0;
  // What the library has found wrong with the operations so far; OK when nothing. An operation of NCCL that was aborted
  // ends on the device as if it had succeeded, with unfinished sums: only this tells. From any thread, after Connect().
  virtual Status Check() = 0;
  // REQUIRES: Connect() has returned.
  virtual c10::intrusive_ptr<c10d::Backend> c10d() = 0;
};

// Gloo over TCP. Connect() throws std::invalid_argument when options.host is no address of this machine.
std::shared_ptr<CollectiveBackend> MakeGlooBackend(const c10::intrusive_ptr<CoordinatorStore>& store,
                                                   const CollectiveGroup::Options& options);
// NCCL on the GPU options.device, through the CUDA plugin. REQUIRES: LoadCudaRuntime() is ok.
std::shared_ptr<CollectiveBackend> MakeNcclBackend(const c10::intrusive_ptr<CoordinatorStore>& store,
                                                   const CollectiveGroup::Options& options);

// A group over `backend`, not yet connected. `abort_grace`: how long Connect() waits for a backend that was aborted
// before it gives its thread up.
std::unique_ptr<CollectiveGroup> MakeC10dGroup(const CollectiveGroup::Options& options,
                                               const c10::intrusive_ptr<CoordinatorStore>& store,
                                               std::shared_ptr<CollectiveBackend> backend,
                                               std::chrono::milliseconds abort_grace = std::chrono::seconds(10));

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_COLLECTIVE_BACKEND_H_
