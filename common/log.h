// Structured logging: a message and named fields, one line each, as text for people or as JSON for machines.
//
// A thin face over spdlog, whose headers clash with torch's: only log.cc includes them.
//   LogInfo("teacher connected", {{"teacher", id}, {"model", name}});
// text:  2026-11-20T12:00:00.123Z I student-0 teacher connected teacher=t0 model=fashion
// json:  {"time":"2026-11-20T12:00:00.123Z","level":"info","service":"student-0","message":"teacher
// connected","teacher":"t0",...} Times are UTC. A record is always one line: control characters are escaped (\n), bytes
// that are not UTF-8 become \xNN in text and U+FFFD in JSON. Text values with spaces or quotes stand in quotes; numbers
// and bools are unquoted in JSON. A field named time, level, service or message gets a trailing '_' in JSON.
// Thread-safe. Lines go to standard error.
#ifndef DISTILL_COMMON_LOG_H_
#define DISTILL_COMMON_LOG_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "common/str_cat.h"

namespace distill {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  LogLevel level = LogLevel::kInfo;
  bool json = false;
  std::string service;  // shown in each line: the worker's id
};

// Parses "debug", "info", "warning", "error"; returns false for anything else.
bool ParseLogLevel(std::string_view text, LogLevel* level);

// May be called again (tests); before the first call the defaults above hold.
void InitLogging(const LogOptions& options);

// A name and a printed value.
struct LogField {
  template <typename T>
  LogField(std::string_view field_name, const T& field_value)
      : name(field_name), value(StrCat(field_value)), bare(std::is_arithmetic_v<T>) {}
  LogField(std::string_view field_name, bool field_value)
      : name(field_name), value(field_value ? "true" : "false"), bare(true) {}
  std::string_view name;  // a literal
  std::string value;
  bool bare;  // a number or bool: no quotes in JSON
};

// The line of one record, without the newline; what Log() writes. `unix_ms`: milliseconds since 1970.
std::string FormatLogRecord(const LogOptions& options, int64_t unix_ms, LogLevel level, std::string_view message,
                            std::initializer_list<LogField> fields);

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
inline void LogDebug(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kDebug, m, f); }
inline void LogInfo(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kInfo, m, f); }
inline void LogWarning(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kWarning, m, f); }
inline void LogError(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kError, m, f); }

}  // namespace distill

#endif  // DISTILL_COMMON_LOG_H_
