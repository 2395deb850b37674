// pixel_kernels for one instruction set; this file's compiler flags (CMakeLists.txt) choose it.
#include "student_worker/data/pixel_kernels_simd.h"

namespace distill {
namespace {
#include "student_worker/data/pixel_kernels.inc"
}  // namespace

const PixelKernels& Avx2PixelKernels() { return kKernels; }

}  // namespace distill
