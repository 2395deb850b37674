#include "common/status.h"

#include <gtest/gtest.h>
#include "absl/strings/cord.h"

namespace distill {
namespace {

TEST(StatusTest, AnnotateKeepsCodeAndPutsContextInFront) {
  const Status status = Annotate(absl::NotFoundError("no file 'a'"), "teacher 't0'");
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "teacher 't0': no file 'a'");
  EXPECT_TRUE(Annotate(OkStatus(), "teacher 't0'").ok());
  Status marked = absl::NotFoundError("no file 'a'");
  marked.SetPayload("mark", absl::Cord("value"));
  EXPECT_EQ(Annotate(marked, "teacher 't0'").GetPayload("mark"), absl::Cord("value"));
}

StatusOr<int> Half(int value) {
  if (value % 2 != 0) return absl::InvalidArgumentError("odd");
  return value / 2;
}
StatusOr<int> Quarter(int value) {
  DISTILL_ASSIGN_OR_RETURN(const int half, Half(value));
  DISTILL_ASSIGN_OR_RETURN(const int quarter, Half(half));
  return quarter;
}
Status Check(int value, bool* went_on) {
  DISTILL_RETURN_IF_ERROR(Quarter(value).status());
  *went_on = true;
  return OkStatus();
}

TEST(StatusTest, MacrosReturnTheFirstErrorAndGoOnWithoutOne) {
  bool went_on = false;
  EXPECT_EQ(Check(6, &went_on).code(), StatusCode::kInvalidArgument);
  EXPECT_FALSE(went_on);
  EXPECT_TRUE(Check(8, &went_on).ok());
  EXPECT_TRUE(went_on);
  EXPECT_EQ(*Quarter(8), 2);
}

}  // namespace
}  // namespace distill
