// Answers as bytes, without a server.
#include "teacher_server/inference_v2/infer_response.h"

#include <gmock/gmock.h>
#include <grpcpp/support/slice.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "inference/inference.pb.h"

namespace distill {
namespace {

std::string Flatten(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string flat;
  for (const grpc::Slice& slice : slices) flat.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return flat;
}

// A map of these values, which number its elements [N, C, H, W] in the order of the shape.
template <typename T>
WireTensor Numbered(const std::vector<uint32_t>& shape, WireDtype dtype, TensorLayout layout) {
  const uint32_t n = shape[0], c = shape[1], p = shape[2] * shape[3];
  std::vector<uint8_t> bytes(n * c * p * sizeof(T));
  for (uint32_t i = 0; i < n * c * p; ++i) {
    const T value = static_cast<T>(i);
    const uint32_t image = i / (c * p), channel = i / p % c, position = i % p;
    const uint32_t at = layout == TensorLayout::kRowMajor ? i : (image * p + position) * c + channel;
    std::memcpy(bytes.data() + at * sizeof(T), &value, sizeof(T));
  }
  WireTensor tensor;
  tensor.shape = shape;
  tensor.encoding.dtype = dtype;
  tensor.layout = layout;
  tensor.bytes = Buffer::FromVector(std::move(bytes));
  return tensor;
}

// A network computes channels last, and its maps come as they lie; the protocol has the order of the shape alone.
TEST(InferResponseTest, MapsGoInTheOrderOfTheirShape) {
  for (const std::vector<uint32_t>& shape :
       std::vector<std::vector<uint32_t>>{{2, 3, 4, 5}, {1, 7, 9, 13}, {3, 1, 1, 1}}) {
    FeatureBatch lying, upright;
    lying.taps = {Numbered<float>(shape, WireDtype::kF32, TensorLayout::kChannelsLast),
                  Numbered<uint16_t>(shape, WireDtype::kBf16, TensorLayout::kChannelsLast)};
    upright.taps = {Numbered<float>(shape, WireDtype::kF32, TensorLayout::kRowMajor),
                    Numbered<uint16_t>(shape, WireDtype::kBf16, TensorLayout::kRowMajor)};
    const InferHeader header{.id = "a", .model = "m", .outputs = {"x", "y"}};
    EXPECT_EQ(Flatten(EncodeInferResponse(header, lying)), Flatten(EncodeInferResponse(header, upright)));
    lying.taps.pop_back();
    inference::ModelInferResponse numbers;
    ASSERT_TRUE(numbers.ParseFromString(
        Flatten(EncodeInferResponse({.id = "a", .model = "m", .outputs = {"x"}, .typed = true}, lying))));
    for (int i = 0; i < numbers.outputs(0).contents().fp32_contents_size(); ++i) {
      EXPECT_EQ(numbers.outputs(0).contents().fp32_contents(i), i);
    }
  }
}

TEST(InferResponseTest, AnErrorInAStreamCarriesItsCodeAndItsRequest) {
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(response.ParseFromString(Flatten(EncodeInferError("r1", absl::NotFoundError("no such model")))));
  EXPECT_EQ(response.error_message(), "NOT_FOUND: no such model");
  EXPECT_EQ(response.infer_response().id(), "r1");
}

}  // namespace
}  // namespace distill
