// Numbers as people read them. "-" stands for what is not known. Stateless; any thread.
#ifndef DISTILL_COORDINATOR_CLI_UNITS_H_
#define DISTILL_COORDINATOR_CLI_UNITS_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"

namespace distill::cli {

// Three significant digits with k, M, G: 999, 1.23k, 77.4k, 272k, 11.2M.
std::string FormatCount(uint64_t count);
// 512 B, 312 KiB, 1.07 MiB, 3.20 GiB.
std::string FormatBytes(uint64_t bytes);
// Seconds: 3.2s, 32s, 3m12s, 2h05m, 3d04h. "-" when negative or not finite.
std::string FormatDuration(double seconds);
// A share of one: 0.9152 gives 91.52%. "-" when negative or not finite, which is how "not measured" travels.
std::string FormatPercent(double share);
// A loss or a learning rate: four significant digits.
std::string FormatNumber(double value);
// Images per second: 2431, 87.3. "-" unless positive.
std::string FormatRate(double per_second);
// Seconds since 1970 as "2026-11-20 12:00:00". "-" when not positive.
std::string FormatTime(double seconds, absl::TimeZone zone = absl::LocalTimeZone());
// [C, H, W] as "16x28x28".
template <typename Shape>
std::string FormatShape(const Shape& shape) {
  std::string out;
  for (const auto extent : shape) {
    if (!out.empty()) out += 'x';
    out += std::to_string(extent);
  }
  return out;
}

// "30" (seconds), "500ms", "30s", "2m", "1h"; fractions allowed. Nothing when malformed, not positive or over a week.
std::optional<std::chrono::milliseconds> ParseDuration(std::string_view text);

}  // namespace distill::cli

#endif  // DISTILL_COORDINATOR_CLI_UNITS_H_
