#include "teacher_server/inference_v2/infer_response.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "common/str_cat.h"
#include "common/wire/copy_count.h"
#include "common/wire/proto_codec.h"
#include "inference/inference.pb.h"
#include "teacher_server/inference_v2/served_model.h"

namespace distill {
namespace {

const char* Datatype(WireDtype dtype) {
  switch (dtype) {
    case WireDtype::kF16:
      return "FP16";
    case WireDtype::kBf16:
      return "BF16";
    case WireDtype::kU8:
      return "UINT8";
    case WireDtype::kF32:
      break;
  }
  return "FP32";
}

// out [N, C, P] = in [N, P, C], P positions.
template <typename T>
void ToRowMajor(const uint8_t* in, uint64_t n, uint64_t channels, uint64_t positions, uint8_t* out) {
  constexpr uint64_t kTile = 64;  // positions whose values stay in the first-level cache
  for (uint64_t image = 0; image < n; ++image) {
    const uint64_t start = image * channels * positions;
    for (uint64_t begin = 0; begin < positions; begin += kTile) {
      const uint64_t end = std::min(begin + kTile, positions);
      for (uint64_t c = 0; c < channels; ++c) {
        for (uint64_t p = begin; p < end; ++p) {
          // Neither need be aligned.
          std::memcpy(out + (start + c * positions + p) * sizeof(T), in + (start + p * channels + c) * sizeof(T),
                      sizeof(T));
        }
      }
    }
  }
}

// The tensor's bytes in the order of its shape, which is the only one that the protocol knows: as they lie, or a copy.
Buffer RowMajorBytes(const WireTensor& tensor) {
  if (tensor.layout == TensorLayout::kRowMajor) return tensor.bytes;
  const uint64_t n = tensor.shape[0], channels = tensor.shape[1];
  const uint64_t positions = uint64_t{tensor.shape[2]} * tensor.shape[3];
  std::shared_ptr<uint8_t[]> bytes(new uint8_t[tensor.bytes.size]);  // not zeroed first
  if (SizeOf(tensor.encoding.dtype) == 4) {
    ToRowMajor<uint32_t>(tensor.bytes.data, n, channels, positions, bytes.get());
  } else {
    ToRowMajor<uint16_t>(tensor.bytes.data, n, channels, positions, bytes.get());
  }
  CountFeatureCopy(tensor.bytes.size);
  const uint8_t* const data = bytes.get();
  return Buffer{data, tensor.bytes.size, std::move(bytes)};
}

}  // namespace

grpc::ByteBuffer EncodeInferResponse(const InferHeader& header, const FeatureBatch& answer) {
  inference::ModelInferResponse response;
  response.set_model_name(header.model);
  response.set_model_version(kModelVersion);
  response.set_id(header.id);
  (*response.mutable_parameters())["model_digest"].set_string_param(answer.model_digest);
  if (header.streamed) (*response.mutable_parameters())["triton_final_response"].set_bool_param(true);
  std::vector<Buffer> raw;
  for (size_t i = 0; i < answer.taps.size(); ++i) {
    const WireTensor& tensor = answer.taps[i];
    inference::ModelInferResponse::InferOutputTensor* const output = response.add_outputs();
    output->set_name(header.outputs[i]);
    output->set_datatype(Datatype(tensor.encoding.dtype));
    output->mutable_shape()->Add(tensor.shape.begin(), tensor.shape.end());
    const Buffer bytes = RowMajorBytes(tensor);
    if (header.typed) {
      google::protobuf::RepeatedField<float>* const values = output->mutable_contents()->mutable_fp32_contents();
      values->Resize(static_cast<int>(bytes.size / sizeof(float)), 0);
      std::memcpy(values->mutable_data(), bytes.data, bytes.size);
    } else {
      raw.push_back(bytes);
    }
  }
  return EncodeWithPayloads(response, inference::ModelInferResponse::kRawOutputContentsFieldNumber, raw,
                            header.streamed ? inference::ModelStreamInferResponse::kInferResponseFieldNumber : 0);
}

grpc::ByteBuffer EncodeInferError(const std::string& id, const Status& status) {
  inference::ModelStreamInferResponse response;
  response.set_error_message(StrCat(absl::StatusCodeToString(status.code()), ": ", status.message()));
  response.mutable_infer_response()->set_id(id);
  return EncodeWithPayload(response, Buffer{});
}

}  // namespace distill
