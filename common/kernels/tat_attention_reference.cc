#include "common/kernels/tat_attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

namespace distill {
namespace {

using Matrix = std::vector<std::vector<double>>;  // [row][column]

int64_t Index(const FeatureMap& map, int64_t n, int64_t c, int64_t y, int64_t x) {
  if (map.layout == MapLayout::kChannelsFirst) return ((n * map.channels + c) * map.height + y) * map.width + x;
  return ((n * map.height + y) * map.width + x) * map.channels + c;
}

double Element(const FeatureMap& map, int64_t index) {
  return DispatchElement(map.type, [&](auto* tag) {
    return ToFloat(static_cast<const std::remove_pointer_t<decltype(tag)>*>(map.data)[index]);
  });
}

// f(token, feature, pixel index) for every pixel behind the tokens of one group: token (y, x), feature (patch,
// channel).
template <typename F>
void ForEachPixel(const FeatureMap& map, const TatTokens& tokens, int64_t n, int64_t group, int64_t patches, F f) {
  for (int64_t u = 0; u < patches; ++u) {
    const int64_t patch = group * patches + u;
    const int64_t top = patch / tokens.patch_columns * tokens.height * tokens.window.height;
    const int64_t left = patch % tokens.patch_columns * tokens.width * tokens.window.width;
    for (int64_t c = 0; c < map.channels; ++c) {
      for (int64_t y = 0; y < tokens.height * tokens.window.height; ++y) {
        for (int64_t x = 0; x < tokens.width * tokens.window.width; ++x) {
          f(y / tokens.window.height * tokens.width + x / tokens.window.width, u * map.channels + c,
            Index(map, n, c, top + y, left + x));
        }
      }
    }
  }
}

Matrix Gather(const FeatureMap& map, const TatTokens& tokens, int64_t n, int64_t group, int64_t patches) {
  Matrix rows(tokens.count(), std::vector<double>(patches * map.channels));
  const double share = 1.0 / tokens.window.count();
  ForEachPixel(map, tokens, n, group, patches, [&](int64_t token, int64_t feature, int64_t index) {
    rows[token][feature] += share * Element(map, index);
  });
  return rows;
}

void Scatter(const Matrix& gradient, const FeatureMap& map, const TatTokens& tokens, int64_t n, int64_t group,
             int64_t patches, double factor, std::vector<double>* out) {
  const double share = factor / tokens.window.count();
  ForEachPixel(map, tokens, n, group, patches, [&](int64_t token, int64_t feature, int64_t index) {
    (*out)[index] += share * gradient[token][feature];
  });
}

// a b, a^T b and a b^T.
Matrix Multiply(const Matrix& a, const Matrix& b) {
  Matrix c(a.size(), std::vector<double>(b[0].size()));
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t k = 0; k < b.size(); ++k) {
      for (size_t j = 0; j < b[0].size(); ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  return c;
}
Matrix Transposed(const Matrix& a) {
  Matrix t(a[0].size(), std::vector<double>(a.size()));
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[0].size(); ++j) t[j][i] = a[i][j];
  }
  return t;
}

bool AllFinite(const FeatureMap& map, int64_t n) {
  for (int64_t i = 0; i < n * map.channels * map.height * map.width; ++i) {
    if (!std::isfinite(Element(map, i))) return false;
  }
  return true;
}

}  // namespace

