// The code of the CWD kernels for GPUs, run on the host by the emulator, against the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/common/cuda/device_emulator.h"
// The kernels are written in the emulator, which comes first.
#include "common/cuda/channel_kl_cuda.h"
#include "common/cuda/channel_kl_device.h"
#include "common/kernels/channel_kl_reference.h"

namespace distill {
namespace {

using cuda_channel_kl::Args;
using cuda_channel_kl::Far;
using cuda_channel_kl::kThreads;
using cuda_channel_kl::Near;
using device::Emulator;

struct Outcome {
  double loss = 0;
  int32_t nonfinite_rows = 0;
  std::vector<double> gradient, divergence;
};

struct Case {
  int64_t n = 1, c = 1, hw = 1;
  MapLayout layout = MapLayout::kChannelsFirst;
  std::vector<float> student, teacher;
  std::vector<uint8_t> mask;
  ChannelKlOptions options;

  ChannelKlMaps Maps(const void* student_map, ElementType student_type, const void* teacher_map,
                     ElementType teacher_type) const {
    return {
        n, c, hw, layout, student_map, student_type, teacher_map, teacher_type, mask.empty() ? nullptr : mask.data()};
  }
};

Case Random(int64_t n, int64_t c, int64_t hw, MapLayout layout, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, 2);
  Case k{n, c, hw, layout};
  for (int64_t i = 0; i < n * c * hw; ++i) {
    k.student.push_back(normal(random));
    k.teacher.push_back(normal(random));
  }
  return k;
}

template <typename T>
std::vector<T> As(const std::vector<float>& values) {
  std::vector<T> out(values.size());
  for (size_t i = 0; i < values.size(); ++i) FromFloat(values[i], &out[i]);
  return out;
}
template <typename T>
ElementType TypeOf() {
  return std::is_same_v<T, float>      ? ElementType::kFloat32
         : std::is_same_v<T, Bfloat16> ? ElementType::kBfloat16
                                       : ElementType::kFloat16;
}

// As channel_kl_cuda.cu enqueues it, with the sizes that a device with so much shared memory would get.
template <int kLanes, typename S, typename T>
Outcome RunLanes(const Case& k, const ChannelKlMaps& maps, const ChannelKlCudaPlan& plan) {
  const double scale = k.options.weight;
  const int64_t size = k.n * k.c * k.hw;
  std::vector<S> gradient(size);
  for (S& value : gradient) FromFloat(1e4f, &value);  // to see what is not written
  Outcome out;
  out.divergence.assign(k.n * k.c, 1e4);
  const Args args{maps.student,
                  maps.teacher,
                  maps.mask,
                  gradient.data(),
                  out.divergence.data(),
                  k.n,
                  k.c,
                  k.hw,
                  k.layout == MapLayout::kChannelsLast,
                  k.options.cross_entropy,
                  k.options.temperature,
                  scale / k.options.temperature,
                  plan.segment,
                  plan.segments};
  const int64_t blocks = plan.tiles * plan.segments;
  if (plan.fused) {
    Emulator::Run(blocks, kThreads, static_cast<int>(plan.segments), plan.shared_bytes,
                  [&](char* shared) { cuda_channel_kl::FusedTile<kLanes, S, T, S, device::Team>(args, shared); });
  } else {
    std::vector<Near> near(blocks * kLanes);
    std::vector<Far> far(blocks * kLanes);
    Emulator::Run(blocks, kThreads, 1, plan.shared_bytes, [&](char* shared) {
      cuda_channel_kl::SegmentSums<kLanes, S, T>(args, near.data(), far.data(), shared);
    });
    Emulator::Run((plan.tiles * kLanes + kThreads - 1) / kThreads, kThreads, 1, 0,
                  [&](char*) { cuda_channel_kl::MergeSegments<kLanes>(args, plan.tiles, near.data(), far.data()); });
    Emulator::Run(blocks, kThreads, 1, 0,
                  [&](char*) { cuda_channel_kl::SegmentGradient<kLanes, S, T, S>(args, near.data(), far.data()); });
  }
  float loss = 0;
  Emulator::Run(1, kThreads, 1, kThreads * sizeof(double), [&](char* shared) {
    cuda_channel_kl::SumRows(out.divergence.data(), k.n * k.c, scale, &loss, &out.nonfinite_rows, shared);
  });
  out.loss = loss;
  for (S value : gradient) out.gradient.push_back(ToFloat(value));
  return out;
}

template <typename S = float, typename T = float>
void ExpectReference(const Case& k, int64_t shared_limit, int team_limit, const std::string& what,
                     double tolerance = 2e-6, bool* fused = nullptr) {
  const std::vector<S> student = As<S>(k.student);
  const std::vector<T> teacher = As<T>(k.teacher);
  const ChannelKlMaps maps = k.Maps(student.data(), TypeOf<S>(), teacher.data(), TypeOf<T>());
  const ChannelKlCudaPlan plan = PlanChannelKlCuda(maps, shared_limit, team_limit);
  if (fused != nullptr) *fused = plan.fused;
  const Outcome got = plan.lanes == 1             ? RunLanes<1, S, T>(k, maps, plan)
                      : RunLanes < sizeof(S) == 4 ? 8
                                                  : 16,
                S, T > (k, maps, plan);
  const StatusOr<ChannelKlReferenceResult> want = ChannelKlReference<double>(maps, k.options);
  ASSERT_TRUE(want.ok()) << want.status();
  EXPECT_EQ(got.nonfinite_rows, want->result.nonfinite_rows) << what;
  if (want->result.nonfinite_rows > 0) {
    EXPECT_TRUE(std::isnan(got.loss)) << what;
  } else {
    EXPECT_NEAR(got.loss, want->result.loss, tolerance * std::fabs(want->result.loss)) << what;
  }
  double error = 0, size = 0;
  const double rounding = std::is_same_v<S, float> ? 0 : std::is_same_v<S, Bfloat16> ? 0x1p-8 : 0x1p-11;
  for (size_t i = 0; i < got.gradient.size(); ++i) {
    error += std::pow(got.gradient[i] - want->gradient[i], 2);
    size += std::pow(want->gradient[i], 2);
  }
  EXPECT_LE(std::sqrt(error), (tolerance + rounding) * std::sqrt(size) + (rounding > 0 ? 1e-6 : 0)) << what;
}

constexpr MapLayout kFirst = MapLayout::kChannelsFirst, kLast = MapLayout::kChannelsLast;
constexpr int64_t kMuch = 227 << 10;

TEST(ChannelKlEmulatedTest, OneBlockPerRow) {
  uint64_t seed = 0;
  for (int64_t hw : {1, 2, 33, 511, 1301}) {
    ExpectReference(Random(2, 3, hw, kFirst, ++seed), kMuch, 1, "hw " + std::to_string(hw));
  }
}

TEST(ChannelKlEmulatedTest, ChannelsLast) {
  uint64_t seed = 10;
  for (int64_t c : {1, 7, 8, 19}) {
    for (int64_t hw : {1, 33, 130}) {
      const std::string what = "c " + std::to_string(c) + " hw " + std::to_string(hw);
      ExpectReference(Random(2, c, hw, kLast, ++seed), kMuch, 1, what);
      ExpectReference<Bfloat16>(Random(2, c, hw, kLast, ++seed), kMuch, 1, what + " bfloat16");
    }
  }
}

TEST(ChannelKlEmulatedTest, ClustersShareRows) {
  for (MapLayout layout : {kFirst, kLast}) {
    for (int64_t hw : {1000, 1003}) {
      const Case k = Random(1, 3, hw, layout, 20);
      const int lanes = layout == kFirst ? 1 : 8;
      const int64_t limit = 2 * cuda_channel_kl::SharedBytes(260, lanes);  // four blocks
      const ChannelKlMaps maps = k.Maps(nullptr, ElementType::kFloat32, nullptr, ElementType::kFloat32);
      ASSERT_EQ(PlanChannelKlCuda(maps, limit, 8).segments, 4);
      ExpectReference(k, limit, 8, "hw " + std::to_string(hw));
    }
  }
}

TEST(ChannelKlEmulatedTest, LongRowsAreSplit) {
  for (MapLayout layout : {kFirst, kLast}) {
    const Case k = Random(2, 3, 1003, layout, 30);
    bool fused = true;
    ExpectReference(k, 2 * cuda_channel_kl::SharedBytes(260, layout == kFirst ? 1 : 8), 1, "split", 2e-6, &fused);
    EXPECT_FALSE(fused);
  }
}

TEST(ChannelKlEmulatedTest, Types) {
  for (MapLayout layout : {kFirst, kLast}) {
    const Case k = Random(1, 5, 77, layout, 40);
    ExpectReference<float, Bfloat16>(k, kMuch, 1, "teacher bfloat16");
    ExpectReference<Bfloat16, float>(k, kMuch, 1, "student bfloat16");
    ExpectReference<Float16, Float16>(k, kMuch, 1, "float16");
  }
}

// A device on which everything fits, one with clusters of up to eight, one that has to split.
struct Device {
  const char* name;
  int64_t limit;
  int team;
};
std::vector<Device> Devices(MapLayout layout) {
  const int64_t small = 2 * cuda_channel_kl::SharedBytes(200, layout == kFirst ? 1 : 8);
  return {{"one block", kMuch, 1}, {"cluster", small, 8}, {"split", small, 1}};
}

TEST(ChannelKlEmulatedTest, MapsThatNearlyAgreeKeepTheirAccuracy) {
  for (MapLayout layout : {kFirst, kLast}) {
    Case k = Random(1, 2, 700, layout, 50);
    for (float difference : {1e-1f, 1e-3f}) {
      for (size_t i = 0; i < k.student.size(); ++i) k.student[i] = k.teacher[i] + difference * k.student[i];
      for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
    }
    k.student = k.teacher;
    for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 0);
  }
}

