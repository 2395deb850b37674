#include "coordinator/cli/units.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace distill::cli {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(UnitsTest, CountsHaveThreeDigits) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1.00k");
  EXPECT_EQ(FormatCount(77360), "77.4k");
  EXPECT_EQ(FormatCount(272474), "272k");
  EXPECT_EQ(FormatCount(999'499), "999k");
  EXPECT_EQ(FormatCount(999'999), "1.00M");  // not 1000k
  EXPECT_EQ(FormatCount(25'557'032), "25.6M");
  EXPECT_EQ(FormatCount(std::numeric_limits<uint64_t>::max()), "18447P");
}

TEST(UnitsTest, BytesAreBinary) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(1023), "1023 B");
  EXPECT_EQ(FormatBytes(1024), "1.00 KiB");
  EXPECT_EQ(FormatBytes(319488), "312 KiB");
  EXPECT_EQ(FormatBytes(1'122'304), "1.07 MiB");
  EXPECT_EQ(FormatBytes((1 << 20) - 1), "1.00 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{64} << 30), "64.0 GiB");
}

TEST(UnitsTest, DurationsGrowCoarser) {
  EXPECT_EQ(FormatDuration(0), "0.0s");
  EXPECT_EQ(FormatDuration(3.21), "3.2s");
  EXPECT_EQ(FormatDuration(9.96), "10s");
  EXPECT_EQ(FormatDuration(59.6), "1m00s");
  EXPECT_EQ(FormatDuration(192), "3m12s");
  EXPECT_EQ(FormatDuration(7500), "2h05m");
  EXPECT_EQ(FormatDuration(3 * 86400 + 4 * 3600), "3d04h");
  EXPECT_EQ(FormatDuration(-1), "-");
  EXPECT_EQ(FormatDuration(kNaN), "-");
  EXPECT_EQ(FormatDuration(kInfinity), "-");
  EXPECT_EQ(FormatDuration(1e300), "-");
}

TEST(UnitsTest, NotMeasuredIsADash) {
  EXPECT_EQ(FormatPercent(0.9152), "91.52%");
  EXPECT_EQ(FormatPercent(0), "0.00%");
  EXPECT_EQ(FormatPercent(-1), "-");
  EXPECT_EQ(FormatPercent(kNaN), "-");
  EXPECT_EQ(FormatRate(2431.4), "2431");
  EXPECT_EQ(FormatRate(87.32), "87.3");
  EXPECT_EQ(FormatRate(0), "-");
  EXPECT_EQ(FormatNumber(0.54321), "0.5432");
  EXPECT_EQ(FormatNumber(kNaN), "nan");
  EXPECT_EQ(FormatTime(0), "-");
  EXPECT_EQ(FormatTime(1'800'000'000.7, absl::UTCTimeZone()), "2027-01-15 08:00:00");
}

TEST(UnitsTest, DurationsAreParsedWithUnits) {
  using std::chrono::milliseconds;
  EXPECT_EQ(ParseDuration("20"), milliseconds(20000));
  EXPECT_EQ(ParseDuration("20s"), milliseconds(20000));
  EXPECT_EQ(ParseDuration("500ms"), milliseconds(500));
  EXPECT_EQ(ParseDuration("1.5m"), milliseconds(90000));
  EXPECT_EQ(ParseDuration("2h"), milliseconds(7200000));
  for (const char* bad : {"", "s", "-1s", "0", "inf", "nan", "1e99", "5 s", " 5", "5x", "8000h", "0.1ms"}) {
    EXPECT_FALSE(ParseDuration(bad).has_value()) << bad;
  }
}

}  // namespace
}  // namespace distill::cli
