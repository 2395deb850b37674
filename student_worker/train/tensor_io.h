// Torch tensors from and to the plain types that files and the wire use.
#ifndef DISTILL_STUDENT_WORKER_TRAIN_TENSOR_IO_H_
#define DISTILL_STUDENT_WORKER_TRAIN_TENSOR_IO_H_

#include <torch/types.h>

#include <string>
#include <vector>

#include "common/safetensors/safetensors.h"
#include "common/status.h"
#include "common/wire/feature_batch.h"

namespace distill {

struct NamedTensor {
  std::string name;
  torch::Tensor tensor;
};

// A copy on the CPU, row-major. REQUIRES: float32 or int64.
SafeTensor ToSafeTensor(const torch::Tensor& tensor);

// Copies `from` into `to`, which keeps its device and layout. kFailedPrecondition: another dtype or shape; `name` is
// for the message.
Status CopyInto(const SafeTensor& from, const std::string& name, torch::Tensor* to);

// The map as it came, on the CPU: float32, float16 or bfloat16, channels last where it lies so. Shares the bytes (the
// tensor keeps the buffer alive); copies those that are not aligned to their elements. kInvalidArgument: bytes that do
// not fit the shape, or a dtype that is none of these.
StatusOr<torch::Tensor> FromWireTensor(const WireTensor& tensor);

// uint8 (N, C, H, W), sharing the pixels. kInvalidArgument: fewer bytes than n*c*h*w.
StatusOr<torch::Tensor> FromImages(const ImageBatch& images);

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_TRAIN_TENSOR_IO_H_
