#include "common/log.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>
#include <vector>

#include "absl/strings/str_split.h"

namespace distill {
namespace {

constexpr int64_t kTime = 1795176000123;  // 2026-11-20 12:00:00.123 UTC

std::string Text(std::string_view message, std::initializer_list<LogField> fields = {}) {
  return FormatLogRecord({.service = "student-0"}, kTime, LogLevel::kInfo, message, fields);
}
std::string Json(std::string_view message, std::initializer_list<LogField> fields = {}) {
  return FormatLogRecord({.json = true, .service = "student-0"}, kTime, LogLevel::kWarning, message, fields);
}
constexpr std::string_view kJsonStart =
    "{\"time\":\"2026-11-20T12:00:00.123Z\",\"level\":\"warning\",\"service\":\"student-0\",\"message\":";

TEST(LogTest, TextRecordReadsAsDocumented) {
  EXPECT_EQ(Text("teacher connected", {{"teacher", "t0"}, {"model", std::string("fashion")}}),
            "2026-11-20T12:00:00.123Z I student-0 teacher connected teacher=t0 model=fashion");
  EXPECT_EQ(FormatLogRecord({}, kTime, LogLevel::kError, "no service", {}), "2026-11-20T12:00:00.123Z E no service");
}

TEST(LogTest, TextValuesWithSpacesAreQuoted) {
  EXPECT_EQ(Text("m", {{"a", "two words"}, {"b", ""}, {"c", "say \"hi\""}, {"d", 7}, {"e", true}}),
            "2026-11-20T12:00:00.123Z I student-0 m a=\"two words\" b=\"\" c=\"say \\\"hi\\\"\" d=7 e=true");
}

TEST(LogTest, TextRecordStaysOneLineAndHarmless) {
  EXPECT_EQ(Text("a\nb\r\tc\x1B[31m\x7F",
                 {{"f", std::string("x\0y\n", 4)}, {"g", "\xFF\xC2\x9B"}, {"h", "gr\xC3\xBC\xC3\x9F"}}),
            "2026-11-20T12:00:00.123Z I student-0 a\\nb\\r\\tc\\x1B[31m\\x7F f=x\\x00y\\n g=\\xFF\\xC2\\x9B "
            "h=gr\xC3\xBC\xC3\x9F");
}

TEST(LogTest, JsonEscapesWhatJsonWants) {
  EXPECT_EQ(Json("a\"b\\c\nd\x01", {{"k\n", "v\t\r"}}),
            std::string(kJsonStart) + "\"a\\\"b\\\\c\\nd\\u0001\",\"k\\n\":\"v\\t\\r\"}");
}

TEST(LogTest, JsonNumbersAreBareUnlessJsonHasNoneSuch) {
  EXPECT_EQ(Json("m", {{"i", -3}, {"d", 0.5}, {"big", 1e30}, {"b", false}, {"s", "12"}}),
            std::string(kJsonStart) + "\"m\",\"i\":-3,\"d\":0.5,\"big\":1e+30,\"b\":false,\"s\":\"12\"}");
  EXPECT_EQ(
      Json("m", {{"n", std::numeric_limits<double>::quiet_NaN()}, {"i", -std::numeric_limits<double>::infinity()}}),
      std::string(kJsonStart) + "\"m\",\"n\":\"nan\",\"i\":\"-inf\"}");
}

TEST(LogTest, JsonReplacesInvalidUtf8) {
  // Stray tail, overlong '/', surrogate, above U+10FFFF, cut sequence; then valid ones of 2, 3 and 4 bytes.
  EXPECT_EQ(Json("\x80|\xC0\xAF|\xED\xA0\x80|\xF4\x90\x80\x80|\xE2\x82"),
            std::string(kJsonStart) +
                "\"\xEF\xBF\xBD|\xEF\xBF\xBD\xEF\xBF\xBD|\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD|"
                "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD|\xEF\xBF\xBD\xEF\xBF\xBD\"}");
  EXPECT_EQ(Json("\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80"),
            std::string(kJsonStart) + "\"\xC3\xBC\xE2\x82\xAC\xF0\x9F\x98\x80\"}");
}

TEST(LogTest, JsonFieldsNeverShadowTheRecordsOwn) {
  EXPECT_EQ(Json("m", {{"message", "x"}, {"time", "y"}}),
            std::string(kJsonStart) + "\"m\",\"message_\":\"x\",\"time_\":\"y\"}");
}

TEST(LogTest, LevelsParse) {
  LogLevel level = LogLevel::kError;
  EXPECT_TRUE(ParseLogLevel("debug", &level));
  EXPECT_EQ(level, LogLevel::kDebug);
  EXPECT_TRUE(ParseLogLevel("warning", &level));
  EXPECT_EQ(level, LogLevel::kWarning);
  EXPECT_FALSE(ParseLogLevel("loud", &level));
  EXPECT_EQ(level, LogLevel::kWarning);
}

TEST(LogTest, LinesOfManyThreadsDoNotMixAndLowLevelsAreDropped) {
  testing::internal::CaptureStderr();
  InitLogging({.level = LogLevel::kInfo, .service = "svc"});
  constexpr int kThreads = 4, kLines = 200;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < kLines; ++i) {
        LogInfo("line", {{"thread", t}, {"i", i}, {"fill", std::string(100, 'a' + t)}});
        LogDebug("must not appear");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  InitLogging({});
  const std::string output = testing::internal::GetCapturedStderr();
  std::vector<int> next(kThreads, 0);
  const std::vector<std::string> lines = absl::StrSplit(output, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), kThreads * kLines);
  for (const std::string& line : lines) {
    int thread = -1, index = -1;
    char fill[128] = {};
    ASSERT_EQ(std::sscanf(line.c_str(), "%*s I svc line thread=%d i=%d fill=%127s", &thread, &index, fill), 3) << line;
    ASSERT_EQ(fill, std::string(100, 'a' + thread));
    EXPECT_EQ(index, next[thread]++);
  }
}

}  // namespace
}  // namespace distill
