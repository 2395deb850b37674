#include "common/kernels/tat_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "common/kernels/tat_attention_reference.h"
#include "tests/common/kernels/threads.h"

namespace distill {
namespace {

using Generator = std::mt19937_64;

// A map with its values: [N, C, H, W] in `values`, in `layout` and `type` in memory.
struct TestMap {
  int64_t n = 0, c = 0, h = 0, w = 0;
  std::vector<float> values;

  int64_t size() const { return n * c * h * w; }
  float& at(int64_t b, int64_t k, int64_t pixel) { return values[(b * c + k) * h * w + pixel]; }
};

TestMap Random(int64_t n, int64_t c, int64_t h, int64_t w, float scale, Generator& random) {
  std::normal_distribution<float> normal(0, scale);
  TestMap map{n, c, h, w, std::vector<float>(n * c * h * w)};
  for (float& v : map.values) v = normal(random);
  return map;
}

struct Outcome {
  TatResult result;
  std::vector<double> gamma, phi, theta;  // [N, C, H, W]
};

struct Case {
  TestMap gamma, phi, theta, target;
  TatOptions options;
  MapLayout layout = MapLayout::kChannelsFirst;
  ElementType type = ElementType::kFloat32;

  struct Stored {
    std::vector<char> bytes;
    FeatureMap map;
  };
  // Where element (b, k, pixel) of a map lies in memory.
  int64_t Place(const TestMap& m, int64_t i) const {
    if (layout == MapLayout::kChannelsFirst) return i;
    const int64_t pixel = i % (m.h * m.w), k = i / (m.h * m.w) % m.c, b = i / (m.h * m.w * m.c);
    return (b * m.h * m.w + pixel) * m.c + k;
  }
  Stored Store(const TestMap& m) const {
    Stored stored;
    stored.bytes.resize(m.size() * SizeOf(type));
    DispatchElement(type, [&](auto* tag) {
      auto* out = reinterpret_cast<decltype(tag)>(stored.bytes.data());
      for (int64_t i = 0; i < m.size(); ++i) FromFloat(m.values[i], out + Place(m, i));
    });
    stored.map = {stored.bytes.data(), type, layout, m.c, m.h, m.w};
    return stored;
  }
  template <typename T>
  std::vector<double> Plain(const TestMap& m, const std::vector<T>& gradient) const {
    std::vector<double> out(m.size());
    for (int64_t i = 0; i < m.size(); ++i) out[i] = gradient[Place(m, i)];
    return out;
  }

