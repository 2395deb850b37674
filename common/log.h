// Structured logging: a message and named fields, one line each, as text for people or as JSON for machines.
//
// A thin face over spdlog, whose headers clash with torch's: only log.cc includes them.
//   LogInfo("teacher connected", {{"teacher", id}, {"model", name}});
// text:  2026-11-20 12:00:00.123 I student-0 teacher connected teacher=t0 model=fashion
// json:  {"time":"...","level":"info","service":"student-0","message":"teacher connected","teacher":"t0",...}
// Thread-safe. Lines go to standard error.
#ifndef DISTILL_COMMON_LOG_H_
#define DISTILL_COMMON_LOG_H_

#include <concepts>
#include <initializer_list>
#include <string>
#include <string_view>

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
  LogField(std::string_view field_name, const T& field_value) : name(field_name), value(StrCat(field_value)) {}
  LogField(std::string_view field_name, bool field_value) : name(field_name), value(field_value ? "true" : "false") {}
  std::string_view name;  // a literal
  std::string value;
};

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields = {});
inline void LogDebug(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kDebug, m, f); }
inline void LogInfo(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kInfo, m, f); }
inline void LogWarning(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kWarning, m, f); }
inline void LogError(std::string_view m, std::initializer_list<LogField> f = {}) { Log(LogLevel::kError, m, f); }

}  // namespace distill

#endif  // DISTILL_COMMON_LOG_H_
