#include "common/wire/dtype.h"

#include <gtest/gtest.h>

#include "common/wire/feature_batch.h"
#include "distill/v1/features.pb.h"

namespace distill {
namespace {

constexpr WireDtype kAll[] = {WireDtype::kF32, WireDtype::kF16, WireDtype::kBf16, WireDtype::kU8};

TEST(WireDtypeTest, NamesParseBack) {
  for (WireDtype dtype : kAll) {
    const StatusOr<WireDtype> parsed = ParseWireDtype(Name(dtype));
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, dtype);
  }
  for (const char* text : {"", "F32", "float32", "f322"}) {
    EXPECT_EQ(ParseWireDtype(text).status().code(), StatusCode::kInvalidArgument) << text;
  }
}

TEST(WireDtypeTest, ValuesAreThoseOfTheProtocol) {
  EXPECT_EQ(static_cast<int>(WireDtype::kF32), v1::WIRE_DTYPE_F32);
  EXPECT_EQ(static_cast<int>(WireDtype::kF16), v1::WIRE_DTYPE_F16);
  EXPECT_EQ(static_cast<int>(WireDtype::kBf16), v1::WIRE_DTYPE_BF16);
  EXPECT_EQ(static_cast<int>(WireDtype::kU8), v1::WIRE_DTYPE_U8);
}

TEST(WireDtypeTest, ByteSizeIsElementsTimesElementSize) {
  EXPECT_EQ(ByteSize({2, 3, 5, 7}, WireDtype::kF32), 2 * 3 * 5 * 7 * 4);
  EXPECT_EQ(ByteSize({2, 10}, WireDtype::kBf16), 40);
  EXPECT_EQ(ByteSize({4, 0, 8, 8}, WireDtype::kF16), 0);
  EXPECT_EQ(ByteSize({1 << 16, 1 << 16, 2}, WireDtype::kU8), uint64_t{1} << 33);  // above 32 bits
}

}  // namespace
}  // namespace distill