  Outcome Run(SimdLevel level = BestSimdLevel(), const ParallelFor& parallel_for = SerialFor,
              bool with_theta = true) const {
    const Stored a = Store(gamma), v = Store(phi), b = Store(theta), f = Store(target);
    std::vector<float> da(gamma.size(), 1e9f), dv(phi.size(), 1e9f), db(theta.size(), 1e9f);
    const TatGradients gradients{da.data(), dv.data(), with_theta ? db.data() : nullptr};
    StatusOr<TatResult> result =
        TatAttention({gamma.n, a.map, v.map, b.map, f.map}, options, gradients, parallel_for, level);
    EXPECT_TRUE(result.ok()) << result.status();
    return {*result, Plain(gamma, da), Plain(phi, dv), Plain(theta, db)};
  }
  Outcome Reference() const {
    const Stored a = Store(gamma), v = Store(phi), b = Store(theta), f = Store(target);
    StatusOr<TatReferenceResult> result = TatAttentionReference({gamma.n, a.map, v.map, b.map, f.map}, options);
    EXPECT_TRUE(result.ok()) << result.status();
    return {result->result, Plain(gamma, result->gamma), Plain(phi, result->phi), Plain(theta, result->theta)};
  }
};

// The maps of an ordinary case: logits of a few units, so that attention is neither flat nor one-hot.
Case NewCase(int64_t n, int64_t d, int64_t c, int64_t hs, int64_t ws, int64_t ht, int64_t wt, uint64_t seed) {
  Generator random(seed);
  const float scale = static_cast<float>(1.4 / std::pow(static_cast<double>(d), 0.25));
  return {Random(n, d, hs, ws, scale, random), Random(n, c, hs, ws, 1, random), Random(n, d, ht, wt, scale, random),
          Random(n, c, ht, wt, 1, random)};
}

double Difference(const std::vector<double>& got, const std::vector<double>& want) {  // relative, in L2
  double error = 0, size = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    size += want[i] * want[i];
  }
  return size == 0 ? std::sqrt(error) : std::sqrt(error / size);
}

void ExpectSame(const Outcome& got, const Outcome& want, const std::string& what, double tolerance = 2e-5) {
  EXPECT_NEAR(got.result.loss, want.result.loss, tolerance * want.result.loss) << what;
  EXPECT_NEAR(got.result.mean_entropy, want.result.mean_entropy, 1e-4) << what;
  EXPECT_NEAR(got.result.mean_largest_weight, want.result.mean_largest_weight, 1e-4) << what;
  EXPECT_EQ(got.result.dropped_teacher_pixels, want.result.dropped_teacher_pixels) << what;
  EXPECT_EQ(got.result.dropped_student_pixels, want.result.dropped_student_pixels) << what;
  EXPECT_EQ(got.result.nonfinite, nullptr) << what;
  EXPECT_LE(Difference(got.gamma, want.gamma), tolerance) << what << " gamma";
  EXPECT_LE(Difference(got.phi, want.phi), tolerance) << what << " phi";
  EXPECT_LE(Difference(got.theta, want.theta), tolerance) << what << " theta";
}

std::string Describe(const Case& k, SimdLevel level) {
  return std::string(Name(level)) +
         (k.options.orientation == TatOrientation::kTeacherQuery ? " teacher_query" : " student_query") + " mode " +
         std::to_string(static_cast<int>(k.options.mode)) + " N" + std::to_string(k.gamma.n) + " D" +
         std::to_string(k.gamma.c) + " C" + std::to_string(k.phi.c) + " student " + std::to_string(k.phi.h) + "x" +
         std::to_string(k.phi.w) + " teacher " + std::to_string(k.target.h) + "x" + std::to_string(k.target.w) + " " +
         Name(k.type) + (k.layout == MapLayout::kChannelsFirst ? " NCHW" : " NHWC");
}

TEST(TatAttentionTest, WorkedExample) {
  // Two tokens of two channels; rows of the paper are columns here.
  Case k;
  k.gamma = {1, 2, 1, 2, {1, 0, 0, 1}};
  k.theta = {1, 2, 1, 2, {2, 0, 1, 1}};
  k.phi = {1, 2, 1, 2, {1, 3, 2, -1}};
  k.target = {1, 2, 1, 2, {1, 1, 0, 0}};
  for (SimdLevel level : AvailableSimdLevels()) {
    k.options.orientation = TatOrientation::kTeacherQuery;
    EXPECT_NEAR(k.Run(level).result.loss, 0.9720224339, 1e-6);
    EXPECT_NEAR(k.Reference().result.loss, 0.9720224339, 1e-10);
    EXPECT_NEAR(k.Run(level).result.mean_largest_weight, 0.73105858, 1e-6);
    k.options.orientation = TatOrientation::kStudentQuery;
    EXPECT_NEAR(k.Run(level).result.loss, 1.0010715779, 1e-6);
    EXPECT_NEAR(k.Reference().result.loss, 1.0010715779, 1e-10);
    EXPECT_NEAR(k.Run(level).result.mean_largest_weight, (0.88079708 + 0.5) / 2, 1e-6);
  }
}

TEST(TatAttentionTest, ReferenceGradientsEqualCentralDifferences) {  // T2
  for (TatOrientation orientation : {TatOrientation::kTeacherQuery, TatOrientation::kStudentQuery}) {
    for (TatMode mode : {TatMode::kPlain, TatMode::kPatchGroup, TatMode::kAnchor}) {
      for (TatReduction reduction : {TatReduction::kMeanAll, TatReduction::kSumPerImage, TatReduction::kL2Norm}) {
        Case k = NewCase(2, 3, 2, 5, 4, 5, 4, 1);
        k.options = {orientation, mode, 2, 2, 2, {2, 1}, {2, 1}};
        k.options.attention_scale = 0.7;
        k.options.reduction = reduction;
        k.options.weight = 3;
        const Outcome exact = k.Reference();
        for (auto [map, gradient] :
             {std::pair{&k.gamma, &exact.gamma}, {&k.phi, &exact.phi}, {&k.theta, &exact.theta}}) {
          for (int64_t i = 0; i < map->size(); i += 7) {
            const float value = map->values[i];
            map->values[i] = value + 0x1p-10f;
            const double up = k.Reference().result.loss, up_at = map->values[i];
            map->values[i] = value - 0x1p-10f;
            const double down = k.Reference().result.loss, down_at = map->values[i];
            map->values[i] = value;
            EXPECT_NEAR((*gradient)[i], (up - down) / (up_at - down_at), 1e-5 * k.options.weight)
                << Describe(k, BestSimdLevel()) << i;
          }
        }
      }
    }
  }
}

TEST(TatAttentionTest, TiledEqualsDense) {  // T1
  struct Shape {
    int64_t n, d, c, hs, ws, ht, wt;
  };
  // One block (1, 33, 49, 256 tokens), several (257, a prime, unequal sides), odd widths.
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1, 1},
                         {2, 5, 3, 3, 11, 3, 11},
                         {3, 64, 32, 7, 7, 7, 7},
                         {1, 19, 40, 16, 16, 16, 16},
                         {1, 8, 12, 1, 257, 1, 257},
                         {2, 13, 7, 17, 31, 17, 31},
                         {1, 20, 33, 6, 7, 23, 17},
                         {1, 9, 21, 20, 19, 5, 5}}) {
    Case k = NewCase(s.n, s.d, s.c, s.hs, s.ws, s.ht, s.wt, 2);
    for (TatOrientation orientation : {TatOrientation::kTeacherQuery, TatOrientation::kStudentQuery}) {
      if (orientation == TatOrientation::kStudentQuery && s.hs != s.ht) continue;
      k.options.orientation = orientation;
      const Outcome want = k.Reference();
      for (SimdLevel level : AvailableSimdLevels()) ExpectSame(k.Run(level), want, Describe(k, level));
    }
  }
}

