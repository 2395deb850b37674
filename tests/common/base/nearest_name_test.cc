#include "common/nearest_name.h"

#include <gtest/gtest.h>

#include <vector>

namespace distill {
namespace {

const std::vector<std::string> kNames = {"cross_entropy", "kd", "l2", "cwd", "cifar_resnet20", "cifar_resnet56"};

TEST(NearestNameTest, FindsTheCandidateWithTheSmallestDistance) {
  EXPECT_EQ(NearestName("cros_entropy", kNames), "cross_entropy");
  EXPECT_EQ(NearestName("cifar_resnet50", kNames), "cifar_resnet20");  // both are one letter away: the first
  EXPECT_EQ(NearestName("cifar_resnt56", kNames), "cifar_resnet56");
  EXPECT_EQ(NearestName("cwd", kNames), "cwd");
}

TEST(NearestNameTest, TranspositionCountsOne) {
  const std::vector<std::string> names = {"abxx", "ba"};
  EXPECT_EQ(NearestName("ab", names), "ba");
  EXPECT_EQ(NearestName("corss_entropy", kNames), "cross_entropy");
}

TEST(NearestNameTest, NothingWithinHalfTheLengthGivesNothing) {
  EXPECT_EQ(NearestName("transformer", kNames), "");
  EXPECT_EQ(NearestName("x", std::vector<std::string>{"abcd"}), "");
  EXPECT_EQ(NearestName("abcdef", std::vector<std::string>{"abcxyz"}), "abcxyz");  // exactly half
  EXPECT_EQ(NearestName("abcdef", std::vector<std::string>{"abwxyz"}), "");
  EXPECT_EQ(NearestName("name", {}), "");
  EXPECT_EQ(NearestName(std::string(1 << 20, 'a'), kNames), "");
}

TEST(NearestNameTest, DidYouMeanIsAPhraseOrNothing) {
  EXPECT_EQ(DidYouMean("cwx", kNames), "; did you mean 'cwd'?");
  EXPECT_EQ(DidYouMean("something_else", kNames), "");
}

}  // namespace
}  // namespace distill
