// Which images a rank trains on in a step: a pure function of (seed, step, rank), so that ranks need no messages.
//
// Epoch e's order is a Fisher-Yates permutation of [0, dataset_size) drawn from CounterRng(seed, kEpochOrder, e). An
// epoch has floor(dataset_size / batch_size) steps (the incomplete last global batch is dropped). Step s belongs to
// epoch e = s / steps_per_epoch; with k = s % steps_per_epoch it takes the global batch
// perm[k * batch_size, (k + 1) * batch_size), of which rank r of W takes the slice [r * b, (r + 1) * b),
// b = batch_size / W. The ranks' slices joined are the global batch for any W.
//
// Batches that are computed in parts (gradient accumulation): part j of P begins at perm[k * batch_size + j *
// batch_size / P]; each rank takes its slice of it in the same way. `step` then counts parts: P of them to a batch.
#ifndef DISTILL_STUDENT_WORKER_DATA_SAMPLER_H_
#define DISTILL_STUDENT_WORKER_DATA_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "common/status.h"

namespace distill {

// The permutation of [0, size) for one epoch.
std::vector<uint32_t> EpochOrder(uint64_t seed, uint64_t epoch, uint32_t size);
// The first `count` of the permutation of [0, size) that picks DataPlan.train_limit images. REQUIRES: count <= size.
std::vector<uint32_t> SubsetOrder(uint64_t seed, uint32_t size, uint32_t count);

struct SamplerOptions {
  uint64_t dataset_size = 0;
  uint64_t seed = 0;
  uint32_t batch_size = 0;  // global, over all ranks
  uint32_t world_size = 1;
  uint32_t rank = 0;
  uint32_t parts = 1;  // of a batch
};

// Keeps the order of the epoch used last (4 bytes an image). Thread-compatible.
class Sampler {
 public:
  // kInvalidArgument: batch_size 0, larger than the data set or no multiple of world_size * parts; a rank that is not
  // in the world; more than 2^32-1 images.
  static StatusOr<Sampler> Create(const SamplerOptions& options);

  uint64_t steps_per_epoch() const { return steps_per_epoch_; }
  uint32_t batch_per_rank() const { return options_.batch_size / options_.world_size / options_.parts; }
  uint64_t Epoch(uint64_t step) const { return step / steps_per_epoch_; }
  // Indices into the data set of this rank's images in `step`, batch_per_rank() of them. Any order of steps.
  std::vector<uint32_t> SampleIds(uint64_t step);

 private:
  explicit Sampler(const SamplerOptions& options);
  SamplerOptions options_;
  uint64_t steps_per_epoch_;
  uint64_t order_epoch_ = 0;
  std::vector<uint32_t> order_;  // empty: none yet
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_SAMPLER_H_
