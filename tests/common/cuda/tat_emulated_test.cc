// The code of the TaT kernels for GPUs, run on the host by the emulator, against the reference.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/common/cuda/device_emulator.h"
// The kernels are written in the emulator, which comes first.
#include "common/cuda/tat_device.h"
#include "common/cuda/tat_steps.h"
#include "common/kernels/tat_attention_reference.h"

namespace distill {
namespace {

using cuda_tat::Args;
using cuda_tat::Kind;
using cuda_tat::kThreads;
using cuda_tat::Reduction;
using cuda_tat::Results;
using cuda_tat::Shared;
using cuda_tat::Side;
using device::Emulator;

// tat_cuda.cu's StreamDevice, on the host.
struct EmulatedDevice {
  void Pack(const Side& side, int64_t groups, float* out, int64_t threads) const {
    Emulator::Run((threads + kThreads - 1) / kThreads, kThreads, 1, 0, [&](char*) {
      DispatchElement(side.type,
                      [&](auto* tag) { cuda_tat::Pack<std::remove_pointer_t<decltype(tag)>>(side, groups, out); });
    });
  }
  void Stats(const Args& args, int64_t blocks) const {
    Emulator::Run(blocks, kThreads, 1, sizeof(Shared),
                  [&](char* shared) { cuda_tat::Stats(args, reinterpret_cast<Shared*>(shared)); });
  }
  template <Kind kKind>
  void Accumulate(const Args& args, const Side& side, int64_t blocks) const {
    Emulator::Run(blocks, kThreads, 1, sizeof(Shared),
                  [&](char* shared) { cuda_tat::Accumulate<kKind>(args, side, reinterpret_cast<Shared*>(shared)); });
  }
  void Finish(const Args& args, int64_t n, Reduction reduction, double weight, double elements, double queries,
              float* factors, Results results) const {
    Emulator::Run(1, kThreads, 1, kThreads * sizeof(double), [&](char* shared) {
      cuda_tat::Finish(args, n, reduction, weight, elements, queries, factors, results,
                       reinterpret_cast<double*>(shared));
    });
  }
  void Zero(float* pointer, int64_t floats) const { std::memset(pointer, 0, floats * sizeof(float)); }
};

struct TestMap {
  std::vector<char> bytes;
  FeatureMap map;
};

struct Case {
  int64_t n = 1;
  TestMap gamma, phi, theta, target;
  TatOptions options;

