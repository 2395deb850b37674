// CollectiveGroup over any c10d backend. Private to common/collective, and to tests that form NCCL groups of one rank.
#ifndef DISTILL_COMMON_COLLECTIVE_C10D_GROUP_H_
#define DISTILL_COMMON_COLLECTIVE_C10D_GROUP_H_

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <functional>
#include <memory>

#include "common/collective/collective_group.h"

namespace distill {

struct C10dBackend {
  c10::intrusive_ptr<c10d::Backend> backend;
  c10::DeviceType device = c10::DeviceType::CPU;
  c10d::ProcessGroup::BackendType type = c10d::ProcessGroup::BackendType::UNDEFINED;
  // From any thread: running and later operations fail soon. Throws nothing.
  std::function<void()> abort;
};

// Connects this rank with all others over TCP. Throws std::invalid_argument when options.host is no address of this
// machine, and what gloo and the store throw, at most about options.timeout after all ranks are there.
C10dBackend MakeGlooBackend(const c10::intrusive_ptr<c10d::Store>& store, const CollectiveGroup::Options& options);
// NCCL through the CUDA plugin. Throws what torch throws. REQUIRES: LoadCudaRuntime() is ok.
C10dBackend MakeNcclBackend(const c10::intrusive_ptr<c10d::Store>& store, const CollectiveGroup::Options& options);

std::unique_ptr<CollectiveGroup> MakeC10dGroup(const CollectiveGroup::Options& options,
                                               const c10::intrusive_ptr<c10d::Store>& store, C10dBackend backend);

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_C10D_GROUP_H_
