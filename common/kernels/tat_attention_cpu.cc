#include <algorithm>
#include <atomic>
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
constexpr int64_t kChunkTokens = 1024;
// More are not expected.
constexpr int64_t kMostThreads = 1024;
// Features that are one thread's when a step's result is [features][queries].
constexpr int64_t kRun = 64;

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
         const ParallelFor& parallel_for, const Kernels& kernels)
      : options_(options),
        plan_(plan),
        add_(gradients.add),
        n_(maps.n),
        parallel_for_(parallel_for),
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
    kernels_.gemm(m, n, k, a, a_row, a_column, b, ldb, c, ldc, accumulate, panel);
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
            kernels_.softmax_backward(weights.get(), d_weights.get(), keys_, tq, scale(), dot.data());
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

  // Groups in blocks of kBlock tokens. A block of queries meets all keys at once: its weights are kept until its
  // gradients are done, so that nothing is computed twice. The steps of a block share their work among blocks of keys
  // or runs of features, such that each sum has one owner and a fixed order, whoever computes it.
  std::vector<BlockSums> RunLarge() {
    const int64_t units = n_ * plan_.groups;
    std::vector<BlockSums> sums(units * Blocks(queries_));
    std::atomic<int64_t> threads = 0;
    parallel_for_(0, kMostThreads, 1, [&](int64_t, int64_t) { ++threads; });
    if (units >= threads) {  // whole units for each thread, which then waits for no other
      parallel_for_(0, units, 1, [&](int64_t begin, int64_t end) {
        const LargeBuffers buffers(*this, 1);
        for (int64_t unit = begin; unit < end; ++unit) RunUnits(unit, 1, SerialFor, buffers, &sums);
      });
    } else {
      RunUnits(0, units, parallel_for_, LargeBuffers(*this, units), &sums);
    }
    return PerImage(sums);
  }

  static int64_t Blocks(int64_t tokens) { return (tokens + kBlock - 1) / kBlock; }
  static int64_t Runs(int64_t features) { return (features + kRun - 1) / kRun; }

  struct LargeBuffers {
    LargeBuffers(const Engine& engine, int64_t units) {
      const auto floats = [](int64_t count, bool wanted = true) { return NewFloats(wanted ? count : 0); };
      const bool learns_key = engine.wants(engine.key_), learns_value = engine.wants(engine.value_);
      const int64_t t = kBlock, d = engine.d_, c = engine.c_;
      const int64_t queries = units * Blocks(engine.queries_) * t, keys = units * Blocks(engine.keys_) * t;
      const int64_t d_padded = RoundUp(d, kPad), c_padded = RoundUp(c, kPad);
      q = floats(queries * d);
      k = floats(keys * d);
      v = floats(keys * c);
      f = floats(queries * c);
      w = floats(keys * t);
      ds = floats(keys * t, learns_key || engine.wants(engine.query_));
      m = floats(keys);
      l = floats(keys);
      h = floats(keys);
      dot = floats(units * Runs(c) * t);
      q_turned = floats(units * t * d_padded, learns_key);
      r_turned = floats(units * t * c_padded, learns_value);
      // What pads their rows stays 0.
      if (learns_key) std::fill(q_turned.get(), q_turned.get() + units * t * d_padded, 0.0f);
      if (learns_value) std::fill(r_turned.get(), r_turned.get() + units * t * c_padded, 0.0f);
      dk = floats(keys * d_padded, learns_key);
      dv = floats(keys * c_padded, learns_value);
    }

    // The maps' blocks, [unit][block][feature][t]. The queries' gradient takes the queries' place, o - f the target's.
    FloatArray q, k, v, f;
    // Of the current block of queries: weights and the logits' gradient, [unit][key][t];
    FloatArray w, ds;
    FloatArray m, l, h;             // of one block of keys, [unit][block][t];
    FloatArray dot;                 // of one run of features, [unit][run][t];
    FloatArray q_turned, r_turned;  // the queries and o - f, [unit][t][feature].
    // The other gradients: [unit][key][feature].
    FloatArray dk, dv;
  };

  // Units [first, first + count), sums of all units.
  void RunUnits(int64_t first, int64_t count, const ParallelFor& parallel_for, const LargeBuffers& buffers,
                std::vector<BlockSums>* all_sums) {
    const int64_t query_blocks = Blocks(queries_), key_blocks = Blocks(keys_), c_runs = Runs(c_), d_runs = Runs(d_);
    const int64_t t = kBlock, d_padded = RoundUp(d_, kPad), c_padded = RoundUp(c_, kPad);
    const bool logits_learn = wants(query_) || wants(key_);
    const auto& [q, k, v, f, w, ds, m, l, h, dot, q_turned, r_turned, dk, dv] = buffers;
    std::vector<BlockSums>& sums = *all_sums;
    std::vector<double> squares(count * c_runs);

    const auto pack = [&](const Side& side, int64_t blocks, int64_t tokens, int64_t features, float* to) {
      std::vector<const char*> found(count * blocks);
      parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
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
    const auto keys_in = [&](int64_t j) { return std::min(t, keys_ - j * t); };
    // f(unit of the round, part) for every unit and part.
    const auto for_each = [&](int64_t parts, const auto& body) {
      parallel_for(0, count * parts, 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        const FloatArray panel = NewFloats(PanelFloats(t));
        for (int64_t task = begin; task < end; ++task) body(task / parts, task % parts, panel.get());
      });
    };

    for (int64_t b = 0; b < query_blocks; ++b) {
      const int64_t tokens = std::min(t, queries_ - b * t);
      const auto query_block = [&](int64_t unit) { return q.get() + (unit * query_blocks + b) * d_ * t; };
      const auto residual_block = [&](int64_t unit) { return f.get() + (unit * query_blocks + b) * c_ * t; };
      const auto sum_of = [&](int64_t unit) -> BlockSums& { return sums[(first + unit) * query_blocks + b]; };

      // e = exp(logits - m), with the maxima of this block of keys alone.
      for_each(key_blocks, [&](int64_t unit, int64_t j, float* panel) {
        const int64_t block = unit * key_blocks + j;
        float *mb = m.get() + block * t, *lb = l.get() + block * t, *hb = h.get() + block * t;
        std::fill(mb, mb + t, -1e30f);
        std::fill(lb, lb + t, 0.0f);
        std::fill(hb, hb + t, 0.0f);
        float unused[kBlock];
        Multiply(keys_in(j), t, d_, k.get() + block * d_ * t, 1, t, query_block(unit), t, w.get() + block * t * t, t,
                 false, panel);
        kernels_.softmax_update(w.get() + block * t * t, keys_in(j), t, scale(), mb, lb, hb, unused);
      });
      // e to weights, with the maxima and sums of all keys.
      for_each(key_blocks, [&](int64_t unit, int64_t j, float*) {
        const int64_t block = unit * key_blocks;
        const FloatArray shrink = NewFloats(key_blocks * t);  // exp(m of a block - m)
        std::copy(m.get() + block * t, m.get() + (block + key_blocks) * t, shrink.get());
        float all_m[kBlock], all_l[kBlock] = {}, all_h[kBlock] = {}, unused[3][kBlock] = {};
        std::fill(all_m, all_m + t, -1e30f);
        kernels_.softmax_update(shrink.get(), key_blocks, t, 1, all_m, unused[0], unused[1], unused[2]);
        for (int64_t i = 0; i < key_blocks; ++i) {
          const float *mb = m.get() + (block + i) * t, *lb = l.get() + (block + i) * t, *hb = h.get() + (block + i) * t;
          const float* share = shrink.get() + i * t;
          for (int64_t x = 0; x < t; ++x) {
            all_l[x] += share[x] * lb[x];
            all_h[x] += share[x] * (hb[x] + (mb[x] - all_m[x]) * lb[x]);
          }
        }
        if (j == 0 && !FinishSoftmax(tokens, all_m, all_l, all_h, &sum_of(unit)) && sum_of(unit).nonfinite == nullptr) {
          sum_of(unit).nonfinite = "attention logits";
        }
        float factor[kBlock];
        for (int64_t x = 0; x < t; ++x) factor[x] = shrink[j * t + x] / all_l[x];
        kernels_.scale_columns(w.get() + (block + j) * t * t, keys_in(j), t, factor);
        if (!wants(key_)) return;
        const int64_t begin = d_ * j / key_blocks, rows = d_ * (j + 1) / key_blocks - begin;
        kernels_.transpose(query_block(unit) + begin * t, rows, t, t, q_turned.get() + unit * t * d_padded + begin,
                           d_padded);
      });
      // o = w v; f becomes o - f.
      for_each(c_runs, [&](int64_t unit, int64_t run, float* panel) {
        const int64_t begin = run * kRun, rows = std::min(kRun, c_ - begin);
        float o[kRun * kBlock];
        for (int64_t j = 0; j < key_blocks; ++j) {
          const int64_t block = unit * key_blocks + j;
          Multiply(rows, t, keys_in(j), v.get() + (block * c_ + begin) * t, t, 1, w.get() + block * t * t, t, o, t,
                   j > 0, panel);
        }
        float* const dots = dot.get() + (unit * c_runs + run) * t;
        std::fill(dots, dots + t, 0.0f);
        float* const fb = residual_block(unit) + begin * t;
        squares[unit * c_runs + run] = kernels_.residual(o, fb, rows, t, tokens, dots);
        if (!wants(value_)) return;
        kernels_.transpose(fb, rows, t, t, r_turned.get() + unit * t * c_padded + begin, c_padded);
      });
      for (int64_t unit = 0; unit < count; ++unit) {
        for (int64_t run = 0; run < c_runs; ++run) sum_of(unit).squares += squares[unit * c_runs + run];
      }
      if (!backward()) continue;
      // The logits' gradient; then the keys' and the values', which add up over the blocks of queries.
      for_each(key_blocks, [&](int64_t unit, int64_t j, float* panel) {
        const int64_t block = unit * key_blocks + j, here = keys_in(j);
        const float* const wb = w.get() + block * t * t;
        if (logits_learn) {
          float dots[kBlock] = {};
          for (int64_t run = 0; run < c_runs; ++run) {
            for (int64_t x = 0; x < t; ++x) dots[x] += dot[(unit * c_runs + run) * t + x];
          }
          float* const dsb = ds.get() + block * t * t;
          Multiply(here, t, c_, v.get() + block * c_ * t, 1, t, residual_block(unit), t, dsb, t, false, panel);
          kernels_.softmax_backward(wb, dsb, here, t, scale(), dots);
          if (wants(key_)) {
            Multiply(here, d_padded, tokens, dsb, t, 1, q_turned.get() + unit * t * d_padded, d_padded,
                     dk.get() + block * t * d_padded, d_padded, b > 0, panel);
          }
        }
        if (wants(value_)) {
          Multiply(here, c_padded, tokens, wb, t, 1, r_turned.get() + unit * t * c_padded, c_padded,
                   dv.get() + block * t * c_padded, c_padded, b > 0, panel);
        }
      });
      if (!wants(query_)) continue;
      for_each(d_runs, [&](int64_t unit, int64_t run, float* panel) {
        const int64_t begin = run * kRun, rows = std::min(kRun, d_ - begin);
        for (int64_t j = 0; j < key_blocks; ++j) {
          const int64_t block = unit * key_blocks + j;
          Multiply(rows, t, keys_in(j), k.get() + (block * d_ + begin) * t, t, 1, ds.get() + block * t * t, t,
                   query_block(unit) + begin * t, t, j > 0, panel);
        }
      });
    }

    if (wants(query_)) {
      for_each(query_blocks, [&](int64_t unit, int64_t b, float*) {
        const FloatArray staging = NewFloats(StagingFloats(t));
        Unpack(kernels_, PatchesOf(query_, first + unit), b * t, std::min(t, queries_ - b * t), t,
               q.get() + (unit * query_blocks + b) * d_ * t, factor((first + unit) / plan_.groups), add_,
               staging.get());
      });
    }
    const auto unpack_turned = [&](const Side& side, const float* gradient, int64_t features, int64_t padded) {
      for_each(key_blocks, [&](int64_t unit, int64_t j, float*) {
        const FloatArray staging = NewFloats(StagingFloats(t)), block = NewFloats(features * t);
        kernels_.transpose(gradient + (unit * key_blocks + j) * t * padded, keys_in(j), features, padded, block.get(),
                           t);
        Unpack(kernels_, PatchesOf(side, first + unit), j * t, keys_in(j), t, block.get(),
               factor((first + unit) / plan_.groups), add_, staging.get());
      });
    };
    if (wants(key_)) unpack_turned(key_, dk.get(), d_, d_padded);
    if (wants(value_)) unpack_turned(value_, dv.get(), c_, c_padded);
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
  const Kernels& kernels_;
  Side query_, key_, value_, target_;
  int64_t d_, c_, queries_, keys_;  // features of a token: logits, values; tokens of a group
  const std::vector<double>* factors_ = nullptr;
};

}  // namespace

StatusOr<TatResult> TatAttention(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients,
                                 const ParallelFor& parallel_for, SimdLevel level) {
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

  Engine engine(maps, options, gradients, plan, parallel_for, KernelsFor(level));
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
