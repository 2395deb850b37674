#include "common/kernels/channel_kl.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "common/kernels/channel_kl_reference.h"
#include "tests/common/kernels/threads.h"

namespace distill {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// A map of any element type, kept with its values as they are after rounding to it.
struct Map {
  Map(const std::vector<float>& values, ElementType element_type)
      : type(element_type), bytes(values.size() * SizeOf(element_type)) {
    DispatchElement(type, [&](auto* tag) {
      auto* out = reinterpret_cast<decltype(tag)>(bytes.data());
      for (size_t i = 0; i < values.size(); ++i) FromFloat(values[i], out + i);
    });
  }
  ElementType type;
  std::vector<char> bytes;
};

std::vector<float> Values(const std::vector<char>& bytes, ElementType type) {
  std::vector<float> values(bytes.size() / SizeOf(type));
  DispatchElement(type, [&](auto* tag) {
    const auto* in = reinterpret_cast<const std::remove_pointer_t<decltype(tag)>*>(bytes.data());
    for (size_t i = 0; i < values.size(); ++i) values[i] = ToFloat(in[i]);
  });
  return values;
}

// [N, C, H*W] to [N, H*W, C].
std::vector<float> ChannelsLast(const std::vector<float>& x, int64_t n, int64_t c, int64_t hw) {
  std::vector<float> y(x.size());
  for (int64_t b = 0; b < n; ++b) {
    for (int64_t k = 0; k < c; ++k) {
      for (int64_t i = 0; i < hw; ++i) y[(b * hw + i) * c + k] = x[(b * c + k) * hw + i];
    }
  }
  return y;
}

struct Outcome {
  ChannelKlResult result;
  std::vector<float> gradient;
  std::vector<double> rows;
};

// A test case and the two ways to compute it. The gradient's buffer has a guard behind it.
struct Case {
  int64_t n = 1, c = 1, hw = 1;
  std::vector<float> student, teacher;  // [N, C, H*W]
  std::vector<uint8_t> mask;
  ChannelKlOptions options;
  MapLayout layout = MapLayout::kChannelsFirst;
  ElementType student_type = ElementType::kFloat32, teacher_type = ElementType::kFloat32,
              gradient_type = ElementType::kFloat32;

