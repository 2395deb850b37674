#include "student_worker/data/pixel_kernels.h"

#include "student_worker/data/pixel_kernels_simd.h"

namespace distill {

const PixelKernels& PixelKernelsFor(SimdLevel level) {
#ifdef DISTILL_PIXELS_X86
  if (level >= SimdLevel::kAvx2) return Avx2PixelKernels();
#endif
  static_cast<void>(level);
  return PortablePixelKernels();
}

}  // namespace distill
