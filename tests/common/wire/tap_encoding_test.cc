#include "common/wire/tap_encoding.h"

#include <gtest/gtest.h>

#include <vector>

#include "distill/v1/features.pb.h"

namespace distill {
namespace {

uint64_t Bytes(const std::vector<uint32_t>& shape, WireDtype dtype, bool less_row_max = false) {
  return LayoutOf(shape, {dtype, less_row_max}).bytes;
}

TEST(TapEncodingTest, BytesAreElementsTimesElementSize) {
  EXPECT_EQ(Bytes({2, 3, 5, 7}, WireDtype::kF32), 2 * 3 * 5 * 7 * 4);
  EXPECT_EQ(Bytes({2, 10}, WireDtype::kBf16), 40);
  EXPECT_EQ(Bytes({2, 3, 5, 7}, WireDtype::kF16, true), 2 * 3 * 5 * 7 * 2);  // the maxima do not travel
  EXPECT_EQ(Bytes({4, 0, 8, 8}, WireDtype::kF16), 0);
  EXPECT_EQ(LayoutOf(std::vector<uint32_t>{3, 5, 7}, {}).values, 3 * 5 * 7);
}

TEST(TapEncodingTest, AbsurdShapesDoNotWrapAround) {
  EXPECT_EQ(Bytes({1 << 16, 1 << 16, 2}, WireDtype::kU8), uint64_t{1} << 33);  // above 32 bits
  EXPECT_EQ(Bytes({1u << 31, 1u << 31, 4}, WireDtype::kF32), UINT64_MAX);
  EXPECT_EQ(Bytes({UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX}, WireDtype::kU8), UINT64_MAX);
  EXPECT_EQ(Bytes({1u << 31, 1u << 31}, WireDtype::kF32), UINT64_MAX);  // 2^64 exactly
  EXPECT_EQ(Bytes({1u << 31, 1u << 31, 4, 0}, WireDtype::kF32), 0);
}

TEST(TapEncodingTest, LayoutsAreThoseOfTheProtocol) {
  EXPECT_EQ(static_cast<int>(TensorLayout::kRowMajor), v1::TENSOR_LAYOUT_ROW_MAJOR);
  EXPECT_EQ(static_cast<int>(TensorLayout::kChannelsLast), v1::TENSOR_LAYOUT_CHANNELS_LAST);
}

}  // namespace
}  // namespace distill