StatusOr<TatReferenceResult> TatAttentionReference(const TatMaps& maps, const TatOptions& options) {
  DISTILL_ASSIGN_OR_RETURN(const TatTokenPlan plan, PlanTat(maps, options));
  const bool teacher_query = options.orientation == TatOrientation::kTeacherQuery;
  const FeatureMap& query_map = teacher_query ? maps.theta : maps.gamma;
  const FeatureMap& key_map = teacher_query ? maps.gamma : maps.theta;
  const TatTokens& query_tokens = teacher_query ? plan.teacher : plan.student;
  const TatTokens& key_tokens = teacher_query ? plan.student : plan.teacher;
  // In student_query both sides have the same tokens, so that value j may be the student's and target i the teacher's.

  TatReferenceResult out;
  const auto size = [&](const FeatureMap& map) { return maps.n * map.channels * map.height * map.width; };
  out.gamma.assign(size(maps.gamma), 0);
  out.phi.assign(size(maps.phi), 0);
  out.theta.assign(size(maps.theta), 0);
  std::vector<double>& query_gradient = teacher_query ? out.theta : out.gamma;
  std::vector<double>& key_gradient = teacher_query ? out.gamma : out.theta;
  TatResult& result = out.result;
  result.dropped_teacher_pixels = maps.target.height * maps.target.width -
                                  plan.groups * plan.patches * plan.teacher.count() * plan.teacher.window.count();
  result.dropped_student_pixels = maps.phi.height * maps.phi.width -
                                  plan.groups * plan.patches * plan.student.count() * plan.student.window.count();
  for (const auto& [map, name] :
       {std::pair{&maps.gamma, "gamma"}, {&maps.phi, "phi"}, {&maps.theta, "theta"}, {&maps.target, "target"}}) {
    if (result.nonfinite == nullptr && !AllFinite(*map, maps.n)) result.nonfinite = name;
  }
  if (maps.n == 0) return out;
  const double elements =
      static_cast<double>(plan.groups) * plan.patches * query_tokens.count() * maps.target.channels;  // per image

  for (int64_t n = 0; n < maps.n; ++n) {
    struct Group {
      Matrix q, k, v, w, o, r;
    };
    std::vector<Group> groups(plan.groups);
    double image_sum = 0;
    for (int64_t g = 0; g < plan.groups; ++g) {
      Group& s = groups[g];
      s.q = Gather(query_map, query_tokens, n, g, plan.patches);
      s.k = Gather(key_map, key_tokens, n, g, plan.patches);
      s.v = Gather(maps.phi, key_tokens, n, g, plan.patches);
      const Matrix f = Gather(maps.target, query_tokens, n, g, plan.patches);
      s.w = Multiply(s.q, Transposed(s.k));
      for (std::vector<double>& row : s.w) {
        for (double& x : row) x *= options.attention_scale;
        const double largest = *std::max_element(row.begin(), row.end());
        double sum = 0;
        for (double& x : row) sum += x = std::exp(x - largest);
        double entropy = 0;
        for (double& x : row) {
          x /= sum;
          if (x > 0) entropy -= x * std::log(x);
        }
        const double queries = static_cast<double>(maps.n) * plan.groups * query_tokens.count();
        result.mean_entropy += entropy / queries;
        result.mean_largest_weight += 1 / sum / queries;
      }
      s.o = Multiply(s.w, s.v);
      s.r = s.o;
      for (size_t i = 0; i < f.size(); ++i) {
        for (size_t c = 0; c < f[0].size(); ++c) {
          s.r[i][c] -= f[i][c];
          image_sum += s.r[i][c] * s.r[i][c];
        }
      }
    }
    double factor = 0;  // d loss / d o = factor * r
    switch (options.reduction) {
      case TatReduction::kMeanAll:
        result.loss += options.weight * image_sum / (elements * maps.n);
        factor = 2 * options.weight / (elements * maps.n);
        break;
      case TatReduction::kSumPerImage:
        result.loss += options.weight * image_sum / maps.n;
        factor = 2 * options.weight / maps.n;
        break;
      case TatReduction::kL2Norm:
        result.loss += options.weight * std::sqrt(image_sum) / maps.n;
        factor = image_sum > 0 ? options.weight / (std::sqrt(image_sum) * maps.n) : 0;
        break;
    }
    for (int64_t g = 0; g < plan.groups; ++g) {
      const Group& s = groups[g];
      const Matrix dv = Multiply(Transposed(s.w), s.r);
      Matrix ds = Multiply(s.r, Transposed(s.v));  // dw, then the softmax's derivative
      for (size_t i = 0; i < ds.size(); ++i) {
        double mean = 0;
        for (size_t j = 0; j < ds[i].size(); ++j) mean += s.w[i][j] * ds[i][j];
        for (size_t j = 0; j < ds[i].size(); ++j) ds[i][j] = options.attention_scale * s.w[i][j] * (ds[i][j] - mean);
      }
      Scatter(dv, maps.phi, key_tokens, n, g, plan.patches, factor, &out.phi);
      Scatter(Multiply(ds, s.k), query_map, query_tokens, n, g, plan.patches, factor, &query_gradient);
      Scatter(Multiply(Transposed(ds), s.q), key_map, key_tokens, n, g, plan.patches, factor, &key_gradient);
    }
  }
  if (result.nonfinite != nullptr) result.loss = std::numeric_limits<double>::quiet_NaN();
  return out;
}

}  // namespace distill
