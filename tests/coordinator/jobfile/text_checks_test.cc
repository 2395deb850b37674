#include "coordinator/jobfile/text_checks.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(TextChecksTest, Names) {
  for (const char* good : {"a", "a-b", "0", "fashion-sskd-2"}) EXPECT_TRUE(IsJobName(good)) << good;
  for (const char* bad : {"", "-a", "a-", "A", "a_b", "a.b", "a/b", "a b"}) EXPECT_FALSE(IsJobName(bad)) << bad;
  EXPECT_TRUE(IsJobName(std::string(63, 'a')));
  EXPECT_FALSE(IsJobName(std::string(64, 'a')));
  for (const char* good : {"A.b-c_1", "l2-layer1.0"}) EXPECT_TRUE(IsPlainName(good)) << good;
  for (const char* bad : {"", ".", "a/b", "_a", "a\n"}) EXPECT_FALSE(IsPlainName(bad)) << bad;
}

TEST(TextChecksTest, PathsMayNotClimb) {
  for (const char* good : {"a", "a/b", "/data/x", "a..b", ".hidden"}) EXPECT_EQ(PathProblem(good), "") << good;
  for (const char* bad : {"", "..", "../a", "a/..", "a/../b", "a\nb"}) EXPECT_NE(PathProblem(bad), "") << bad;
  EXPECT_NE(PathProblem(std::string(1025, 'a')), "");
}

TEST(TextChecksTest, ByteSizes) {
  uint64_t bytes = 0;
  EXPECT_TRUE(ParseByteSize("64MiB", &bytes));
  EXPECT_EQ(bytes, 64u << 20);
  EXPECT_TRUE(ParseByteSize("7 KiB", &bytes));
  EXPECT_EQ(bytes, 7u << 10);
  EXPECT_TRUE(ParseByteSize("12", &bytes));
  EXPECT_EQ(bytes, 12u);
  for (const char* bad : {"", "MiB", "-1", "1.5MiB", "64MB", "99999999999GiB", "1e6"}) {
    EXPECT_FALSE(ParseByteSize(bad, &bytes)) << bad;
  }
}

TEST(TextChecksTest, CutTextKeepsWholeCharacters) {
  EXPECT_EQ(CutText("abc", 3), "abc");
  EXPECT_EQ(CutText("abc", 2), "ab");
  EXPECT_EQ(CutText("a\xe2\x82\xac", 3), "a");
  EXPECT_EQ(CutText("a\xe2\x82\xac", 4), "a\xe2\x82\xac");
  EXPECT_EQ(CutText("\xe2\x82\xac", 1), "");
}

TEST(TextChecksTest, ShortenCutsBetweenCharacters) {
  EXPECT_EQ(Shorten("abc"), "abc");
  EXPECT_EQ(Shorten("a\nb"), "a?b");
  const std::string euros = [] {
    std::string s = "a";  // so that the cut at 60 falls inside a character
    for (int i = 0; i < 40; ++i) s += "\xe2\x82\xac";
    return s;
  }();
  const std::string cut = Shorten(euros);
  EXPECT_EQ(FirstInvalidByte(cut), std::string_view::npos) << cut;
  EXPECT_LE(cut.size(), 63u);
}

}  // namespace
}  // namespace distill
