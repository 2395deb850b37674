// The ranks of one job's generation: all-reduce, broadcast, and gradient averaging that overlaps with backward.
//
// Gloo on CPU tensors; NCCL on CUDA tensors (through the plugin common/cuda). Owned by the training thread, except
// Abort() and Check(). A failed operation (dead peer, timeout, Abort) gives kAborted; the group is useless afterwards
// and says kAborted to everything: drop it, and its reducers first, and form a new one under the next generation. All
// ranks call the same operations in the same order, with tensors of the same shapes and dtypes.
//
// On a GPU an operation returns OK when it is enqueued. An abort ends it there as if it had succeeded, with sums that
// are not finished. So: whatever is made of results (a decision, a file) is made only after they were copied to the
// CPU and Check() has then said OK.
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

// Averages gradients over ranks, bucket by bucket, while backward runs (c10d::Reducer, 25 MiB buckets, the first 1
// MiB). Made anew for each stage: the set of parameters is fixed at construction and equal on all ranks. Every
// parameter takes part in every backward: a parameter that gets no gradient would leave the ranks waiting for each
// other. Destroy it before its group.
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;
  // Before forward. Talks to the other ranks once, before the second step (bucket order); kAborted then when one is
  // lost.
  virtual Status PrepareForForward() = 0;
  // After forward, before backward; `outputs` are the tensors backward starts from.
  virtual Status PrepareForBackward(const std::vector<torch::Tensor>& outputs) = 0;
  // After backward() returned, every parameter's grad is the mean over ranks. A failure inside backward surfaces as a
  // c10::Error thrown by backward(); translate it with TorchStatus() (common/torch_status.h).
};

class CollectiveGroup {
 public:
  struct Options {
    uint32_t rank = 0;
    uint32_t world_size = 1;
    std::string device = "cpu";                // "cpu": Gloo; "cuda:1": NCCL on that GPU
    std::string host = "127.0.0.1";            // address other ranks reach this one at
    std::chrono::milliseconds timeout{20000};  // of every operation; a stopped peer costs this long
  };
  // A group that is not connected yet. World size 1 needs no store and no network.
  // kInvalidArgument: rank, world size, time-out or device make no sense; kFailedPrecondition: CUDA is asked for and
  // not there.
  static StatusOr<std::unique_ptr<CollectiveGroup>> Create(const Options& options, std::shared_ptr<KvClient> store);
  virtual ~CollectiveGroup() = default;

  // Before anything else, once. Blocks until all ranks are connected, twice `timeout` at most: until all have come, and
  // while they connect. Abort() ends it, within a few seconds where the library hangs.
  // kDeadlineExceeded: not all ranks came, the message names those missing; kAborted: the generation is over, a rank
  // was lost while connecting, Abort(); kInvalidArgument: `host` is no address of this machine; kInternal: the library
  // hangs in spite of all, and a thread of this process with it: the status is marked WithEndOfProcess().
  virtual Status Connect() = 0;

  virtual uint32_t rank() const = 0;
  virtual uint32_t world_size() const = 0;
  // In place. Sum over ranks. kInvalidArgument: a tensor on another device; nothing is sent then.
  virtual Status AllReduceSum(std::vector<torch::Tensor>& tensors) = 0;
  // In place, from rank `root`.
  virtual Status Broadcast(std::vector<torch::Tensor>& tensors, uint32_t root) = 0;
  // All parameters require grad and live on this group's device; kInvalidArgument otherwise, and when there is none.
  virtual StatusOr<std::unique_ptr<GradientReducer>> MakeReducer(const std::vector<torch::Tensor>& parameters) = 0;
  // Whether the operations whose results are on the CPU by now really took place on all ranks. kAborted otherwise, and
  // the group is useless. From any thread.
  virtual Status Check() = 0;
  // From any thread while the group lives, also while it connects: makes running operations, a backward in progress
  // included, and later ones fail within milliseconds, here and on the other ranks (NCCL: communicators aborted; Gloo:
  // connections closed). Idempotent.
  virtual void Abort() = 0;
};

}  // namespace distill

#endif  // DISTILL_COMMON_COLLECTIVE_COLLECTIVE_GROUP_H_
