// The ranks of one job's generation: all-reduce, broadcast, barrier, and gradient averaging that overlaps with backward.
//
// Gloo on CPU tensors; NCCL on CUDA tensors (through the plugin common/cuda). Owned by the training thread, except Abort().
// A failed operation (dead peer, timeout) gives kAborted; the group is useless afterwards: drop it and form a new one under the
// next generation.
#ifndef DISTILL_COMMON_COLLECTIVE_COLLECTIVE_GROUP_H_
#define DISTILL_COMMON_COLLECTIVE_COLLECTIVE_GROUP_H_

#include <torch/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/rendezvous/kv_client.h"
#include "common/status.h"

namespace distill {

// Averages gradients over ranks, bucket by bucket, while backward runs (c10d::Reducer, 25 MiB buckets, the first 1 MiB).
// Made anew for each stage: the set of parameters is fixed at construction and equal on all ranks.
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;
  // Before forward.
  virtual Status PrepareForForward() = 0;
  // After forward, before backward; `outputs` are the tensors backward starts from.
  virtual Status PrepareForBackward(const std::vector<torch::Tensor>& outputs) = 0;
  // After backward() returned, every parameter's grad is the mean over ranks. A failure inside backward surfaces as a c10::Error
  // thrown by backward(); translate it with CollectiveStatus().
};

class CollectiveGroup {
 public:
  struct Options {
    uint32_t rank = 0;
    uint32_t world_size = 1;
    std::string device = "cpu";          // "cpu": Gloo, "cuda": NCCL
    std::string host = "127.0.0.1";      // address other ranks reach this one at
    std::chrono::milliseconds timeout{20000};  // of every operation; a stopped peer costs this long
  };
  // Blocks until all ranks have arrived, at most `timeout`. World size 1 needs no store and no network.
  // kDeadlineExceeded: not all ranks arrived; kAborted: the generation is over; kUnimplemented: device without support here.
  static StatusOr<std::unique_ptr<CollectiveGroup>> Form(const Options& options, std::shared_ptr<KvClient> store);
  virtual ~CollectiveGroup() = default;

  virtual uint32_t rank() const = 0;
  virtual uint32_t world_size() const = 0;
  // In place. Sum over ranks.
  virtual Status AllReduceSum(std::vector<torch::Tensor>& tensors) = 0;
  // In place, from rank `root`.
  virtual Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) = 0;
  virtual Status Barrier() = 0;
  // All parameters require grad and live on this group's device.
  virtual StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) = 0;
  // From any thread: makes running and later operations fail soon (NCCL: abort; Gloo: connections closed).
  virtual void Abort() = 0;
};

// A c10::Error or std::exception thrown by a collective or by backward() as a Status (kAborted for lost peers and timeouts).
Status CollectiveStatus(const std::exception& error);

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_COLLECTIVE_GROUP_H_