TEST(ChannelKlEmulatedTest, LargeConstantBetweenMapsAndLargeTemperature) {
  Case k = Random(1, 2, 700, kFirst, 60);
  for (float& v : k.student) v = std::round(v * 256) / 256 + 512;  // exactly representable
  for (const Device& device : Devices(kFirst)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
  k = Random(1, 2, 700, kFirst, 61);
  k.options.temperature = 1000;
  for (const Device& device : Devices(kFirst)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
}

TEST(ChannelKlEmulatedTest, FarRows) {
  for (MapLayout layout : {kFirst, kLast}) {
    Case k = Random(1, 3, 700, layout, 70);
    // One of the three rows far, and its extremes in one place.
    const int64_t at = layout == kFirst ? 700 + 333 : 333 * 3 + 1;
    k.student[at] += 900;
    for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
    k.student[at] -= 1800;
    for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
    k.options.temperature = 0.02;
    for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 2e-5);
  }
}

TEST(ChannelKlEmulatedTest, Masks) {
  for (MapLayout layout : {kFirst, kLast}) {
    Case k = Random(3, 3, 700, layout, 80);
    k.mask.assign(3 * 700, 0);
    for (int64_t i = 0; i < 700; ++i) k.mask[i] = i % 3 == 0;    // of the first image a third
    for (int64_t i = 0; i < 90; ++i) k.mask[700 + i] = i == 70;  // of the second one position; of the third none
    k.student[layout == kFirst ? 1 : 3] = std::nanf("");         // masked
    for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
  }
}

TEST(ChannelKlEmulatedTest, RowsThatAreNotFiniteAreCounted) {
  for (MapLayout layout : {kFirst, kLast}) {
    for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      Case k = Random(1, 3, 700, layout, 90);
      k.teacher[500] = bad;
      k.student[1400] = -bad;
      for (const Device& device : Devices(layout)) ExpectReference(k, device.limit, device.team, device.name);
    }
  }
}