TEST(TatAttentionTest, LayoutsAndTypes) {
  for (MapLayout layout : {MapLayout::kChannelsFirst, MapLayout::kChannelsLast}) {
    for (ElementType type : {ElementType::kFloat32, ElementType::kBfloat16, ElementType::kFloat16}) {
      for (TatMode mode : {TatMode::kPlain, TatMode::kPatchGroup, TatMode::kAnchor}) {
        Case k = NewCase(2, 18, 20, 19, 21, 19, 21, 3);
        k.layout = layout;
        k.type = type;
        k.options = {TatOrientation::kTeacherQuery, mode, 4, 2, 4, {2, 3}, {3, 2}};
        ExpectSame(k.Run(), k.Reference(), Describe(k, BestSimdLevel()));
      }
    }
  }
}

TEST(TatAttentionTest, PatchGroupsAndAnchorsOfEveryKind) {
  struct Setup {
    int64_t rows, columns, groups;
    TatWindow teacher, student;
    int64_t hs, ht;
  };
  for (const Setup& s : {Setup{4, 4, 4, {3, 3}, {3, 3}, 17, 17}, Setup{4, 4, 16, {1, 1}, {1, 1}, 16, 16},
                         Setup{2, 8, 1, {2, 3}, {1, 2}, 12, 25}, Setup{1, 1, 1, {17, 17}, {5, 4}, 17, 17},
                         Setup{2, 1, 2, {4, 4}, {4, 4}, 40, 41}, Setup{8, 4, 32, {2, 1}, {2, 2}, 8, 33}}) {
    for (TatMode mode : {TatMode::kPatchGroup, TatMode::kAnchor}) {
      Case k = NewCase(2, 10, 9, s.hs, s.hs + 1, s.ht, s.ht + 2, 4);
      k.options = {TatOrientation::kTeacherQuery, mode, s.rows, s.columns, s.groups, s.teacher, s.student};
      for (SimdLevel level : AvailableSimdLevels()) ExpectSame(k.Run(level), k.Reference(), Describe(k, level));
    }
  }
}

TEST(TatAttentionTest, OneGroupOfOnePatchIsPlain) {  // T3
  Case k = NewCase(2, 12, 10, 9, 8, 9, 8, 5);
  const Outcome plain = k.Run();
  k.options.mode = TatMode::kPatchGroup;
  k.options.grid_rows = k.options.grid_columns = k.options.groups = 1;
  ExpectSame(k.Run(), plain, "1x1 grid", 1e-7);
  k.options.mode = TatMode::kAnchor;  // T10
  k.options.teacher_window = k.options.student_window = {1, 1};
  ExpectSame(k.Run(), plain, "kernel 1", 1e-7);
}

TEST(TatAttentionTest, GroupsOfOnePatchAreTheMeanOfPlainOnEachPatch) {  // T4
  Case k = NewCase(1, 6, 7, 6, 8, 6, 8, 6);
  k.options.mode = TatMode::kPatchGroup;
  k.options.grid_rows = 2;
  k.options.grid_columns = 4;
  k.options.groups = 8;
  double mean = 0;
  for (int64_t patch = 0; patch < 8; ++patch) {
    Case one;
    for (auto [from, to] :
         {std::pair{&k.gamma, &one.gamma}, {&k.phi, &one.phi}, {&k.theta, &one.theta}, {&k.target, &one.target}}) {
      *to = {1, from->c, 3, 2, {}};
      for (int64_t c = 0; c < from->c; ++c) {
        for (int64_t y = 0; y < 3; ++y) {
          for (int64_t x = 0; x < 2; ++x)
            to->values.push_back(from->at(0, c, (patch / 4 * 3 + y) * 8 + patch % 4 * 2 + x));
        }
      }
    }
    mean += one.Run().result.loss / 8;
  }
  EXPECT_NEAR(k.Run().result.loss, mean, 1e-6 * mean);
}

TEST(TatAttentionTest, PatchesOfAGroupShareTheSumOfTheirLogits) {  // T5
  Case k = NewCase(1, 3, 4, 4, 6, 4, 6, 7);
  k.options.mode = TatMode::kPatchGroup;
  k.options.grid_rows = 2;
  k.options.grid_columns = 3;
  k.options.groups = 2;  // one row of three 2x2 patches each
  const auto pixel = [](int64_t patch, int64_t token) {
    return (patch / 3 * 2 + token / 2) * 6 + patch % 3 * 2 + token % 2;
  };
  double want = 0;
  for (int64_t group = 0; group < 2; ++group) {
    for (int64_t i = 0; i < 4; ++i) {
      std::vector<double> w(4);
      double sum = 0;
      for (int64_t j = 0; j < 4; ++j) {
        for (int64_t patch = 3 * group; patch < 3 * group + 3; ++patch) {
          for (int64_t c = 0; c < 3; ++c)
            w[j] += double{k.theta.at(0, c, pixel(patch, i))} * k.gamma.at(0, c, pixel(patch, j));
        }
        sum += w[j] = std::exp(w[j]);
      }
      for (int64_t patch = 3 * group; patch < 3 * group + 3; ++patch) {
        for (int64_t c = 0; c < 4; ++c) {
          double o = -double{k.target.at(0, c, pixel(patch, i))};
          for (int64_t j = 0; j < 4; ++j) o += w[j] / sum * k.phi.at(0, c, pixel(patch, j));
          want += o * o / (24 * 4);
        }
      }
    }
  }
  EXPECT_NEAR(k.Run().result.loss, want, 1e-6 * want);
  EXPECT_NEAR(k.Reference().result.loss, want, 1e-12 * want);
}

