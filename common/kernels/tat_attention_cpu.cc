#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/kernels/float_array.h"
#include "common/kernels/flush_denormals.h"
#include "common/kernels/tat_attention.h"
#include "common/kernels/tat_attention_simd.h"
#include "common/kernels/tat_patches.h"

namespace distill {
namespace {

using tat::Kernels;
using tat::kPad;
using tat::kPanel;
using tat::Pack;
using tat::Patches;
using tat::Side;
using tat::Unpack;

// A group of at most this many tokens on either side is done as one block, its weights kept; larger ones in blocks of
// kBlock tokens.
constexpr int64_t kSmall = 256;
constexpr int64_t kBlock = 128;
// Small groups are done together until they have about so many tokens in all their patches.
constexpr int64_t kChunkTokens = 256;
// Blocks of queries that one round of units (samples or their groups) should offer to the threads.
constexpr int64_t kRoundBlocks = 64;

const Kernels& KernelsFor(SimdLevel level) {
#ifdef DISTILL_KERNELS_X86
  if (level == SimdLevel::kAvx512) return tat::Avx512Kernels();
  if (level == SimdLevel::kAvx2) return tat::Avx2Kernels();
#endif
  static_cast<void>(level);
  return tat::PortableKernels();
}

// Sums over queries of one block, added up in order at the end.
struct BlockSums {
  double squares = 0, entropy = 0, largest_weight = 0;
  const char* nonfinite = nullptr;
};

// Turns running sums into statistics, and l into 1 / l. False if a maximum or sum is not finite.
bool FinishSoftmax(int64_t count, const float* m, float* l, const float* h, BlockSums* sums) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    finite = finite && std::isfinite(m[i]) && std::isfinite(l[i]);
    sums->entropy += std::log(static_cast<double>(l[i])) - static_cast<double>(h[i]) / l[i];
    sums->largest_weight += 1.0 / l[i];
  }
  return finite;
}
void Invert(int64_t t, float* l) {
  for (int64_t i = 0; i < t; ++i) l[i] = 1 / l[i];
}

class Engine {
 public:
  Engine(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients, const TatTokenPlan& plan,
         const ParallelFor& parallel_for, const TatGemm& gemm, const Kernels& kernels)
      : options_(options),
        plan_(plan),
        add_(gradients.add),
        n_(maps.n),
        parallel_for_(parallel_for),
        gemm_(gemm),
        kernels_(kernels) {
    const Side gamma{&maps.gamma, &plan.student, gradients.gamma, "gamma"};
    const Side theta{&maps.theta, &plan.teacher, gradients.theta, "theta"};
    const bool teacher_query = options.orientation == TatOrientation::kTeacherQuery;
    query_ = teacher_query ? theta : gamma;
    key_ = teacher_query ? gamma : theta;
    // In student_query the two sides have equal tokens, and value and target are read at the other side's indices.
    value_ = {&maps.phi, &plan.student, gradients.phi, "phi"};
    target_ = {&maps.target, &plan.teacher, nullptr, "target"};
    d_ = plan.patches * maps.gamma.channels;
    c_ = plan.patches * maps.phi.channels;
    queries_ = query_.tokens->count();
    keys_ = key_.tokens->count();
  }

  // factors: per image, what the gradient of the sum of squares is multiplied by; empty: no gradients.
  // Returns sums per image.
  std::vector<BlockSums> Run(const std::vector<double>& factors) {
    factors_ = &factors;
    return queries_ <= kSmall && keys_ <= kSmall ? RunSmall() : RunLarge();
  }

 private:
  bool backward() const { return !factors_->empty(); }
  bool wants(const Side& side) const { return backward() && side.gradient != nullptr; }
  float factor(int64_t n) const { return static_cast<float>((*factors_)[n]); }

