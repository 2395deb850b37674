#include "common/wire/copy_count.h"

#include <atomic>

namespace distill {
namespace {

std::atomic<uint64_t> copied{0};  // atomic: counted by any thread; nothing follows from its order

}  // namespace

void CountFeatureCopy(uint64_t bytes) { copied.fetch_add(bytes, std::memory_order_relaxed); }
uint64_t FeatureBytesCopied() { return copied.load(std::memory_order_relaxed); }

}  // namespace distill
