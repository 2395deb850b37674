#include "teacher_server/merged_compute.h"

#include <iterator>
#include <utility>

namespace distill {

std::vector<StatusOr<FeatureBatch>> ComputeMerged(std::span<const QueuedRequest> batch, const ComputeFunction& compute,
                                                  const std::function<void()>& release_memory) {
  std::vector<StatusOr<FeatureBatch>> answers;
  StatusOr<std::vector<FeatureBatch>> merged = compute(batch);
  if (merged.ok()) {
    answers.assign(std::make_move_iterator(merged->begin()), std::make_move_iterator(merged->end()));
    return answers;
  }
  const bool memory = merged.status().code() == StatusCode::kResourceExhausted;
  if (memory) release_memory();
  if (!memory || batch.size() == 1) {
    answers.assign(batch.size(), merged.status());
    return answers;
  }
  for (const QueuedRequest& request : batch) {
    StatusOr<std::vector<FeatureBatch>> alone = compute({&request, 1});
    if (alone.ok()) {
      answers.push_back(std::move(alone->front()));
    } else {
      if (alone.status().code() == StatusCode::kResourceExhausted) release_memory();
      answers.push_back(alone.status());
    }
  }
  return answers;
}

}  // namespace distill