  void Multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_row, int64_t a_column, const float* b,
                int64_t ldb, float* c, int64_t ldc, bool accumulate, float* panel) const {
    if (gemm_ != nullptr) {
      gemm_(m, n, k, a, a_row, a_column, b, ldb, c, ldc, accumulate);
    } else {
      kernels_.gemm(m, n, k, a, a_row, a_column, b, ldb, c, ldc, accumulate, panel);
    }
  }

  int64_t StagingFloats(int64_t tokens) const { return std::max(d_, c_) / plan_.patches * tokens; }
  int64_t PanelFloats(int64_t tokens) const { return std::max({d_, c_, tokens}) * kPanel; }

  std::vector<BlockSums> PerImage(const std::vector<BlockSums>& blocks) const {
    const int64_t each = blocks.size() / n_;
    std::vector<BlockSums> images(n_);
    for (size_t b = 0; b < blocks.size(); ++b) {
      BlockSums& image = images[b / each];
      image.squares += blocks[b].squares;
      image.entropy += blocks[b].entropy;
      image.largest_weight += blocks[b].largest_weight;
      if (image.nonfinite == nullptr) image.nonfinite = blocks[b].nonfinite;
    }
    return images;
  }

  // Groups small enough to keep their weights: a few neighbouring ones per task (see PackTyped), then one at a time,
  // all on chip.
  std::vector<BlockSums> RunSmall() {
    const int64_t tq = RoundUp(queries_, kPad), tk = RoundUp(keys_, kPad), p = plan_.patches;
    const int64_t chunk = std::clamp<int64_t>(kChunkTokens / (p * std::max(tq, tk)), 1, plan_.groups);
    const int64_t chunks = (plan_.groups + chunk - 1) / chunk;
    std::vector<BlockSums> sums(n_ * plan_.groups);
    parallel_for_(0, n_ * chunks, 1, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      // Gradients take the place of their maps.
      const FloatArray qs = NewFloats(chunk * d_ * tq), ks = NewFloats(chunk * d_ * tk),
                       vs = NewFloats(chunk * c_ * tk);
      const FloatArray fs = NewFloats(chunk * c_ * tq), dk = NewFloats(d_ * tk);
      const FloatArray o = NewFloats(c_ / p * tq), weights = NewFloats(tk * tq), d_weights = NewFloats(tk * tq),
                       turned = NewFloats(tk * tq);
      const FloatArray panel = NewFloats(PanelFloats(std::max(tq, tk))),
                       staging = NewFloats(StagingFloats(std::max(tq, tk)));
      std::vector<float> m(tq), l(tq), h(tq), unused(tq), dot(tq);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / chunks, first = task % chunks * chunk, groups = std::min(chunk, plan_.groups - first);
        BlockSums* const chunk_sums = &sums[n * plan_.groups + first];
        const auto patches_of = [&](const Side& side) { return Patches{&side, n, first * p, groups * p}; };
        const auto pack = [&](const Side& side, int64_t tokens, int64_t t, float* to) {
          if (!Pack(kernels_, patches_of(side), 0, tokens, t, to, staging.get()) && chunk_sums->nonfinite == nullptr)
            chunk_sums->nonfinite = side.name;
        };
        pack(query_, queries_, tq, qs.get());
        pack(key_, keys_, tk, ks.get());
        pack(value_, keys_, tk, vs.get());
        pack(target_, queries_, tq, fs.get());
        for (int64_t g = 0; g < groups; ++g) {
          BlockSums& sum = chunk_sums[g];
          float *q = qs.get() + g * d_ * tq, *k = ks.get() + g * d_ * tk, *v = vs.get() + g * c_ * tk,
                *f = fs.get() + g * c_ * tq;
          // Weights, transposed: [keys][queries].
          Multiply(keys_, tq, d_, k, 1, tk, q, tq, weights.get(), tq, false, panel.get());
          std::fill(m.begin(), m.end(), -1e30f);
          std::fill(l.begin(), l.end(), 0.0f);
          std::fill(h.begin(), h.end(), 0.0f);
          std::fill(dot.begin(), dot.end(), 0.0f);
          kernels_.softmax_update(weights.get(), keys_, tq, scale(), m.data(), l.data(), h.data(), unused.data());
          if (!FinishSoftmax(queries_, m.data(), l.data(), h.data(), &sum) && sum.nonfinite == nullptr)
            sum.nonfinite = "attention logits";
          Invert(tq, l.data());
          kernels_.scale_columns(weights.get(), keys_, tq, l.data());
          // o = w v, patch by patch; f becomes o - f.
          const int64_t c = c_ / p;
          for (int64_t u = 0; u < p; ++u) {
            Multiply(c, tq, keys_, v + u * c * tk, tk, 1, weights.get(), tq, o.get(), tq, false, panel.get());
            sum.squares += kernels_.residual(o.get(), f + u * c * tq, c, tq, queries_, dot.data());
          }
          if (!backward()) continue;
          if (wants(query_) || wants(key_)) {
            Multiply(keys_, tq, c_, v, 1, tk, f, tq, d_weights.get(), tq, false, panel.get());
            kernels_.softmax_backward_by_column(weights.get(), d_weights.get(), keys_, tq, scale(), dot.data());
          }
          if (wants(value_)) {
            Turn(weights.get(), turned.get(), tq, tk);
            Multiply(c_, tk, queries_, f, tq, 1, turned.get(), tk, v, tk, false, panel.get());
          }
          if (wants(key_)) {
            // dk needs q and dq needs k, whose places they take.
            Turn(d_weights.get(), turned.get(), tq, tk);
            Multiply(d_, tk, queries_, q, tq, 1, turned.get(), tk, dk.get(), tk, false, panel.get());
          }
          if (wants(query_)) Multiply(d_, tq, keys_, k, tk, 1, d_weights.get(), tq, q, tq, false, panel.get());
          if (wants(key_)) std::memcpy(k, dk.get(), d_ * tk * sizeof(float));
        }
        if (!backward()) continue;
        const float image_factor = factor(n);
        if (wants(query_))
          Unpack(kernels_, patches_of(query_), 0, queries_, tq, qs.get(), image_factor, add_, staging.get());
        if (wants(key_)) Unpack(kernels_, patches_of(key_), 0, keys_, tk, ks.get(), image_factor, add_, staging.get());
        if (wants(value_))
          Unpack(kernels_, patches_of(value_), 0, keys_, tk, vs.get(), image_factor, add_, staging.get());
      }
    });
    return PerImage(sums);
  }

  // [keys][tq] to [queries][tk], zero beyond the keys.
  void Turn(const float* from, float* to, int64_t tq, int64_t tk) const {
    kernels_.transpose(from, keys_, queries_, tq, to, tk);
    for (int64_t i = 0; i < queries_; ++i) std::fill(to + i * tk + keys_, to + (i + 1) * tk, 0.0f);
  }

  // Groups in blocks of kBlock tokens. The four maps of a round of groups are copied, block after block; then each
  // block of queries streams the keys past (forward, and the queries' gradient), then each block of keys streams the
  // queries past (the other gradients).
  std::vector<BlockSums> RunLarge() {
    const int64_t query_blocks = (queries_ + kBlock - 1) / kBlock, key_blocks = (keys_ + kBlock - 1) / kBlock;
    const int64_t units = n_ * plan_.groups, round = std::clamp<int64_t>(kRoundBlocks / query_blocks, 1, units);
    const int64_t t = kBlock;
    const FloatArray q = NewFloats(round * query_blocks * d_ * t), k = NewFloats(round * key_blocks * d_ * t);
    const FloatArray v = NewFloats(round * key_blocks * c_ * t), f = NewFloats(round * query_blocks * c_ * t);
    const FloatArray m = NewFloats(round * query_blocks * t), l = NewFloats(round * query_blocks * t);
    const FloatArray dot = NewFloats(round * query_blocks * t);
    std::vector<BlockSums> sums(units * query_blocks);

    for (int64_t first = 0; first < units; first += round) {
      const int64_t count = std::min(round, units - first);
      const auto pack = [&](const Side& side, int64_t blocks, int64_t tokens, int64_t features, float* to) {
        std::vector<const char*> found(count * blocks);
        parallel_for_(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
          const FloatArray staging = NewFloats(StagingFloats(t));
          for (int64_t task = begin; task < end; ++task) {
            const int64_t unit = first + task / blocks, b = task % blocks;
            if (!Pack(kernels_, PatchesOf(side, unit), b * t, std::min(t, tokens - b * t), t, to + task * features * t,
                      staging.get())) {
              found[task] = side.name;
            }
          }
        });
        for (int64_t task = 0; task < count * blocks; ++task) {
          BlockSums& sum = sums[(first + task / blocks) * query_blocks];
          if (found[task] != nullptr && sum.nonfinite == nullptr) sum.nonfinite = found[task];
        }
      };
      pack(query_, query_blocks, queries_, d_, q.get());
      pack(key_, key_blocks, keys_, d_, k.get());
      pack(value_, key_blocks, keys_, c_, v.get());
      pack(target_, query_blocks, queries_, c_, f.get());

      parallel_for_(0, count * query_blocks, 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        const FloatArray s = NewFloats(t * t), ds = NewFloats(t * t), o = NewFloats(std::max(c_, d_) * t),
                         panel = NewFloats(PanelFloats(t));
        const FloatArray staging = NewFloats(StagingFloats(t));
        std::vector<float> h(t), rescale(t);
        for (int64_t task = begin; task < end; ++task) {
          const int64_t unit = task / query_blocks, b = task % query_blocks, tokens = std::min(t, queries_ - b * t);
          const float* qb = q.get() + task * d_ * t;
          float* fb = f.get() + task * c_ * t;
          float *mb = m.get() + task * t, *lb = l.get() + task * t, *db = dot.get() + task * t;
          BlockSums& sum = sums[first * query_blocks + task];
          std::fill(mb, mb + t, -1e30f);
          std::fill(lb, lb + t, 0.0f);
          std::fill(db, db + t, 0.0f);
          std::fill(h.begin(), h.end(), 0.0f);
          for (int64_t j = 0; j < key_blocks; ++j) {
            const int64_t kb = unit * key_blocks + j, here = std::min(t, keys_ - j * t);
            Multiply(here, t, d_, k.get() + kb * d_ * t, 1, t, qb, t, s.get(), t, false, panel.get());
            kernels_.softmax_update(s.get(), here, t, scale(), mb, lb, h.data(), rescale.data());
            if (j > 0) kernels_.scale_columns(o.get(), c_, t, rescale.data());
            Multiply(c_, t, here, v.get() + kb * c_ * t, t, 1, s.get(), t, o.get(), t, j > 0, panel.get());
          }
          if (!FinishSoftmax(tokens, mb, lb, h.data(), &sum) && sum.nonfinite == nullptr)
            sum.nonfinite = "attention logits";
          Invert(t, lb);
          kernels_.scale_columns(o.get(), c_, t, lb);
          sum.squares += kernels_.residual(o.get(), fb, c_, t, tokens, db);
          if (!wants(query_)) continue;
          float* dq = o.get();
          for (int64_t j = 0; j < key_blocks; ++j) {
            const int64_t kb = unit * key_blocks + j, here = std::min(t, keys_ - j * t);
            Multiply(here, t, d_, k.get() + kb * d_ * t, 1, t, qb, t, s.get(), t, false, panel.get());
            kernels_.weights_by_column(s.get(), here, t, scale(), mb, lb);
            Multiply(here, t, c_, v.get() + kb * c_ * t, 1, t, fb, t, ds.get(), t, false, panel.get());
            kernels_.softmax_backward_by_column(s.get(), ds.get(), here, t, scale(), db);
            Multiply(d_, t, here, k.get() + kb * d_ * t, t, 1, ds.get(), t, dq, t, j > 0, panel.get());
          }
          Unpack(kernels_, PatchesOf(query_, first + unit), b * t, tokens, t, dq, factor((first + unit) / plan_.groups),
                 add_, staging.get());
        }
      });
      if (!wants(key_) && !wants(value_)) continue;
      parallel_for_(0, count * key_blocks, 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        const FloatArray s = NewFloats(t * t), ds = NewFloats(t * t), dk = NewFloats(d_ * t), dv = NewFloats(c_ * t);
        const FloatArray panel = NewFloats(PanelFloats(t)), staging = NewFloats(StagingFloats(t));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t unit = task / key_blocks, j = task % key_blocks, tokens = std::min(t, keys_ - j * t);
          const float *kb = k.get() + task * d_ * t, *vb = v.get() + task * c_ * t;
          for (int64_t b = 0; b < query_blocks; ++b) {
            const int64_t block = unit * query_blocks + b, here = std::min(t, queries_ - b * t);
            const float *qb = q.get() + block * d_ * t, *rb = f.get() + block * c_ * t;
            Multiply(here, t, d_, qb, 1, t, kb, t, s.get(), t, false, panel.get());
            kernels_.weights_by_row(s.get(), here, t, scale(), m.get() + block * t, l.get() + block * t);
            if (wants(value_)) Multiply(c_, t, here, rb, t, 1, s.get(), t, dv.get(), t, b > 0, panel.get());
            if (!wants(key_)) continue;
            Multiply(here, t, c_, rb, 1, t, vb, t, ds.get(), t, false, panel.get());
            kernels_.softmax_backward_by_row(s.get(), ds.get(), here, t, scale(), dot.get() + block * t);
            Multiply(d_, t, here, qb, t, 1, ds.get(), t, dk.get(), t, b > 0, panel.get());
          }
          const float image_factor = factor((first + unit) / plan_.groups);
          if (wants(value_))
            Unpack(kernels_, PatchesOf(value_, first + unit), j * t, tokens, t, dv.get(), image_factor, add_,
                   staging.get());
          if (wants(key_))
            Unpack(kernels_, PatchesOf(key_, first + unit), j * t, tokens, t, dk.get(), image_factor, add_,
                   staging.get());
        }
      });
    }
    return PerImage(sums);
  }

  Patches PatchesOf(const Side& side, int64_t unit) const {
    return {&side, unit / plan_.groups, unit % plan_.groups * plan_.patches, plan_.patches};
  }

  float scale() const { return static_cast<float>(options_.attention_scale); }

  const TatOptions& options_;
  const TatTokenPlan& plan_;
  const bool add_;
  const int64_t n_;
  const ParallelFor& parallel_for_;
  const TatGemm& gemm_;
  const Kernels& kernels_;
  Side query_, key_, value_, target_;
  int64_t d_, c_, queries_, keys_;  // features of a token: logits, values; tokens of a group
  const std::vector<double>* factors_ = nullptr;
};

}  // namespace