  TatMaps Maps() const { return {n, gamma.map, phi.map, theta.map, target.map}; }
};

struct Format {
  ElementType type = ElementType::kFloat32;
  MapLayout layout = MapLayout::kChannelsFirst;
};

Case Random(int64_t n, int64_t d, int64_t c, int64_t hs, int64_t ws, int64_t ht, int64_t wt, uint64_t seed,
            Format format = {}) {
  std::mt19937_64 random(seed);
  const float logits = static_cast<float>(1.4 / std::pow(static_cast<double>(d), 0.25));
  const auto map = [&](int64_t channels, int64_t h, int64_t w, float scale) {
    std::normal_distribution<float> normal(0, scale);
    TestMap out;
    out.bytes.resize(n * channels * h * w * SizeOf(format.type));
    DispatchElement(format.type, [&](auto* tag) {
      auto* values = reinterpret_cast<decltype(tag)>(out.bytes.data());
      for (int64_t i = 0; i < n * channels * h * w; ++i) FromFloat(normal(random), values + i);
    });
    out.map = {out.bytes.data(), format.type, format.layout, channels, h, w};
    return out;
  };
  return {n, map(d, hs, ws, logits), map(c, hs, ws, 1), map(d, ht, wt, logits), map(c, ht, wt, 1)};
}

int64_t Size(const Case& k, const TestMap& map) { return k.n * map.map.channels * map.map.height * map.map.width; }

double Difference(const std::vector<float>& got, const std::vector<double>& want) {
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += std::pow(got[i] - want[i], 2);
    size += std::pow(want[i], 2);
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

void ExpectReference(const Case& k, const std::string& what, bool with_theta = true) {
  const TatMaps maps = k.Maps();
  const StatusOr<TatTokenPlan> plan = PlanTat(maps, k.options);
  ASSERT_TRUE(plan.ok()) << plan.status();
  std::vector<float> gamma(Size(k, k.gamma), 1e9f), phi(Size(k, k.phi), 1e9f), theta(Size(k, k.theta), 1e9f);
  float loss = 0, entropy = 0, largest = 0;
  TatCudaOutput output;
  output.gradients = {gamma.data(), phi.data(), with_theta ? theta.data() : nullptr};
  output.loss = &loss;
  output.mean_entropy = &entropy;
  output.mean_largest_weight = &largest;
  const int64_t bytes = cuda_tat::PlanSteps(maps, k.options, *plan, {}, nullptr).scratch_bytes;
  std::vector<double> scratch(bytes / sizeof(double) + 8, NAN);  // what follows the end must stay as it is
  const cuda_tat::Steps steps = cuda_tat::PlanSteps(maps, k.options, *plan, output.gradients, scratch.data());
  cuda_tat::RunSteps(steps, maps, k.options, *plan, output, EmulatedDevice());
  for (size_t i = bytes / sizeof(double); i < scratch.size(); ++i) EXPECT_TRUE(std::isnan(scratch[i])) << what;
  const StatusOr<TatReferenceResult> want = TatAttentionReference(maps, k.options);
  ASSERT_TRUE(want.ok()) << want.status();
  EXPECT_NEAR(loss, want->result.loss, 2e-5 * want->result.loss) << what;
  EXPECT_NEAR(entropy, want->result.mean_entropy, 1e-4) << what;
  EXPECT_NEAR(largest, want->result.mean_largest_weight, 1e-4) << what;
  EXPECT_LE(Difference(gamma, want->gamma), 2e-5) << what << " gamma";
  EXPECT_LE(Difference(phi, want->phi), 2e-5) << what << " phi";
  if (!with_theta) {
    EXPECT_THAT(theta, testing::Each(1e9f)) << what;
    return;
  }
  EXPECT_LE(Difference(theta, want->theta), 2e-5) << what << " theta";
}

std::string Describe(const Case& k) {
  return "mode " + std::to_string(static_cast<int>(k.options.mode)) + " orientation " +
         std::to_string(static_cast<int>(k.options.orientation)) + " student " + std::to_string(k.phi.map.height) +
         "x" + std::to_string(k.phi.map.width) + " " + Name(k.phi.map.type);
}

TEST(TatEmulatedTest, PlainInBothOrientations) {
  struct Shape {
    int64_t n, d, c, hs, ws, ht, wt;
  };
  // A pixel, less than a tile, a tile, several, unequal sides; more channels than a slab.
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1, 1}, Shape{2, 17, 5, 3, 7, 3, 7}, Shape{1, 6, 9, 8, 8, 8, 8},
                         Shape{1, 20, 300, 9, 15, 9, 15}, Shape{2, 5, 3, 5, 4, 13, 6}, Shape{1, 4, 260, 2, 3, 2, 3}}) {
    for (TatOrientation orientation : {TatOrientation::kTeacherQuery, TatOrientation::kStudentQuery}) {
      if (orientation == TatOrientation::kStudentQuery && s.hs != s.ht) continue;
      Case k = Random(s.n, s.d, s.c, s.hs, s.ws, s.ht, s.wt, 1);
      k.options.orientation = orientation;
      ExpectReference(k, Describe(k));
    }
  }
}

TEST(TatEmulatedTest, PatchGroupsAndAnchorsInEveryFormat) {
  for (MapLayout layout : {MapLayout::kChannelsFirst, MapLayout::kChannelsLast}) {
    for (ElementType type : {ElementType::kFloat32, ElementType::kBfloat16, ElementType::kFloat16}) {
      for (TatMode mode : {TatMode::kPatchGroup, TatMode::kAnchor}) {
        Case k = Random(2, 6, 5, 9, 11, 9, 11, 2, {type, layout});
        k.options = {TatOrientation::kStudentQuery, mode, 2, 4, 4, {2, 3}, {2, 3}};
        ExpectReference(k, Describe(k));
      }
    }
  }
}

TEST(TatEmulatedTest, SidesOfDifferentSizes) {
  for (TatMode mode : {TatMode::kPatchGroup, TatMode::kAnchor}) {
    Case k = Random(1, 6, 5, 7, 8, 15, 16, 3);
    k.options = {TatOrientation::kTeacherQuery, mode, 3, 2, 3, {2, 1}, {1, 2}};
    ExpectReference(k, Describe(k));
  }
}

TEST(TatEmulatedTest, ReductionsWeightAndScale) {
  for (TatReduction reduction : {TatReduction::kMeanAll, TatReduction::kSumPerImage, TatReduction::kL2Norm}) {
    Case k = Random(3, 6, 5, 4, 5, 4, 5, 4);
    k.options.reduction = reduction;
    k.options.weight = 0.25;
    k.options.attention_scale = 0.4;
    ExpectReference(k, "reduction " + std::to_string(static_cast<int>(reduction)));
  }
}

TEST(TatEmulatedTest, UnwantedGradientsAreNotWritten) {
  Case k = Random(1, 6, 6, 5, 5, 5, 5, 5);
  ExpectReference(k, "theta = identity", /*with_theta=*/false);
}

}  // namespace
}  // namespace distill