TEST(TatAttentionTest, OutputStaysBetweenTheLeastAndTheLargestValue) {  // T9
  for (int64_t h : {5, 18}) {
    Case k = NewCase(1, 6, 3, h, 17, h, 17, 27);
    const auto [least, largest] = std::minmax_element(k.phi.values.begin(), k.phi.values.end());
    // Distances to a target below and to one above all values.
    k.target.values.assign(k.target.size(), *least - 1);
    const double below = std::sqrt(k.Run().result.loss);
    EXPECT_GE(below, 1 - 1e-6);
    EXPECT_LE(below, *largest - *least + 1 + 1e-6);
    k.target.values.assign(k.target.size(), *largest + 1);
    EXPECT_GE(std::sqrt(k.Run().result.loss), 1 - 1e-6);
  }
}

TEST(TatAttentionTest, WeightZeroHasNoGradient) {  // T15
  for (int64_t h : {5, 18}) {
    Case k = NewCase(1, 6, 3, h, 17, h, 17, 28);
    k.options.weight = 0;
    const Outcome got = k.Run();
    EXPECT_EQ(got.result.loss, 0);
    for (const auto* gradient : {&got.gamma, &got.phi, &got.theta}) EXPECT_THAT(*gradient, testing::Each(0.0));
  }
}

TEST(TatAttentionTest, WholeMapAnchorComparesChannelMeans) {  // T10
  Case k = NewCase(2, 4, 6, 5, 5, 5, 5, 7);
  k.options.mode = TatMode::kAnchor;
  k.options.teacher_window = k.options.student_window = {5, 5};
  double want = 0;
  for (int64_t r = 0; r < 12; ++r) {
    double difference = 0;
    for (int64_t i = 0; i < 25; ++i) difference += (k.phi.values[r * 25 + i] - k.target.values[r * 25 + i]) / 25.0;
    want += difference * difference / 12;
  }
  EXPECT_NEAR(k.Run().result.loss, want, 1e-6 * want);
}

// Applies one permutation of pixels to a map.
TestMap Permuted(TestMap map, const std::vector<int64_t>& order) {
  TestMap out = map;
  for (int64_t b = 0; b < map.n; ++b) {
    for (int64_t c = 0; c < map.c; ++c) {
      for (size_t i = 0; i < order.size(); ++i) out.at(b, c, i) = map.at(b, c, order[i]);
    }
  }
  return out;
}

TEST(TatAttentionTest, PermutationsTellTheOrientationsApart) {  // T6, T7
  Case k = NewCase(2, 8, 5, 4, 9, 4, 9, 8);
  std::vector<int64_t> order(36);
  std::iota(order.begin(), order.end(), 0);
  Generator random(9);
  std::shuffle(order.begin(), order.end(), random);
  const auto loss = [](const Case& c) { return c.Run().result.loss; };
  Case student = k, teacher = k, mixed = k, keys = k;
  student.gamma = Permuted(k.gamma, order);
  student.phi = Permuted(k.phi, order);
  teacher.theta = Permuted(k.theta, order);
  teacher.target = Permuted(k.target, order);
  mixed.gamma = student.gamma;
  mixed.target = teacher.target;
  keys.theta = teacher.theta;
  keys.phi = student.phi;

  const double plain = loss(k);
  EXPECT_NEAR(loss(student), plain, 1e-6 * plain);
  EXPECT_NEAR(loss(teacher), plain, 1e-6 * plain);
  for (Case* c : {&k, &student, &teacher, &mixed, &keys}) c->options.orientation = TatOrientation::kStudentQuery;
  const double code = loss(k);
  EXPECT_GT(std::fabs(loss(student) - code), 1e-3);
  EXPECT_NEAR(loss(mixed), code, 1e-6 * code);
  EXPECT_NEAR(loss(keys), code, 1e-6 * code);
  EXPECT_GT(std::fabs(code - plain), 1e-3);
}

