// A convolution that LibTorch 2.11 gets wrong on CPUs, done right: 1x1, strided, with few input channels.
//
// The fault is oneDNN's (3.10, uxlfoundation/oneDNN#6035; still there in 3.14), in the gradient by the weights of the
// implementations jit_1x1:avx2 and jit_1x1:avx512. A strided 1x1 convolution first packs the positions it reads into a
// workspace of P x C floats for each thread (P: positions of the output, C: input channels). The step that begins at
// position p is written to offset p x B instead of p x C, B being the channels of a register: 8 with AVX2, 16 with
// AVX-512. Where C < B and a step begins at p > 0, it writes up to p x (B - C) floats beyond its part: into another
// thread's part (wrong gradients, or ranks that hang), or, with the last thread, into whatever lies behind in the heap.
//
// It needs all of: kernel 1x1, a stride above 1, no padding, height and width multiples of the stride, channels_last,
// C < 16, and a gradient by the weights. Not faulty (each looked at with guard pages around every tensor and workspace,
// and compared with float64): the forward pass, so teachers and archives are safe; the gradient by the input; 1x1 of
// stride 1; 3x3 and 7x7 of any stride and dilation; contiguous maps, which another implementation takes.
#ifndef DISTILL_COMMON_ZOO_NARROW_CONV_H_
#define DISTILL_COMMON_ZOO_NARROW_CONV_H_

#include <torch/types.h>

#include <cstdint>

namespace distill {

// True for convolutions that must go through StridedPointwiseConv. Wider ones may go either way.
inline bool IsNarrowStridedPointwise(int64_t in_channels, int64_t kernel, int64_t stride) {
  return kernel == 1 && stride > 1 && in_channels < 16;
}

// torch::conv2d(x, weight, {}, stride) with x [N, C, H, W] and weight [K, C, 1, 1], bit by bit, and its gradient by x.
// The gradient by the weight is that of the convolution of stride 1 over the positions that the strided one reads: the
// same sum, by another implementation. No second derivatives.
torch::Tensor StridedPointwiseConv(const torch::Tensor& x, const torch::Tensor& weight, int64_t stride);

}  // namespace distill

#endif  // DISTILL_COMMON_ZOO_NARROW_CONV_H_