TEST(ChannelKlEmulatedTest, CrossEntropyAndWeight) {
  Case k = Random(2, 3, 700, kFirst, 100);
  k.options = {.temperature = 2, .cross_entropy = true, .weight = -3};
  for (const Device& device : Devices(kFirst)) ExpectReference(k, device.limit, device.team, device.name);
  k.student[5] += 900;
  for (const Device& device : Devices(kFirst)) ExpectReference(k, device.limit, device.team, device.name, 5e-6);
}

TEST(ChannelKlCudaPlanTest, CoversEveryPositionAndFits) {
  for (MapLayout layout : {kFirst, kLast}) {
    for (int64_t hw : {1, 49, 8192, 262144, 5000000}) {
      for (int team : {1, 8, 16}) {
        const ChannelKlMaps maps{4, 19, hw, layout};
        const ChannelKlCudaPlan plan = PlanChannelKlCuda(maps, kMuch, team);
        EXPECT_LE(plan.shared_bytes, kMuch);
        EXPECT_GE(plan.segment * plan.segments, hw);
        EXPECT_LT(plan.segment * (plan.segments - 1), hw + plan.segments);
        EXPECT_TRUE(!plan.fused || plan.segments <= team);
        EXPECT_EQ(plan.tiles, layout == kFirst ? 4 * 19 : 4 * 3);
      }
    }
  }
  // 512 x 512 float32 stays on the chip of a GPU with clusters of 16.
  EXPECT_TRUE(PlanChannelKlCuda({8, 19, 512 * 512, kFirst}, kMuch, 16).fused);
  EXPECT_FALSE(PlanChannelKlCuda({8, 19, 512 * 512, kFirst}, 163 << 10, 1).fused);
}

}  // namespace
}  // namespace distill
