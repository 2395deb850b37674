// tat_attention for one instruction set; this file's compiler flags (CMakeLists.txt) choose it.
#include <cstdint>
#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "common/kernels/tat_attention_simd.h"

namespace distill::tat {
namespace {
#include "common/kernels/simd_vector.inc"
// The functions on vectors come first.
#include "common/kernels/tat_attention_simd.inc"
}  // namespace

const Kernels& Avx2Kernels() { return kKernels; }

}  // namespace distill::tat