TEST(TatAttentionTest, AConstantOnAllKeysChangesNothing) {  // T8
  for (TatOrientation orientation : {TatOrientation::kTeacherQuery, TatOrientation::kStudentQuery}) {
    Case k = NewCase(2, 6, 5, 18, 17, 18, 17, 10);
    k.options.orientation = orientation;
    const bool teacher_query = orientation == TatOrientation::kTeacherQuery;
    const Outcome plain = k.Run();
    Case keys = k, queries = k;
    for (int64_t c = 0; c < 6; ++c) {
      for (int64_t b = 0; b < 2; ++b) {
        for (int64_t i = 0; i < 18 * 17; ++i) {
          (teacher_query ? keys.gamma : keys.theta).at(b, c, i) += 0.5f * (c + 1);
          (teacher_query ? queries.theta : queries.gamma).at(b, c, i) += 0.5f * (c + 1);
        }
      }
    }
    EXPECT_NEAR(keys.Run().result.loss, plain.result.loss, 1e-5 * plain.result.loss);
    EXPECT_GT(std::fabs(queries.Run().result.loss - plain.result.loss), 1e-4);
    // So the sum of the keys' gradient over positions vanishes.
    const std::vector<double>& gradient = teacher_query ? plain.gamma : plain.theta;
    for (int64_t r = 0; r < 12; ++r) {
      const auto begin = gradient.begin() + r * 18 * 17, end = begin + 18 * 17;
      const double sum = std::accumulate(begin, end, 0.0);
      const double size = std::accumulate(begin, end, 0.0, [](double x, double y) { return x + std::fabs(y); });
      EXPECT_LE(std::fabs(sum), 1e-5 * size) << r;
    }
  }
}

TEST(TatAttentionTest, ConstantValuesEqualToTheTargetGiveZero) {  // T11
  Case k = NewCase(1, 6, 4, 20, 20, 20, 20, 11);
  for (int64_t c = 0; c < 4; ++c) {
    for (int64_t i = 0; i < 400; ++i) k.phi.at(0, c, i) = k.target.at(0, c, i) = 1.5f * c - 2;
  }
  EXPECT_NEAR(k.Run().result.loss, 0, 1e-11);
}

TEST(TatAttentionTest, ScalingValuesAndTargetScalesTheLoss) {  // T12
  Case k = NewCase(1, 6, 4, 9, 9, 9, 9, 12);
  const double loss = k.Run().result.loss;
  for (float& v : k.phi.values) v *= 4;
  for (float& v : k.target.values) v *= 4;
  EXPECT_NEAR(k.Run().result.loss, 16 * loss, 1e-6 * loss);
}

TEST(TatAttentionTest, SinglePixelIsPlainRegression) {
  Case k = NewCase(3, 5, 7, 1, 1, 1, 1, 13);
  const Outcome got = k.Run();
  double want = 0;
  for (int64_t i = 0; i < k.phi.size(); ++i) want += std::pow(k.phi.values[i] - k.target.values[i], 2) / k.phi.size();
  EXPECT_NEAR(got.result.loss, want, 1e-6 * want);
  EXPECT_THAT(got.gamma, testing::Each(0.0));
  EXPECT_THAT(got.theta, testing::Each(0.0));
  EXPECT_NEAR(got.result.mean_largest_weight, 1, 1e-6);
  EXPECT_NEAR(got.result.mean_entropy, 0, 1e-6);
}

TEST(TatAttentionTest, BatchIsTheMeanOfItsImages) {  // T16
  Case k = NewCase(3, 6, 5, 17, 17, 17, 17, 14);
  double mean = 0;
  for (int64_t b = 0; b < 3; ++b) {
    Case one = k;
    for (TestMap* m : {&one.gamma, &one.phi, &one.theta, &one.target}) {
      const int64_t each = m->size() / 3;
      m->values = std::vector<float>(m->values.begin() + b * each, m->values.begin() + (b + 1) * each);
      m->n = 1;
    }
    mean += one.Run().result.loss / 3;
  }
  EXPECT_NEAR(k.Run().result.loss, mean, 1e-6 * mean);
}

TEST(TatAttentionTest, ReductionsWeightAndScale) {
  for (TatReduction reduction : {TatReduction::kMeanAll, TatReduction::kSumPerImage, TatReduction::kL2Norm}) {
    for (int64_t h : {6, 18}) {
      Case k = NewCase(2, 6, 5, h, 19, h, 19, 15);
      k.options.reduction = reduction;
      k.options.weight = 0.25;
      k.options.attention_scale = 0.4;
      ExpectSame(k.Run(), k.Reference(), "reduction " + std::to_string(static_cast<int>(reduction)));
    }
  }
}

TEST(TatAttentionTest, LargeLogitsStayFinite) {
  // theta = identity on an unnormalised ReLU teacher: logits of a thousand.
  Case k = NewCase(1, 16, 6, 18, 18, 18, 18, 16);
  for (float& v : k.gamma.values) v *= 30;
  for (float& v : k.theta.values) v = 30 * std::fabs(v);
  const Outcome got = k.Run(), want = k.Reference();
  EXPECT_GT(want.result.mean_largest_weight, 0.9);
  ExpectSame(got, want, "logits of a thousand", 5e-3);
}

TEST(TatAttentionTest, ResultDoesNotDependOnThreads) {
  for (TatMode mode : {TatMode::kPlain, TatMode::kPatchGroup}) {
    Case k = NewCase(3, 12, 10, 20, 21, 20, 21, 17);
    k.options.mode = mode;
    k.options.grid_rows = k.options.grid_columns = k.options.groups = 4;
    const Outcome one = k.Run();
    const Outcome many = k.Run(BestSimdLevel(), Threads(5));
    EXPECT_EQ(one.result.loss, many.result.loss);
    EXPECT_EQ(one.gamma, many.gamma);
    EXPECT_EQ(one.phi, many.phi);
    EXPECT_EQ(one.theta, many.theta);
  }
}

