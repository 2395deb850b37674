// What the kernels of common/cuda are written in, on a GPU. tests/common/cuda/device_emulator.h is the same on the
// host, so that the tests can run the kernels' code where there is no GPU. Included by .cu files, before the kernels'
// headers.
#ifndef DISTILL_COMMON_CUDA_DEVICE_CUDA_H_
#define DISTILL_COMMON_CUDA_DEVICE_CUDA_H_

#include <cooperative_groups.h>

#include <cstdint>

#define DISTILL_DEVICE __device__ inline

namespace distill::device {

DISTILL_DEVICE int Thread() { return static_cast<int>(threadIdx.x); }
DISTILL_DEVICE int Threads() { return static_cast<int>(blockDim.x); }
DISTILL_DEVICE int64_t BlockX() { return blockIdx.x; }
DISTILL_DEVICE int64_t BlocksX() { return gridDim.x; }
// All threads of the block meet, and see what the others wrote.
DISTILL_DEVICE void Sync() { __syncthreads(); }
// The value of the thread of this warp whose number differs in the bits of `mask`.
template <typename T>
DISTILL_DEVICE T Exchange(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// The blocks that share rows: a thread-block cluster, which the GPU runs at the same time (compute capability 9.0); on
// older ones, where the host plans teams of one block, the block alone.
struct Team {
#if __CUDA_ARCH__ >= 900
  DISTILL_DEVICE static int Rank() { return static_cast<int>(cooperative_groups::this_cluster().block_rank()); }
  DISTILL_DEVICE static int Size() { return static_cast<int>(cooperative_groups::this_cluster().num_blocks()); }
  DISTILL_DEVICE static void Sync() { cooperative_groups::this_cluster().sync(); }
  // The same shared variable of another block of the team.
  template <typename T>
  DISTILL_DEVICE static T* At(T* shared, int rank) {
    return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
  }
#else
  DISTILL_DEVICE static int Rank() { return 0; }
  DISTILL_DEVICE static int Size() { return 1; }
  DISTILL_DEVICE static void Sync() { __syncthreads(); }
  template <typename T>
  DISTILL_DEVICE static T* At(T* shared, int) {
    return shared;
  }
#endif
};

}  // namespace distill::device

#endif  // DISTILL_COMMON_CUDA_DEVICE_CUDA_H_
