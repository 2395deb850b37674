// For pixel_kernels.cc and the files of its levels alone.
#ifndef DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_SIMD_H_
#define DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_SIMD_H_

#include "student_worker/data/pixel_kernels.h"

namespace distill {

const PixelKernels& PortablePixelKernels();
const PixelKernels& Avx2PixelKernels();

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_PIXEL_KERNELS_SIMD_H_
