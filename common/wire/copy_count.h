// Counts what happens to feature bytes between the teacher's network and the loss that reads them: every place of ours
// that copies, transposes or converts them says so here. The aim is one copy a byte delivered; a test holds to it.
//
// Of the whole process, for tests and benchmarks. Thread-safe.
#ifndef DISTILL_COMMON_WIRE_COPY_COUNT_H_
#define DISTILL_COMMON_WIRE_COPY_COUNT_H_

#include <cstdint>

namespace distill {

// `bytes` were written once more, somewhere else or as something else.
void CountFeatureCopy(uint64_t bytes);
// Since the process began.
uint64_t FeatureBytesCopied();

}  // namespace distill

#endif  // DISTILL_COMMON_WIRE_COPY_COUNT_H_