  // The authors' scale: T^2 and the mean over rows.
  ChannelKlOptions Scaled() const {
    ChannelKlOptions scaled = options;
    scaled.weight *= options.temperature * options.temperature / static_cast<double>(std::max<int64_t>(1, n * c));
    return scaled;
  }
  std::vector<float> Laid(const std::vector<float>& x) const {
    return layout == MapLayout::kChannelsFirst ? x : ChannelsLast(x, n, c, hw);
  }
  ChannelKlMaps Maps(const Map& s, const Map& t) const {
    return {n, c, hw, layout, s.bytes.data(), s.type, t.bytes.data(), t.type, mask.empty() ? nullptr : mask.data()};
  }
  Outcome Run(SimdLevel level, const ParallelFor& parallel_for = SerialFor) const {
    const Map s(Laid(student), student_type), t(Laid(teacher), teacher_type);
    Outcome out;
    const size_t bytes = student.size() * SizeOf(gradient_type);
    std::vector<char> gradient(bytes + 64, 'g');
    out.rows.assign(n * c, -1);
    StatusOr<ChannelKlResult> result =
        ChannelKl(Maps(s, t), Scaled(), {gradient.data(), gradient_type, out.rows.data()}, parallel_for, level);
    EXPECT_TRUE(result.ok()) << result.status();
    for (size_t i = bytes; i < gradient.size(); ++i)
      EXPECT_EQ(gradient[i], 'g') << "written " << i - bytes << " bytes past the end";
    gradient.resize(bytes);
    out.gradient = Values(gradient, gradient_type);
    out.result = *result;
    return out;
  }
  template <typename Real = double>
  ChannelKlReferenceResult Reference() const {
    const Map s(Laid(student), student_type), t(Laid(teacher), teacher_type);
    return *ChannelKlReference<Real>(Maps(s, t), Scaled());
  }
};

using Generator = std::mt19937_64;

// Skewed, as feature maps are: mostly near zero, a few large values, one channel in five dead, each channel at its own
// level.
std::vector<float> SkewedMap(int64_t rows, int64_t hw, Generator& random) {
  std::normal_distribution<float> normal;
  std::vector<float> x(rows * hw);
  for (int64_t r = 0; r < rows; ++r) {
    const float level = 3 * normal(random);
    const bool dead = r % 5 == 4;
    for (int64_t i = 0; i < hw; ++i) {
      const float v = normal(random);
      x[r * hw + i] = level + (dead ? 0 : v > 1 ? 4 * v * v : 0.3f * v);
    }
  }
  return x;
}
std::vector<float> NormalMap(int64_t count, float std, Generator& random) {
  std::normal_distribution<float> normal(0, std);
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

double GradientError(const std::vector<float>& got, const std::vector<double>& want) {  // relative, in L2
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

// Elementwise, worst element reported: |got - want| <= relative * |want| + absolute.
void ExpectGradient(const std::vector<float>& got, const std::vector<double>& want, double relative, double absolute,
                    const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  size_t worst = 0;
  double worst_excess = -1;
  for (size_t i = 0; i < want.size(); ++i) {
    const double excess = std::fabs(got[i] - want[i]) - relative * std::fabs(want[i]) - absolute;
    if (!(excess <= worst_excess)) {
      worst = i;
      worst_excess = excess;
    }
  }
  if (!want.empty()) {
    EXPECT_LE(worst_excess, 0) << what << ": worst at " << worst << ": got " << got[worst] << ", want " << want[worst];
  }
}

std::string Describe(const Case& k, SimdLevel level) {
  return std::string(Name(level)) + (k.layout == MapLayout::kChannelsFirst ? " NCHW" : " NHWC") + " N" +
         std::to_string(k.n) + " C" + std::to_string(k.c) + " HW" + std::to_string(k.hw) + " T" +
         std::to_string(k.options.temperature) + " student " + Name(k.student_type) + " teacher " +
         Name(k.teacher_type);
}

// Every promise is kept by every instruction set in both layouts.
class ChannelKlTest : public testing::TestWithParam<std::tuple<SimdLevel, MapLayout>> {
 protected:
  SimdLevel level() const { return std::get<0>(GetParam()); }
  Case NewCase(int64_t n, int64_t c, int64_t hw) const {
    Case k;
    k.n = n;
    k.c = c;
    k.hw = hw;
    k.layout = std::get<1>(GetParam());
    return k;
  }
  void ExpectMatchesReference(const Case& k, double loss_tolerance = 2e-6, double gradient_tolerance = 3e-6) const {
    const Outcome got = k.Run(level());
    const ChannelKlReferenceResult want = k.Reference<long double>();
    const std::string what = Describe(k, level());
    EXPECT_NEAR(got.result.loss, want.result.loss, loss_tolerance * std::fabs(want.result.loss) + 1e-12) << what;
    EXPECT_LE(GradientError(got.gradient, want.gradient), gradient_tolerance) << what;
    EXPECT_EQ(got.result.nonfinite_rows, 0) << what;
    for (size_t r = 0; r < got.rows.size(); ++r) {
      EXPECT_NEAR(got.rows[r], want.row_divergence[r], 2 * loss_tolerance * want.row_divergence[r] + 1e-9)
          << what << " row " << r;
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Levels, ChannelKlTest,
                         testing::Combine(testing::ValuesIn(AvailableSimdLevels()),
                                          testing::Values(MapLayout::kChannelsFirst, MapLayout::kChannelsLast)),
                         [](const auto& info) {
                           return std::string(Name(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == MapLayout::kChannelsFirst ? "ChannelsFirst"
                                                                                        : "ChannelsLast");
                         });

// --- Worked examples (2x2 positions)

struct Golden {
  double temperature, loss;
  std::vector<double> gradient;
};

TEST_P(ChannelKlTest, WorkedExampleOneChannel) {
  Case k = NewCase(1, 1, 4);
  k.teacher = {0, 1, 2, 3};
  k.student = {3, 2, 1, 0};
  for (const Golden& golden : {Golden{1, 1.9853054692, {0.6118556566, 0.1497384993, -0.1497384993, -0.6118556566}},
                               Golden{4, 2.4567613063, {0.7385433284, 0.2411313213, -0.2411313213, -0.7385433284}}}) {
    k.options.temperature = golden.temperature;
    const Outcome got = k.Run(level());
    EXPECT_NEAR(got.result.loss, golden.loss, 1e-6);
    ExpectGradient(got.gradient, golden.gradient, 5e-7, 0, "T " + std::to_string(golden.temperature));
    const ChannelKlReferenceResult reference = k.Reference();
    EXPECT_NEAR(reference.result.loss, golden.loss, 1e-10);
    for (int i = 0; i < 4; ++i) EXPECT_NEAR(reference.gradient[i], golden.gradient[i], 1e-10);
  }
}

TEST_P(ChannelKlTest, WorkedExampleTwoChannels) {
  Case k = NewCase(1, 2, 4);
  k.teacher = {1, 0, 0, 0, 0, 0, 2, 0};
  k.student = {0, 1, 0, 0, 0, 0, 1, 0};
  for (const Golden& golden :
       {Golden{1,
               0.2073196014,
               {-0.1502445909, 0.1502445909, 0, 0, 0.0393112846, 0.0393112846, -0.1179338539, 0.0393112846}},
        Golden{4,
               0.1883271300,
               {-0.1325974471, 0.1325974471, 0, 0, 0.0366248012, 0.0366248012, -0.1098744035, 0.0366248012}}}) {
    k.options.temperature = golden.temperature;
    const Outcome got = k.Run(level());
    EXPECT_NEAR(got.result.loss, golden.loss, 2e-7);
    const std::vector<float> want = k.Laid({golden.gradient.begin(), golden.gradient.end()});
    ExpectGradient(got.gradient, {want.begin(), want.end()}, 5e-7, 1e-8, "T " + std::to_string(golden.temperature));
  }
}

// --- Against the reference

TEST_P(ChannelKlTest, MatchesReferenceOnManyShapes) {
  Generator random(1);
  struct Shape {
    int64_t n, c, hw;
  };
  // Around the vector widths (4, 8, 16), the blocks (2048 per row; 256 positions and 65536 / C channels last), primes,
  // and large.
  for (const Shape& s : {Shape{1, 1, 1},
                         {2, 3, 1},
                         {1, 1, 2},
                         {3, 17, 3},
                         {2, 16, 15},
                         {2, 33, 33},
                         {1, 5, 49},
                         {4, 19, 97},
                         {1, 8, 256},
                         {1, 31, 257},
                         {2, 19, 2047},
                         {1, 2, 2048},
                         {1, 3, 2049},
                         {1, 20, 4225},
                         {1, 4, 10007},
                         {1, 520, 700},
                         {33, 7, 64}}) {
    for (double temperature : {1.0, 4.0}) {
      Case k = NewCase(s.n, s.c, s.hw);
      k.options.temperature = temperature;
      k.teacher = SkewedMap(s.n * s.c, s.hw, random);
      k.student = SkewedMap(s.n * s.c, s.hw, random);
      // In a row of two or three positions the differences of the maps' values are rounded by more than their spread
      // deserves.
      ExpectMatchesReference(k, s.hw < 10 ? 1e-5 : 2e-6);
    }
  }
}

TEST_P(ChannelKlTest, LongRowMatchesReference) {
  Generator random(2);
  Case k = NewCase(1, 17, 20011);
  k.teacher = NormalMap(k.c * k.hw, 3, random);
  k.student = NormalMap(k.c * k.hw, 3, random);
  ExpectMatchesReference(k, 5e-7, 1e-6);
}

TEST_P(ChannelKlTest, EmptyShapesGiveZero) {
  for (const auto& [n, c, hw] : {std::tuple{0, 3, 4}, {3, 0, 4}, {3, 4, 0}, {0, 0, 0}}) {
    const Outcome got = NewCase(n, c, hw).Run(level());
    EXPECT_EQ(got.result.loss, 0);
    EXPECT_THAT(got.rows, testing::Each(0.0));
  }
}

TEST_P(ChannelKlTest, RoundedInputsAreComputedInFullPrecision) {  // T15
  Generator random(3);
  constexpr ElementType kTypes[] = {ElementType::kFloat32, ElementType::kBfloat16, ElementType::kFloat16};
  for (ElementType student_type : kTypes) {
    for (ElementType teacher_type : kTypes) {
      Case k = NewCase(2, 21, 1031);
      k.teacher = SkewedMap(k.n * k.c, k.hw, random);
      k.student = SkewedMap(k.n * k.c, k.hw, random);
      k.student_type = student_type;
      k.teacher_type = teacher_type;
      ExpectMatchesReference(k);
    }
  }
}

TEST_P(ChannelKlTest, GradientIsRoundedOnceToTheStudentsType) {
  Generator random(4);
  for (ElementType type : {ElementType::kBfloat16, ElementType::kFloat16}) {
    Case k = NewCase(1, 18, 333);
    k.teacher = NormalMap(k.c * k.hw, 2, random);
    k.student = NormalMap(k.c * k.hw, 2, random);
    k.options.weight = 1000;  // keeps float16 out of its subnormal range
    k.student_type = type;
    const std::vector<double> want = k.Reference().gradient;
    k.gradient_type = type;
    const double half_step = type == ElementType::kBfloat16 ? 0x1p-8 : 0x1p-11;
    ExpectGradient(k.Run(level()).gradient, want, half_step * 1.001 + 2e-6, 1e-7, Describe(k, level()));
  }
}

TEST_P(ChannelKlTest, NearlyEqualMapsKeepTheirAccuracy) {
  // A plain difference of log-softmaxes in float32 is wrong by 0.5 % at 1e-2, 15 % at 1e-3 and 160-fold at 1e-4.
  Generator random(5);
  for (int64_t hw : {1000, 5000}) {
    for (float noise : {1e-1f, 1e-2f, 1e-3f, 1e-4f, 1e-5f}) {
      Case k = NewCase(1, 17, hw);
      k.teacher = NormalMap(k.c * hw, 3, random);
      k.student = NormalMap(k.c * hw, noise, random);
      for (size_t i = 0; i < k.student.size(); ++i) k.student[i] += k.teacher[i];
      ExpectMatchesReference(k, 1e-6, 1e-6);
    }
  }
}

TEST_P(ChannelKlTest, TemperaturesFromTinyToHuge) {
  Generator random(6);
  for (double temperature : {0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 1e5}) {
    Case k = NewCase(1, 17, 3000);
    k.options.temperature = temperature;
    k.teacher = NormalMap(k.c * k.hw, 3, random);
    k.student = NormalMap(k.c * k.hw, 3, random);
    ExpectMatchesReference(k, 2e-6, 5e-6);
  }
}

TEST_P(ChannelKlTest, RowsWithHugeDifferencesUseTheMaxRelativeForm) {
  Generator random(7);
  // The student is certain where the teacher sees nothing, and the other way round; one channel in three is ordinary.
  Case k = NewCase(2, 18, 2500);
  k.options.temperature = 1;
  k.teacher = NormalMap(k.n * k.c * k.hw, 1, random);
  k.student = NormalMap(k.n * k.c * k.hw, 1, random);
  for (int64_t r = 0; r < k.n * k.c; ++r) {
    if (r % 3 == 1) k.student[r * k.hw + 2100] = 300;
    if (r % 3 == 2) k.teacher[r * k.hw + 3] = 500;
  }
  ExpectMatchesReference(k);
  // Differences that overflow float32.
  k.student[5] = 3e38f;
  k.teacher[5] = -3e38f;
  ExpectMatchesReference(k);
}

TEST_P(ChannelKlTest, FirstPositionsMayBeUnlikeTheRest) {
  // A background at another level first: the shift of the first block is useless for the rest.
  Generator random(8);
  Case k = NewCase(1, 16, 6000);
  k.teacher = NormalMap(k.c * k.hw, 2, random);
  k.student = k.teacher;
  for (int64_t r = 0; r < k.c; ++r) {
    for (int64_t i = 0; i < k.hw; ++i) {
      float& s = k.student[r * k.hw + i];
      float& t = k.teacher[r * k.hw + i];
      if (i < 2500) {
        t -= 80;
        s = t + 20;
      } else {
        s += 1e-2f * std::sin(0.1f * i);
      }
    }
  }
  ExpectMatchesReference(k, 2e-6, 2e-6);
}

// --- Properties

TEST_P(ChannelKlTest, EqualMapsGiveExactlyZero) {  // T1
  Generator random(9);
  for (int64_t hw : {1, 7, 100, 5000}) {
    Case k = NewCase(2, 19, hw);
    k.teacher = SkewedMap(k.n * k.c, hw, random);
    k.student = k.teacher;
    const Outcome got = k.Run(level());
    EXPECT_EQ(got.result.loss, 0);
    EXPECT_THAT(got.gradient, testing::Each(0.0f)) << hw;
  }
}

TEST_P(ChannelKlTest, ConstantsPerRowChangeNothing) {  // T2
  Generator random(10);
  Case k = NewCase(1, 20, 3001);
  // Multiples of 1/64, so that adding the constants is exact.
  std::uniform_int_distribution<int> steps(-512, 512);
  for (int64_t i = 0; i < k.c * k.hw; ++i) {
    k.teacher.push_back(steps(random) / 64.0f);
    k.student.push_back(steps(random) / 64.0f);
  }
  const Outcome plain = k.Run(level());
  Case shifted = k;
  for (int64_t i = 0; i < k.c * k.hw; ++i) {
    shifted.student[i] += 65536.0f;
    shifted.teacher[i] -= 1024.0f * static_cast<float>(i / k.hw);
  }
  const Outcome other = shifted.Run(level());
  EXPECT_NEAR(other.result.loss, plain.result.loss, 1e-6 * plain.result.loss);
  EXPECT_LE(GradientError(other.gradient, {plain.gradient.begin(), plain.gradient.end()}), 1e-6);
  for (int64_t r = 0; r < k.c; ++r) {
    double sum = 0, size = 0;
    for (int64_t i = 0; i < k.hw; ++i) {
      const float g = plain.gradient[k.layout == MapLayout::kChannelsFirst ? r * k.hw + i : i * k.c + r];
      sum += g;
      size += std::fabs(g);
    }
    EXPECT_LE(std::fabs(sum), 1e-6 * size) << "row " << r;
  }
}

TEST_P(ChannelKlTest, ResultDoesNotDependOnThreads) {  // T4: any split gives the bits of one thread
  Generator random(11);
  Case k = NewCase(5, 37, 9001);
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  const Outcome one = k.Run(level());
  for (int threads : {2, 3, 7}) {
    const Outcome many = k.Run(level(), Threads(threads));
    EXPECT_EQ(many.result.loss, one.result.loss) << threads;
    EXPECT_TRUE(many.gradient == one.gradient) << threads;
  }
}

TEST_P(ChannelKlTest, GradientEqualsCentralDifferences) {  // T5
  Generator random(12);
  Case k = NewCase(2, 17, 6);
  k.teacher = NormalMap(k.n * k.c * k.hw, 2, random);
  k.student = NormalMap(k.n * k.c * k.hw, 2, random);
  k.options.weight = 3;
  const Outcome got = k.Run(level());
  const double bound = k.options.weight * k.options.temperature / (k.n * k.c);
  const std::vector<float> by_row = [&] {
    if (k.layout == MapLayout::kChannelsFirst) return got.gradient;
    return ChannelsLast(got.gradient, k.n, k.hw, k.c);  // its own inverse with the axes exchanged
  }();
  for (size_t i = 0; i < k.student.size(); ++i) {
    const float step = 0x1p-7f;
    Case up = k, down = k;
    up.student[i] += step;
    down.student[i] -= step;
    const double distance = static_cast<double>(up.student[i]) - down.student[i];
    const double slope = (up.Run(level()).result.loss - down.Run(level()).result.loss) / distance;
    EXPECT_NEAR(by_row[i], slope, 2e-5) << i;
    EXPECT_LE(std::fabs(by_row[i]), bound);
  }
}

TEST_P(ChannelKlTest, ScalingMapsAndTemperatureScalesTheLoss) {  // T8
  Generator random(13);
  Case k = NewCase(1, 17, 500);
  k.options.temperature = 2;
  k.teacher = NormalMap(k.c * k.hw, 2, random);
  k.student = NormalMap(k.c * k.hw, 2, random);
  Case scaled = k;
  scaled.options.temperature *= 8;
  for (float& x : scaled.student) x *= 8;
  for (float& x : scaled.teacher) x *= 8;
  const double loss = k.Run(level()).result.loss;
  EXPECT_NEAR(scaled.Run(level()).result.loss, 64 * loss, 64e-7 * loss);
}

TEST_P(ChannelKlTest, LimitsOfTheTemperature) {  // T9
  Generator random(14);
  Case k = NewCase(1, 16, 800);
  k.teacher = NormalMap(k.c * k.hw, 1, random);
  k.student = NormalMap(k.c * k.hw, 1, random);
  double centred = 0, one_hot = 0;
  for (int64_t r = 0; r < k.c; ++r) {
    const float* s = k.student.data() + r * k.hw;
    const float* t = k.teacher.data() + r * k.hw;
    double mean = 0;
    for (int64_t i = 0; i < k.hw; ++i) mean += (static_cast<double>(s[i]) - t[i]) / k.hw;
    for (int64_t i = 0; i < k.hw; ++i) centred += std::pow(static_cast<double>(s[i]) - t[i] - mean, 2) / (k.c * k.hw);
    one_hot += (*std::max_element(s, s + k.hw) - s[std::max_element(t, t + k.hw) - t]) / k.c;
  }
  k.options.temperature = 1e4;
  EXPECT_NEAR(k.Run(level()).result.loss, 0.5 * centred, 2e-4 * centred);
  k.options.temperature = 1e-3;
  EXPECT_NEAR(k.Run(level()).result.loss, 1e-3 * one_hot, 1e-5 * one_hot);
}

TEST_P(ChannelKlTest, DivergenceLiesWithinHoeffdingsBound) {  // T10
  Generator random(15);
  for (double temperature : {0.05, 1.0, 4.0, 300.0}) {
    Case k = NewCase(1, 20, 1500);
    k.options.temperature = temperature;
    k.teacher = SkewedMap(k.c, k.hw, random);
    k.student = SkewedMap(k.c, k.hw, random);
    const Outcome got = k.Run(level());
    for (int64_t r = 0; r < k.c; ++r) {
      float low = kInf, high = -kInf;
      for (int64_t i = 0; i < k.hw; ++i) {
        const float d = k.teacher[r * k.hw + i] - k.student[r * k.hw + i];
        low = std::min(low, d);
        high = std::max(high, d);
      }
      const double scaled = temperature * temperature * got.rows[r];
      EXPECT_GE(scaled, 0);
      EXPECT_LE(scaled, (high - low) * (high - low) / 8 * (1 + 1e-6) + 1e-15) << "row " << r;
    }
  }
}

TEST_P(ChannelKlTest, BatchIsTheMeanOfItsImages) {  // T13
  Generator random(16);
  Case k = NewCase(3, 18, 400);
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  double mean = 0;
  for (int64_t n = 0; n < k.n; ++n) {
    Case one = k;
    one.n = 1;
    const auto part = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + n * k.c * k.hw, x.begin() + (n + 1) * k.c * k.hw);
    };
    one.student = part(k.student);
    one.teacher = part(k.teacher);
    mean += one.Run(level()).result.loss / k.n;
  }
  const double loss = k.Run(level()).result.loss;
  EXPECT_NEAR(loss, mean, 1e-7 * mean);
  Case other = k;
  other.layout = k.layout == MapLayout::kChannelsFirst ? MapLayout::kChannelsLast : MapLayout::kChannelsFirst;
  EXPECT_NEAR(other.Run(level()).result.loss, loss, 1e-6 * loss);
}

TEST_P(ChannelKlTest, TeacherConstantPullsTheStudentToAConstant) {
  Generator random(17);
  Case k = NewCase(1, 16, 64);
  k.teacher.assign(k.c * k.hw, 2.5f);
  k.student = NormalMap(k.c * k.hw, 1, random);
  ExpectMatchesReference(k);
  k.student.assign(k.c * k.hw, -7.25f);
  const Outcome got = k.Run(level());
  EXPECT_NEAR(got.result.loss, 0, 1e-12);
  for (float g : got.gradient) EXPECT_NEAR(g, 0, 1e-9);
}

TEST_P(ChannelKlTest, SinglePositionTeachesNothing) {
  Generator random(18);
  Case k = NewCase(4, 20, 1);
  k.teacher = NormalMap(k.n * k.c, 5, random);
  k.student = NormalMap(k.n * k.c, 5, random);
  const Outcome got = k.Run(level());
  EXPECT_EQ(got.result.loss, 0);
  EXPECT_THAT(got.gradient, testing::Each(0.0f));
}

// --- Masks

TEST_P(ChannelKlTest, MaskedPositionsLeaveBothSoftmaxes) {
  Generator random(19);
  for (int64_t hw : {1, 5, 50, 4500}) {
    Case k = NewCase(3, 19, hw);
    k.teacher = SkewedMap(k.n * k.c, hw, random);
    k.student = SkewedMap(k.n * k.c, hw, random);
    k.mask.assign(k.n * hw, 1);
    for (int64_t i = 0; i < hw; ++i) {
      k.mask[i] = random() % 3 != 0;     // sample 0: scattered
      k.mask[hw + i] = 0;                // sample 1: nothing left
      k.mask[2 * hw + i] = i >= hw / 2;  // sample 2: whole blocks missing
    }
    for (int64_t r = 0; r < k.n * k.c; ++r) {
      for (int64_t i = 0; i < hw; ++i) {
        if (k.mask[r / k.c * hw + i] == 0) k.teacher[r * hw + i] = k.student[r * hw + i] = i % 2 ? kInf : std::nanf("");
      }
    }
    ExpectMatchesReference(k);
    const Outcome got = k.Run(level());
    for (int64_t i = 0; i < k.c * hw; ++i) ASSERT_EQ(got.gradient[k.c * hw + i], 0) << "sample without positions";
    // Far rows mask as well.
    for (int64_t r = 0; r < k.n * k.c; ++r) k.student[r * hw + hw - 1] = 1000;
    ExpectMatchesReference(k);
  }
}

TEST_P(ChannelKlTest, FullMaskEqualsNoMask) {
  Generator random(20);
  Case k = NewCase(2, 17, 2100);
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  const Outcome without = k.Run(level());
  k.mask.assign(k.n * k.hw, 255);
  const Outcome with = k.Run(level());
  EXPECT_NEAR(with.result.loss, without.result.loss, 5e-7 * without.result.loss);
  EXPECT_LE(GradientError(with.gradient, {without.gradient.begin(), without.gradient.end()}), 1e-6);
}

// --- What is not finite

TEST_P(ChannelKlTest, RowsWithNanOrInfinityAreReported) {
  Generator random(21);
  for (float bad : {std::nanf(""), kInf, -kInf}) {
    for (bool in_teacher : {false, true}) {
      for (int64_t position : {0, 17, 2500, 4099}) {
        Case k = NewCase(2, 17, 4100);
        k.teacher = NormalMap(k.n * k.c * k.hw, 1, random);
        k.student = NormalMap(k.n * k.c * k.hw, 1, random);
        for (int64_t row : {20, 31}) (in_teacher ? k.teacher : k.student)[row * k.hw + position] = bad;
        const Outcome got = k.Run(level());
        EXPECT_EQ(got.result.nonfinite_rows, 2) << bad << " at " << position;
        EXPECT_EQ(got.result.first_nonfinite_row, 20);
        EXPECT_TRUE(std::isnan(got.result.loss));
        EXPECT_TRUE(std::isnan(got.rows[20]));
        EXPECT_FALSE(std::isnan(got.rows[21]));
        const ChannelKlReferenceResult want = k.Reference();
        EXPECT_LE(GradientError(got.gradient, want.gradient), 2e-6);  // 0 in those rows, right in the others
      }
    }
  }
}

// --- Options

TEST_P(ChannelKlTest, TheWeightMultipliesLossAndGradient) {
  Generator random(22);
  Case k = NewCase(3, 17, 90);
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  const Outcome plain = k.Run(level());
  const auto expect_factor = [&](double factor) {
    const Outcome got = k.Run(level());
    EXPECT_NEAR(got.result.loss, factor * plain.result.loss, 1e-6 * std::fabs(factor * plain.result.loss));
    std::vector<double> want(plain.gradient.begin(), plain.gradient.end());
    for (double& g : want) g *= factor;
    EXPECT_LE(GradientError(got.gradient, want), 1e-6);
  };
  k.options.weight = -2.5;
  expect_factor(-2.5);
  k.options.weight = 0;
  expect_factor(0);
}

TEST_P(ChannelKlTest, CrossEntropyMatchesTheReference) {
  Generator random(23);
  Case k = NewCase(2, 17, 2300);
  k.options.cross_entropy = true;
  k.options.temperature = 2;
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  ExpectMatchesReference(k);
  k.mask.resize(k.n * k.hw);
  for (uint8_t& keep : k.mask) keep = random() % 2;
  ExpectMatchesReference(k);
  k.student[4] = kInf;
  k.mask[4] = 1;
  EXPECT_EQ(k.Run(level()).result.first_nonfinite_row, 0);
}

TEST_P(ChannelKlTest, CrossEntropyHasTheGradientOfTheKullbackLeiblerDivergence) {  // T11
  Generator random(24);
  Case k = NewCase(1, 20, 700);
  k.teacher = SkewedMap(k.c, k.hw, random);
  k.student = SkewedMap(k.c, k.hw, random);
  const Outcome kl = k.Run(level());
  k.options.cross_entropy = true;
  const Outcome ce = k.Run(level());
  EXPECT_LE(GradientError(ce.gradient, {kl.gradient.begin(), kl.gradient.end()}), 2e-6);
  EXPECT_GT(ce.result.loss, kl.result.loss);
}

TEST_P(ChannelKlTest, LossAloneEqualsLossWithGradient) {
  Generator random(25);
  Case k = NewCase(2, 18, 3000);
  k.teacher = SkewedMap(k.n * k.c, k.hw, random);
  k.student = SkewedMap(k.n * k.c, k.hw, random);
  k.student[7] = 4000;  // one row in the far form
  const Map s(k.Laid(k.student), k.student_type), t(k.Laid(k.teacher), k.teacher_type);
  const StatusOr<ChannelKlResult> alone = ChannelKl(k.Maps(s, t), k.Scaled(), {}, SerialFor, level());
  ASSERT_TRUE(alone.ok());
  EXPECT_EQ(alone->loss, k.Run(level()).result.loss);
}

// --- Any level

// The reference's gradients are the derivatives of its divergences, in long double so that the differences are sharp.
TEST(ChannelKlReferenceTest, GradientsEqualCentralDifferences) {
  const std::vector<long double> t = {0.3L, -1.2L, 2.0L, 0.9L, -0.1L};
  const std::vector<long double> s = {1.1L, 0.4L, -0.8L, 1.9L, 0.2L};
  for (bool cross_entropy : {false, true}) {
    std::vector<long double> gradient(t.size());
    RowDivergence<long double>(cross_entropy, 1.7L, t.data(), s.data(), t.size(), gradient.data());
    for (size_t i = 0; i < t.size(); ++i) {
      const long double step = 1e-5L;
      std::vector<long double> up = s, down = s;
      up[i] += step;
      down[i] -= step;
      const long double slope =
          (RowDivergence<long double>(cross_entropy, 1.7L, t.data(), up.data(), t.size(), nullptr) -
           RowDivergence<long double>(cross_entropy, 1.7L, t.data(), down.data(), t.size(), nullptr)) /
          (2 * step);
      EXPECT_NEAR(static_cast<double>(gradient[i]), static_cast<double>(slope), 1e-10)
          << (cross_entropy ? "ce " : "kl ") << i;
    }
  }
}

TEST(ChannelKlErrorTest, RefusesWhatItCannotCompute) {
  std::vector<float> map(8), gradient(8);
  const ChannelKlMaps good{
      1, 2, 4, MapLayout::kChannelsFirst, map.data(), ElementType::kFloat32, map.data(), ElementType::kFloat32};
  const auto message = [&](const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlOutput& output) {
    const StatusOr<ChannelKlResult> result = ChannelKl(maps, options, output, SerialFor);
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
    return std::string(result.status().message());
  };
  for (double temperature : {0.0, -1.0, 1e-9, 1e9, std::nan("")}) {
    ChannelKlOptions options;
    options.temperature = temperature;
    EXPECT_THAT(message(good, options, {}), testing::HasSubstr("temperature"));
  }
  ChannelKlOptions heavy;
  heavy.weight = kInf;
  EXPECT_THAT(message(good, heavy, {}), testing::HasSubstr("weight"));
  ChannelKlMaps maps = good;
  maps.hw = -4;
  EXPECT_THAT(message(maps, {}, {}), testing::HasSubstr("[1, 2, -4]"));
  maps = good;
  maps.teacher = nullptr;
  EXPECT_THAT(message(maps, {}, {}), testing::HasSubstr("null"));
  EXPECT_THAT(message(good, {}, {gradient.data(), ElementType::kBfloat16, nullptr}), testing::HasSubstr("bfloat16"));
}

}  // namespace
}  // namespace distill