// Patch groups and anchors of one case, in one go.
struct Hierarchical {
  Case k;
  TatOptions anchor;

  struct Outcome {
    TatHierarchicalResult result;
    std::vector<double> gamma, phi, theta;
  };
  // `before`: what the gradients hold.
  Outcome Run(SimdLevel level = BestSimdLevel(), const ParallelFor& parallel_for = SerialFor,
              float before = 1e9f) const {
    const Case::Stored a = k.Store(k.gamma), v = k.Store(k.phi), b = k.Store(k.theta), f = k.Store(k.target);
    std::vector<float> da(k.gamma.size(), before), dv(k.phi.size(), before), db(k.theta.size(), before);
    const StatusOr<TatHierarchicalResult> result =
        TatHierarchical({k.gamma.n, a.map, v.map, b.map, f.map}, k.options, anchor, {da.data(), dv.data(), db.data()},
                        parallel_for, level);
    EXPECT_TRUE(result.ok()) << result.status();
    return {*result, k.Plain(k.gamma, da), k.Plain(k.phi, dv), k.Plain(k.theta, db)};
  }

  void ExpectReference(const Outcome& got, const std::string& what) const {
    const auto same = [&](const TatResult& x, const TatResult& y, const char* part) {
      EXPECT_NEAR(x.loss, y.loss, 2e-5 * y.loss) << what << part;
      EXPECT_NEAR(x.mean_entropy, y.mean_entropy, 1e-4) << what << part;
      EXPECT_NEAR(x.mean_largest_weight, y.mean_largest_weight, 1e-4) << what << part;
      EXPECT_EQ(x.dropped_teacher_pixels, y.dropped_teacher_pixels) << what << part;
      EXPECT_EQ(x.dropped_student_pixels, y.dropped_student_pixels) << what << part;
      EXPECT_EQ(x.nonfinite, nullptr) << what << part;
    };
    const distill::Outcome first = k.Reference();
    Case global = k;
    global.options = anchor;
    const distill::Outcome second = global.Reference();
    same(got.result.patch_group, first.result, " patch group");
    same(got.result.anchor, second.result, " anchor");
    for (const auto& [x, y, z, name] : {std::tuple{&got.gamma, &first.gamma, &second.gamma, "gamma"},
                                        {&got.phi, &first.phi, &second.phi, "phi"},
                                        {&got.theta, &first.theta, &second.theta, "theta"}}) {
      std::vector<double> sum = *y;
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += (*z)[i];
      EXPECT_LE(Difference(*x, sum), 2e-5) << what << " " << name;
    }
  }
};

TEST(TatHierarchicalTest, IsTheSumOfItsParts) {
  struct Setup {
    int64_t rows, columns, groups;
    TatWindow teacher, student;
    int64_t hs, ws, ht, wt;
  };
  // Windows that divide the patches and that do not; groups over several rows of the grid; pixels that only patches,
  // only anchors, or neither cover; large groups (16x19 tokens), in blocks; one window and one patch.
  for (const Setup& s : {Setup{4, 4, 4, {4, 4}, {4, 4}, 24, 24, 24, 24},
                         {4, 2, 2, {3, 2}, {5, 3}, 19, 21, 17, 23},
                         {4, 4, 16, {4, 4}, {4, 4}, 18, 17, 18, 17},
                         {3, 5, 5, {1, 7}, {2, 1}, 9, 10, 20, 31},
                         {2, 1, 1, {8, 6}, {8, 6}, 33, 19, 33, 19},
                         {1, 1, 1, {9, 9}, {8, 7}, 8, 7, 9, 9}}) {
    for (TatOrientation orientation : {TatOrientation::kTeacherQuery, TatOrientation::kStudentQuery}) {
      if (orientation == TatOrientation::kStudentQuery && s.hs != s.ht) continue;
      Hierarchical h{NewCase(3, 10, 9, s.hs, s.ws, s.ht, s.wt, 29), {}};
      h.k.options = {orientation, TatMode::kPatchGroup, s.rows, s.columns, s.groups};
      h.k.options.weight = 1.5;
      h.anchor = {orientation, TatMode::kAnchor, 1, 1, 1, s.teacher, s.student};
      h.anchor.weight = 0.4;
      h.anchor.attention_scale = 0.5;
      for (SimdLevel level : AvailableSimdLevels()) h.ExpectReference(h.Run(level), Describe(h.k, level));
    }
  }
}

TEST(TatHierarchicalTest, LayoutsTypesAndReductions) {
  for (MapLayout layout : {MapLayout::kChannelsFirst, MapLayout::kChannelsLast}) {
    for (ElementType type : {ElementType::kFloat32, ElementType::kBfloat16, ElementType::kFloat16}) {
      for (TatReduction reduction : {TatReduction::kMeanAll, TatReduction::kSumPerImage, TatReduction::kL2Norm}) {
        Hierarchical h{NewCase(2, 18, 20, 19, 21, 19, 21, 30), {}};
        h.k.layout = layout;
        h.k.type = type;
        h.k.options = {TatOrientation::kTeacherQuery, TatMode::kPatchGroup, 4, 2, 4};
        h.anchor = {TatOrientation::kTeacherQuery, TatMode::kAnchor, 1, 1, 1, {2, 3}, {3, 2}};
        h.k.options.reduction = h.anchor.reduction = reduction;
        h.ExpectReference(h.Run(), Describe(h.k, BestSimdLevel()));
      }
    }
  }
}