StatusOr<TatResult> TatAttention(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients,
                                 const ParallelFor& parallel_for, const TatGemm& gemm, SimdLevel level) {
  DISTILL_ASSIGN_OR_RETURN(const TatTokenPlan plan, PlanTat(maps, options));
  TatResult result;
  if (maps.n == 0) return result;
  const auto pixels_used = [&](const TatTokens& tokens) {
    return plan.groups * plan.patches * tokens.count() * tokens.window.count();
  };
  result.dropped_teacher_pixels = maps.target.height * maps.target.width - pixels_used(plan.teacher);
  result.dropped_student_pixels = maps.phi.height * maps.phi.width - pixels_used(plan.student);
  if (!gradients.add) {
    // Dropped pixels keep these zeros.
    const auto zero = [&](float* gradient, const FeatureMap& map, int64_t dropped) {
      if (gradient != nullptr && dropped > 0) {
        std::memset(gradient, 0, maps.n * map.channels * map.height * map.width * sizeof(float));
      }
    };
    zero(gradients.gamma, maps.gamma, result.dropped_student_pixels);
    zero(gradients.phi, maps.phi, result.dropped_student_pixels);
    zero(gradients.theta, maps.theta, result.dropped_teacher_pixels);
  }

  Engine engine(maps, options, gradients, plan, parallel_for, gemm, KernelsFor(level));
  const bool backward = gradients.gamma != nullptr || gradients.phi != nullptr || gradients.theta != nullptr;
  const TatTokens& query_tokens = options.orientation == TatOrientation::kTeacherQuery ? plan.teacher : plan.student;
  const double queries = static_cast<double>(plan.groups) * query_tokens.count();  // per image
  const double elements = queries * plan.patches * maps.target.channels;
  const double images = static_cast<double>(maps.n);
  std::vector<double> factors;
  if (backward) {
    switch (options.reduction) {
      case TatReduction::kMeanAll:
        factors.assign(maps.n, 2 * options.weight / (elements * images));
        break;
      case TatReduction::kSumPerImage:
        factors.assign(maps.n, 2 * options.weight / images);
        break;
      case TatReduction::kL2Norm:
        for (const BlockSums& image : engine.Run({})) {
          factors.push_back(image.squares > 0 ? options.weight / (std::sqrt(image.squares) * images) : 0);
        }
        break;
    }
  }
  for (const BlockSums& image : engine.Run(factors)) {
    switch (options.reduction) {
      case TatReduction::kMeanAll:
        result.loss += options.weight * image.squares / (elements * images);
        break;
      case TatReduction::kSumPerImage:
        result.loss += options.weight * image.squares / images;
        break;
      case TatReduction::kL2Norm:
        result.loss += options.weight * std::sqrt(image.squares) / images;
        break;
    }
    result.mean_entropy += image.entropy / (queries * images);
    result.mean_largest_weight += image.largest_weight / (queries * images);
    if (result.nonfinite == nullptr) result.nonfinite = image.nonfinite;
  }
  if (result.nonfinite != nullptr) result.loss = std::numeric_limits<double>::quiet_NaN();
  return result;
}

}  // namespace distill
