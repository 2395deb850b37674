#include "common/log.h"

#include <spdlog/logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/utf8.h"

namespace distill {
namespace {

// C1 controls (U+0080..U+009F) steer terminals as ESC does, and U+2028/U+2029 break lines in some viewers.
bool IsHiddenControl(std::string_view sequence) {
  if (sequence.size() == 2) return sequence[0] == '\xC2' && static_cast<unsigned char>(sequence[1]) < 0xA0;
  return sequence == "\xE2\x80\xA8" || sequence == "\xE2\x80\xA9";
}

void AppendJsonString(std::string_view s, std::string* out) {
  out->push_back('"');
  while (!s.empty()) {
    const size_t length = Utf8Length(s);
    if (length == 0) {
      out->append("\xEF\xBF\xBD");  // U+FFFD
      s.remove_prefix(1);
      continue;
    }
    const char c = s[0];
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (length == 1 && (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)) {
      absl::StrAppendFormat(out, "\\u%04x", static_cast<unsigned>(c));
    } else {
      out->append(s.substr(0, length));
    }
    s.remove_prefix(length);
  }
  out->push_back('"');
}

void AppendText(std::string_view s, bool quoted, std::string* out) {
  while (!s.empty()) {
    const size_t length = Utf8Length(s);
    const char c = s[0];
    if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (quoted && (c == '"' || c == '\\')) {
      out->push_back('\\');
      out->push_back(c);
    } else if (length == 0 || (length == 1 && (static_cast<unsigned char>(c) < 0x20 || c == 0x7F))) {
      absl::StrAppendFormat(out, "\\x%02X", static_cast<unsigned>(static_cast<unsigned char>(c)));
    } else if (IsHiddenControl(s.substr(0, length))) {
      for (size_t i = 0; i < length; ++i)
        absl::StrAppendFormat(out, "\\x%02X", static_cast<unsigned>(static_cast<unsigned char>(s[i])));
    } else {
      out->append(s.substr(0, length));
    }
    s.remove_prefix(length == 0 ? 1 : length);
  }
}

void AppendTextValue(std::string_view value, std::string* out) {
  if (!value.empty() && value.find_first_of(" \"\\=") == std::string_view::npos) return AppendText(value, false, out);
  out->push_back('"');
  AppendText(value, true, out);
  out->push_back('"');
}

// JSON has no infinity and no NaN.
bool IsJsonBare(const LogField& field) {
  return field.bare && (field.value == "true" || field.value == "false" ||
                        field.value.find_first_not_of("+-.0123456789e") == std::string::npos);
}

std::string_view LevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kError:
      return "error";
  }
  return "info";
}

spdlog::level::level_enum SpdlogLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

// Never destroyed: threads may log while the process exits.
struct Logger {
  Logger() : spd("distill", std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    spd.set_formatter(std::make_unique<spdlog::pattern_formatter>("%v"));
    spd.set_level(spdlog::level::debug);
  }
  std::shared_ptr<const LogOptions> Options() {
    absl::MutexLock lock(&mutex);
    return options;
  }
  spdlog::logger spd;                            // thread-safe; the sink writes one line at a time
  std::atomic<LogLevel> level{LogLevel::kInfo};  // read without the mutex, so that disabled levels cost nothing
  absl::Mutex mutex;
  // Shared: a record being written keeps the options it began with.
  std::shared_ptr<const LogOptions> options ABSL_GUARDED_BY(mutex) = std::make_shared<const LogOptions>();
};
Logger& TheLogger() {
  static Logger* const logger = new Logger;
  return *logger;
}

}  // namespace

bool ParseLogLevel(std::string_view text, LogLevel* level) {
  for (LogLevel candidate : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (text == LevelName(candidate)) {
      *level = candidate;
      return true;
    }
  }
  return false;
}

void InitLogging(const LogOptions& options) {
  Logger& logger = TheLogger();
  absl::MutexLock lock(&logger.mutex);
  logger.options = std::make_shared<const LogOptions>(options);
  logger.level = options.level;
}

std::string FormatLogRecord(const LogOptions& options, int64_t unix_ms, LogLevel level, std::string_view message,
                            std::initializer_list<LogField> fields) {
  const std::string time = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromUnixMillis(unix_ms), absl::UTCTimeZone());
  std::string line;
  if (options.json) {
    StrAppend(&line, "{\"time\":\"", time, "\",\"level\":\"", LevelName(level), "\",\"service\":");
    AppendJsonString(options.service, &line);
    line.append(",\"message\":");
    AppendJsonString(message, &line);
    for (const LogField& field : fields) {
      line.push_back(',');
      const bool reserved =
          field.name == "time" || field.name == "level" || field.name == "service" || field.name == "message";
      AppendJsonString(reserved ? StrCat(field.name, "_") : std::string(field.name), &line);
      line.push_back(':');
      if (IsJsonBare(field)) {
        line.append(field.value);
      } else {
        AppendJsonString(field.value, &line);
      }
    }
    line.push_back('}');
    return line;
  }
  constexpr std::string_view kLetters = "DIWE";
  StrAppend(&line, time, " ", kLetters.substr(static_cast<size_t>(level), 1), " ");
  if (!options.service.empty()) {
    AppendText(options.service, false, &line);
    line.push_back(' ');
  }
  AppendText(message, false, &line);
  for (const LogField& field : fields) {
    line.push_back(' ');
    AppendText(field.name, false, &line);
    line.push_back('=');
    AppendTextValue(field.value, &line);
  }
  return line;
}

void Log(LogLevel level, std::string_view message, std::initializer_list<LogField> fields) {
  Logger& logger = TheLogger();
  if (level < logger.level.load(std::memory_order_relaxed)) return;
  const std::string line = FormatLogRecord(*logger.Options(), absl::ToUnixMillis(absl::Now()), level, message, fields);
  logger.spd.log(SpdlogLevel(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace distill
