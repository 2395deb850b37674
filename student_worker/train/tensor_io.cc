#include "student_worker/train/tensor_io.h"

#include <torch/torch.h>

#include <cstring>

#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/copy_count.h"

namespace distill {
namespace {

// torch::from_blob takes a mutable pointer; nobody writes through these tensors.
torch::Tensor Share(const Buffer& buffer, std::vector<int64_t> shape, torch::ScalarType dtype) {
  return torch::from_blob(
      const_cast<uint8_t*>(buffer.data), shape, [owner = buffer.owner](void*) {}, torch::TensorOptions().dtype(dtype));
}

}  // namespace

SafeTensor ToSafeTensor(const torch::Tensor& tensor) {
  const torch::Tensor plain = tensor.detach().to(torch::kCPU).contiguous();
  const auto* bytes = static_cast<const uint8_t*>(plain.const_data_ptr());
  SafeTensor result;
  TORCH_CHECK(plain.scalar_type() == torch::kInt64 || plain.scalar_type() == torch::kFloat32, "a tensor of type ",
              plain.scalar_type(), " is not written to files");
  result.dtype = plain.scalar_type() == torch::kInt64 ? "I64" : "F32";
  result.shape = plain.sizes().vec();
  result.bytes = Buffer::FromVector(std::vector<uint8_t>(bytes, bytes + plain.nbytes()));
  return result;
}

Status CopyInto(const SafeTensor& from, const std::string& name, torch::Tensor* to) {
  const std::string dtype = to->scalar_type() == torch::kInt64 ? "I64" : "F32";
  if (from.dtype != dtype || to->sizes() != at::IntArrayRef(from.shape)) {
    return absl::FailedPreconditionError(StrCat("tensor '", name, "' is ", from.dtype, " ", ShapeText(from.shape),
                                                " in the file, but ", dtype, " ", ShapeText(to->sizes()),
                                                " is needed"));
  }
  torch::NoGradGuard no_grad;
  torch::Tensor plain = torch::empty(to->sizes(), torch::TensorOptions().dtype(to->scalar_type()));
  if (plain.nbytes() > 0) std::memcpy(plain.data_ptr(), from.bytes.data, plain.nbytes());
  to->copy_(plain);
  return OkStatus();
}

StatusOr<torch::Tensor> FromWireTensor(const WireTensor& tensor) {
  const std::vector<int64_t> shape(tensor.shape.begin(), tensor.shape.end());
  const WireDtype wire_dtype = tensor.encoding.dtype;
  if (const uint64_t needed = LayoutOf(tensor.shape, tensor.encoding).bytes; tensor.bytes.size != needed) {
    return absl::InvalidArgumentError(StrCat("a teacher's tensor of shape ", ShapeText(shape), " and dtype ",
                                             Name(wire_dtype), " has ", tensor.bytes.size, " bytes, not ", needed));
  }
  torch::ScalarType dtype;
  switch (wire_dtype) {
    case WireDtype::kF32:
      dtype = torch::kFloat32;
      break;
    case WireDtype::kF16:
      dtype = torch::kFloat16;
      break;
    case WireDtype::kBf16:
      dtype = torch::kBFloat16;
      break;
    default:
      return absl::InvalidArgumentError(
          StrCat("a teacher sent dtype ", Name(wire_dtype), ", which this student does not read"));
  }
  const bool last = tensor.layout == TensorLayout::kChannelsLast;
  if (last && shape.size() != 4) {
    return absl::InvalidArgumentError(
        StrCat("a teacher's tensor of shape ", ShapeText(shape), " cannot lie channels last"));
  }
  // As the bytes lie.
  std::vector<int64_t> order = shape;
  if (last) order = {shape[0], shape[2], shape[3], shape[1]};
  torch::Tensor values;
  if (reinterpret_cast<uintptr_t>(tensor.bytes.data) % SizeOf(wire_dtype) == 0) {
    values = Share(tensor.bytes, order, dtype);
  } else {
    values = torch::empty(order, torch::TensorOptions().dtype(dtype));
    std::memcpy(values.data_ptr(), tensor.bytes.data, tensor.bytes.size);
    CountFeatureCopy(tensor.bytes.size);
  }
  return last ? values.permute({0, 3, 1, 2}) : values;
}

StatusOr<torch::Tensor> FromImages(const ImageBatch& images) {
  if (images.pixels.size != uint64_t{images.n} * images.c * images.h * images.w) {
    return absl::InvalidArgumentError(StrCat("an image batch of ", images.n, "x", images.c, "x", images.h, "x",
                                             images.w, " has ", images.pixels.size, " bytes"));
  }
  return Share(images.pixels, {images.n, images.c, images.h, images.w}, torch::kUInt8);
}

}  // namespace distill