TEST(TatHierarchicalTest, ResultDoesNotDependOnThreads) {
  for (int64_t images : {1, 3, 7}) {
    Hierarchical h{NewCase(images, 6, 5, 40, 38, 40, 38, 31), {}};
    h.k.options = {TatOrientation::kTeacherQuery, TatMode::kPatchGroup, 4, 4, 4};
    h.anchor = {TatOrientation::kTeacherQuery, TatMode::kAnchor, 1, 1, 1, {2, 2}, {2, 2}};
    const Hierarchical::Outcome one = h.Run();
    for (int threads : {2, 5}) {
      const Hierarchical::Outcome many = h.Run(BestSimdLevel(), Threads(threads));
      EXPECT_EQ(one.result.patch_group.loss, many.result.patch_group.loss) << images << " " << threads;
      EXPECT_EQ(one.result.anchor.loss, many.result.anchor.loss) << images << " " << threads;
      EXPECT_EQ(one.gamma, many.gamma) << images << " " << threads;
      EXPECT_EQ(one.phi, many.phi) << images << " " << threads;
      EXPECT_EQ(one.theta, many.theta) << images << " " << threads;
    }
  }
}

// Gradients of 16 MiB are written past the caches, rows that begin anywhere in a line.
TEST(TatHierarchicalTest, LargeGradientsAreTheReferences) {
  for (MapLayout layout : {MapLayout::kChannelsFirst, MapLayout::kChannelsLast}) {
    Hierarchical h{NewCase(1, 3, 17, 515, 517, 35, 34, 32), {}};
    h.k.layout = layout;
    h.k.options = {TatOrientation::kTeacherQuery, TatMode::kPatchGroup, 32, 32, 256};
    h.anchor = {TatOrientation::kTeacherQuery, TatMode::kAnchor, 1, 1, 1, {5, 5}, {53, 61}};
    for (SimdLevel level : AvailableSimdLevels()) {
      h.ExpectReference(h.Run(level), Describe(h.k, level));
    }
  }
}

TEST(TatHierarchicalTest, ThetaMayBeTheTarget) {
  Case k = NewCase(2, 6, 6, 17, 18, 17, 18, 33);
  k.theta = k.target;
  TatOptions anchor{.mode = TatMode::kAnchor};
  k.options = {TatOrientation::kTeacherQuery, TatMode::kPatchGroup, 4, 4, 8};
  const Case::Stored a = k.Store(k.gamma), v = k.Store(k.phi), b = k.Store(k.theta), f = k.Store(k.target);
  const auto run = [&](const FeatureMap& theta) {
    std::vector<float> da(k.gamma.size()), dv(k.phi.size());
    EXPECT_TRUE(
        TatHierarchical({2, a.map, v.map, theta, f.map}, k.options, anchor, {da.data(), dv.data()}, SerialFor).ok());
    da.insert(da.end(), dv.begin(), dv.end());
    return da;
  };
  EXPECT_EQ(run(b.map), run(f.map));
}

TEST(TatHierarchicalTest, NanNamesItsMapInBothParts) {
  Hierarchical h{NewCase(2, 6, 5, 17, 18, 17, 18, 34), {}};
  h.k.options = {TatOrientation::kTeacherQuery, TatMode::kPatchGroup, 4, 4, 8};
  h.anchor.mode = TatMode::kAnchor;
  h.k.theta.at(1, 2, 40) = std::nanf("");
  const TatHierarchicalResult got = h.Run().result;
  EXPECT_STREQ(got.patch_group.nonfinite, "theta");
  EXPECT_STREQ(got.anchor.nonfinite, "theta");
  EXPECT_TRUE(std::isnan(got.patch_group.loss));
  EXPECT_TRUE(std::isnan(got.anchor.loss));
}

