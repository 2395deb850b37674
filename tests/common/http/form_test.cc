#include "common/http/form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

TEST(FormTest, EscapesAreDecodedAndOthersStay) {
  EXPECT_EQ(PercentDecode("a%2Fb%2f%00", false), std::string("a/b/\0", 5));
  EXPECT_EQ(PercentDecode("%", false), "%");
  EXPECT_EQ(PercentDecode("%4", false), "%4");
  EXPECT_EQ(PercentDecode("%zz%4", false), "%zz%4");
  EXPECT_EQ(PercentDecode("x+y", false), "x+y");
  EXPECT_EQ(PercentDecode("x+y%2B", true), "x y+");
}

TEST(FormTest, FieldsByName) {
  EXPECT_THAT(ParseForm("a=1&token=x%2By+z%25&b"), ElementsAre(Pair("a", "1"), Pair("b", ""), Pair("token", "x+y z%")));
  EXPECT_THAT(ParseForm("%61+b=c=d&a=1&a=2"), ElementsAre(Pair("a", "2"), Pair("a b", "c=d")));
  EXPECT_THAT(ParseForm("&&=&"), ElementsAre(Pair("", "")));
  EXPECT_THAT(ParseForm(""), IsEmpty());
}

}  // namespace
}  // namespace distill
