// What becomes of a merged batch that does not fit into the device's memory: its requests are computed one by one, so
// that one client's large batch does not fail those of others.
#ifndef DISTILL_TEACHER_SERVER_MERGED_COMPUTE_H_
#define DISTILL_TEACHER_SERVER_MERGED_COMPUTE_H_

#include <functional>
#include <span>
#include <vector>

#include "common/status.h"
#include "common/wire/feature_batch.h"
#include "teacher_server/batch_queue.h"

namespace distill {

// One forward pass for all requests; the answers in the same order.
using ComputeFunction = std::function<StatusOr<std::vector<FeatureBatch>>(std::span<const QueuedRequest>)>;

// One answer a request, in order. `compute` is called with the whole batch; when that is kResourceExhausted, with each
// request alone. `release_memory` is called after every failure of that kind: it gives back what an allocator keeps.
std::vector<StatusOr<FeatureBatch>> ComputeMerged(std::span<const QueuedRequest> batch, const ComputeFunction& compute,
                                                  const std::function<void()>& release_memory);

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_MERGED_COMPUTE_H_
