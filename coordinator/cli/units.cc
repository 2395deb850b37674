#include "coordinator/cli/units.h"

#include <array>
#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/str_cat.h"

namespace distill::cli {
namespace {

// Three significant digits of 1 <= value < 1000 (values that would round to 1000 are the caller's affair).
std::string ThreeDigits(double value) {
  if (value < 9.995) return absl::StrFormat("%.2f", value);
  if (value < 99.95) return absl::StrFormat("%.1f", value);
  return absl::StrFormat("%.0f", value);
}

}  // namespace

std::string FormatCount(uint64_t count) {
  if (count < 1000) return StrCat(count);
  static constexpr std::array<const char*, 5> kSuffixes = {"k", "M", "G", "T", "P"};
  double value = static_cast<double>(count) / 1000;
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kSuffixes.size()) {
    value /= 1000;
    ++unit;
  }
  return StrCat(ThreeDigits(value), kSuffixes[unit]);
}

std::string FormatBytes(uint64_t bytes) {
  if (bytes < 1024) return StrCat(bytes, " B");
  static constexpr std::array<const char*, 5> kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes) / 1024;
  size_t unit = 0;
  while (value >= 1023.5 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return StrCat(ThreeDigits(value), " ", kUnits[unit]);
}

std::string FormatDuration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 9.95) return absl::StrFormat("%.1fs", seconds);
  if (seconds > 1e9) return "-";  // 30 years: not a duration anybody meant
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return StrCat(whole, "s");
  if (whole < 3600) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  if (whole < 86400) return absl::StrFormat("%dh%02dm", whole / 3600, whole % 3600 / 60);
  return absl::StrFormat("%dd%02dh", whole / 86400, whole % 86400 / 3600);
}

std::string FormatPercent(double share) {
  if (!std::isfinite(share) || share < 0) return "-";
  return absl::StrFormat("%.2f%%", share * 100);
}

std::string FormatNumber(double value) { return absl::StrFormat("%.4g", value); }

std::string FormatRate(double per_second) {
  if (!std::isfinite(per_second) || per_second <= 0) return "-";
  return per_second < 99.95 ? absl::StrFormat("%.1f", per_second) : absl::StrFormat("%.0f", per_second);
}

std::string FormatTime(double seconds, absl::TimeZone zone) {
  if (!std::isfinite(seconds) || seconds <= 0 || seconds > 1e11) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S", absl::FromUnixSeconds(static_cast<int64_t>(seconds)), zone);
}

std::optional<std::chrono::milliseconds> ParseDuration(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 4> kUnits = {
      {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}}};
  double unit_ms = 1e3;
  for (const auto& [suffix, ms] : kUnits) {  // "ms" first: it ends in "s" too
    if (!text.ends_with(suffix)) continue;
    text.remove_suffix(suffix.size());
    unit_ms = ms;
    break;
  }
  double value = 0;
  // SimpleAtod takes "inf", exponents and blanks around the number too.
  if (text.find_first_not_of("0123456789.") != std::string_view::npos) return std::nullopt;
  if (!absl::SimpleAtod(ToAbsl(text), &value)) return std::nullopt;
  const double ms = value * unit_ms;
  if (!(ms >= 1) || ms > 7 * 86400e3) return std::nullopt;
  return std::chrono::milliseconds(std::llround(ms));
}

}  // namespace distill::cli
