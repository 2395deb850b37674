#include "student_worker/data/sampler.h"

#include <numeric>

#include "common/str_cat.h"
#include "student_worker/data/counter_rng.h"

namespace distill {
namespace {

std::vector<uint32_t> Shuffle(CounterRng rng, uint32_t size) {
  std::vector<uint32_t> order(size);
  std::iota(order.begin(), order.end(), 0u);
  for (uint32_t i = size; i > 1; --i) std::swap(order[i - 1], order[rng.Below(i)]);
  return order;
}

}  // namespace

std::vector<uint32_t> EpochOrder(uint64_t seed, uint64_t epoch, uint32_t size) {
  return Shuffle(CounterRng(seed, RngPurpose::kEpochOrder, epoch), size);
}

std::vector<uint32_t> SubsetOrder(uint64_t seed, uint32_t size, uint32_t count) {
  std::vector<uint32_t> order = Shuffle(CounterRng(seed, RngPurpose::kSubset), size);
  order.resize(count);
  return order;
}

StatusOr<Sampler> Sampler::Create(const SamplerOptions& options) {
  const uint64_t shares = uint64_t{options.world_size} * options.parts;
  if (options.batch_size == 0 || shares == 0 || options.batch_size % shares != 0) {
    return absl::InvalidArgumentError(StrCat("batch size ", options.batch_size, " is not a positive multiple of the ",
                                             options.world_size, " ranks",
                                             options.parts > 1 ? " times the parts of a batch" : ""));
  }
  if (options.rank >= options.world_size) {
    return absl::InvalidArgumentError(
        StrCat("rank ", options.rank, " is not below the world size ", options.world_size));
  }
  if (options.dataset_size < options.batch_size) {
    return absl::InvalidArgumentError(StrCat("batch size ", options.batch_size, " is larger than the ",
                                             options.dataset_size,
                                             " training images; lower batch_size or raise data.train_limit"));
  }
  if (options.dataset_size > UINT32_MAX) {
    return absl::InvalidArgumentError(StrCat(options.dataset_size, " training images; at most ", UINT32_MAX));
  }
  return Sampler(options);
}

Sampler::Sampler(const SamplerOptions& options)
    : options_(options), steps_per_epoch_(options.dataset_size / options.batch_size * options.parts) {}

std::vector<uint32_t> Sampler::SampleIds(uint64_t step) {
  const uint64_t epoch = Epoch(step);
  if (order_.empty() || epoch != order_epoch_) {
    order_ = EpochOrder(options_.seed, epoch, static_cast<uint32_t>(options_.dataset_size));
    order_epoch_ = epoch;
  }
  const uint64_t part = options_.batch_size / options_.parts;
  const uint64_t begin = step % steps_per_epoch_ * part + uint64_t{options_.rank} * batch_per_rank();
  return std::vector<uint32_t>(order_.begin() + begin, order_.begin() + begin + batch_per_rank());
}

}  // namespace distill
