// Torch tensors as the kernels of common/kernels see them: element type, layout, threads. Private to losses/.
#ifndef DISTILL_STUDENT_WORKER_LOSSES_KERNEL_VIEW_H_
#define DISTILL_STUDENT_WORKER_LOSSES_KERNEL_VIEW_H_

#include <torch/types.h>

#include <optional>

#include "common/kernels/element_type.h"
#include "common/kernels/map_layout.h"
#include "common/kernels/parallel_for.h"

namespace distill::loss_internal {

// None for types that the kernels do not read, such as float64.
std::optional<ElementType> KernelType(const torch::Tensor& tensor);

// How a dense map [N, C, H, W] lies in memory; kChannelsFirst where both descriptions fit.
MapLayout LayoutOf(const torch::Tensor& map);

// A teacher's map [N, C, H, W] in this order of axes. What has to be transposed is counted (common/wire/copy_count.h).
torch::Tensor InLayout(const torch::Tensor& map, torch::MemoryFormat format);

// What backward returns for a gradient that holds the factor `weight` already, when `incoming` (a scalar) comes: the
// gradient itself where that is the factor, which a look at it tells on a CPU; else another pass over it. On a GPU
// always the pass: looking would wait for the device. Who gets the gradient itself may write to it, so backward of such
// a graph runs once.
torch::Tensor TimesIncoming(const torch::Tensor& gradient, double weight, const torch::Tensor& incoming);

// torch's thread pool.
void ParallelForOfTorch(int64_t begin, int64_t end, int64_t grain, const ParallelBody& body);

}  // namespace distill::loss_internal

#endif  // DISTILL_STUDENT_WORKER_LOSSES_KERNEL_VIEW_H_
