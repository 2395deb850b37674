#include "common/wire/dtype.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace distill