TEST(TatHierarchicalTest, RefusesOtherModesAndTakesAnEmptyBatch) {
  const TatOptions patch_group{.mode = TatMode::kPatchGroup}, anchor{.mode = TatMode::kAnchor};
  EXPECT_EQ(TatHierarchical({}, patch_group, patch_group, {}, SerialFor).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(TatHierarchical({}, anchor, anchor, {}, SerialFor).status().code(), StatusCode::kInvalidArgument);
  const StatusOr<TatHierarchicalResult> empty = TatHierarchical({}, patch_group, anchor, {}, SerialFor);
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_EQ(empty->patch_group.loss + empty->anchor.loss, 0);
}

TEST(TatAttentionTest, UnwantedGradientsAreSkippedAndOthersUnchanged) {  // T13: theta = identity
  for (int64_t h : {5, 18}) {
    Case k = NewCase(1, 6, 6, h, 17, h, 17, 20);
    const Outcome all = k.Run();
    const Outcome without = k.Run(BestSimdLevel(), SerialFor, /*with_theta=*/false);
    EXPECT_EQ(all.gamma, without.gamma);
    EXPECT_EQ(all.phi, without.phi);
    EXPECT_THAT(without.theta, testing::Each(1e9));
    EXPECT_EQ(all.result.loss, without.result.loss);
    // The loss alone.
    const Case::Stored a = k.Store(k.gamma), v = k.Store(k.phi), b = k.Store(k.theta), f = k.Store(k.target);
    EXPECT_EQ(TatAttention({1, a.map, v.map, b.map, f.map}, k.options, {}, SerialFor)->loss, all.result.loss);
  }
}

TEST(TatAttentionTest, NanAndInfinityNameTheirMap) {
  for (int64_t h : {5, 18}) {
    for (float bad : {std::nanf(""), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      for (int which = 0; which < 4; ++which) {
        Case k = NewCase(2, 6, 5, h, 17, h, 17, 21);
        TestMap* maps[] = {&k.gamma, &k.phi, &k.theta, &k.target};
        const char* names[] = {"gamma", "phi", "theta", "target"};
        maps[which]->values[maps[which]->size() - 3] = bad;
        const Outcome got = k.Run();
        EXPECT_STREQ(got.result.nonfinite, names[which]) << bad;
        EXPECT_TRUE(std::isnan(got.result.loss));
        EXPECT_STREQ(k.Reference().result.nonfinite, names[which]);
      }
    }
  }
}

TEST(TatAttentionTest, OverflowingLogitsAreReported) {
  Case k = NewCase(1, 4, 5, 6, 6, 6, 6, 22);
  k.gamma.values.assign(k.gamma.size(), 1e30f);
  k.theta.values.assign(k.theta.size(), 1e30f);
  EXPECT_STREQ(k.Run().result.nonfinite, "attention logits");
}

TEST(TatAttentionTest, EmptyBatchIsZero) {
  const StatusOr<TatResult> result = TatAttention({}, {}, {}, SerialFor);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->loss, 0);
}

TEST(TatAttentionTest, DroppedPixelsAreCounted) {
  Case k = NewCase(1, 2, 2, 129, 129, 129, 129, 23);
  k.options.mode = TatMode::kPatchGroup;
  k.options.grid_rows = k.options.grid_columns = 32;
  k.options.groups = 512;
  const Outcome got = k.Run();
  EXPECT_EQ(got.result.dropped_teacher_pixels, 257);
  EXPECT_EQ(got.result.dropped_student_pixels, 257);
  EXPECT_EQ(got.phi[129 * 128], 0);  // first pixel of the last row
  EXPECT_NE(got.phi[129 * 127], 0);
}

TEST(TatAttentionErrorTest, RefusesWhatDoesNotFit) {
  const auto message = [](const Case& k) {
    const Case::Stored a = k.Store(k.gamma), v = k.Store(k.phi), b = k.Store(k.theta), f = k.Store(k.target);
    const StatusOr<TatResult> result = TatAttention({k.gamma.n, a.map, v.map, b.map, f.map}, k.options, {}, SerialFor);
    EXPECT_EQ(result.status().code(), StatusCode::kInvalidArgument);
    return std::string(result.status().message().data(), result.status().message().size());
  };
  const Case good = NewCase(1, 4, 3, 6, 8, 6, 8, 24);
  Generator random(25);
  Case k = good;
  k.gamma = Random(1, 5, 6, 8, 1, random);
  EXPECT_THAT(message(k), testing::HasSubstr("gamma has 5 channels, theta 4"));
  k = good;
  k.phi = Random(1, 2, 6, 8, 1, random);
  EXPECT_THAT(message(k), testing::HasSubstr("phi has 2 channels, the target 3"));
  k = good;
  k.phi = Random(1, 3, 5, 8, 1, random);
  EXPECT_THAT(message(k), testing::HasSubstr("phi 5x8"));
  k = good;
  k.theta = Random(1, 4, 6, 7, 1, random);
  EXPECT_THAT(message(k), testing::HasSubstr("theta is 6x7"));
  k = NewCase(1, 4, 3, 6, 8, 5, 8, 26);
  k.options.orientation = TatOrientation::kStudentQuery;
  EXPECT_THAT(message(k), testing::HasSubstr("student_query needs equal tokens"));
  k = good;
  k.options.mode = TatMode::kPatchGroup;
  EXPECT_THAT(message(k), testing::HasSubstr("cannot be cut into 16x16"));
  k.options.grid_rows = k.options.grid_columns = 4;
  k.options.groups = 3;
  EXPECT_THAT(message(k), testing::HasSubstr("3 groups do not divide the 4x4"));
  k = good;
  k.options.mode = TatMode::kAnchor;
  k.options.teacher_window = {7, 4};
  EXPECT_THAT(message(k), testing::HasSubstr("anchor window 7x4"));
  k = good;
  k.options.attention_scale = std::nan("");
  EXPECT_THAT(message(k), testing::HasSubstr("attention scale"));
}

}  // namespace
}  // namespace distill
