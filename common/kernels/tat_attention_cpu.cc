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

using tat::AnchorGradient;
using tat::Kernels;
using tat::kPad;
using tat::kPanel;
using tat::Pack;
using tat::Patches;
using tat::Planes;
using tat::Side;
using tat::Unpack;
using tat::WriteMode;
using tat::WriteRest;

// A group of at most this many tokens on either side is done as one block, its weights kept; larger ones in blocks of
// kBlock tokens.
constexpr int64_t kSmall = 256;
constexpr int64_t kBlock = 128;
// Small groups are done together until they have about so many tokens in all their patches.
constexpr int64_t kChunkTokens = 1024;
// More are not expected.
constexpr int64_t kMostThreads = 1024;
// Gradients of this many bytes, more than a core's own caches hold, are written past them: at 128x128 that takes a
// tenth off the kernel's time.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
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
  bool finite = true;  // the logits

  void Add(const BlockSums& other) {
    squares += other.squares;
    entropy += other.entropy;
    largest_weight += other.largest_weight;
    finite = finite && other.finite;
  }
};

// Turns running sums into statistics. A logit that is not finite shows in m or, where the maximum passes over it, in h.
void FinishSoftmax(int64_t count, const float* m, const float* l, const float* h, BlockSums* sums) {
  for (int64_t i = 0; i < count; ++i) {
    sums->finite = sums->finite && std::isfinite(m[i]) && std::isfinite(l[i]) && std::isfinite(h[i]);
    sums->entropy += std::log(static_cast<double>(l[i])) - static_cast<double>(h[i]) / l[i];
    sums->largest_weight += 1.0 / l[i];
  }
}
void Invert(int64_t t, float* l) {
  for (int64_t i = 0; i < t; ++i) l[i] = 1 / l[i];
}

// Ranges that the caller's threads take.
int64_t CountThreads(const ParallelFor& parallel_for) {
  std::atomic<int64_t> threads = 0;
  parallel_for(0, kMostThreads, 1, [&](int64_t, int64_t) { ++threads; });
  return threads;
}

// What the anchors add to the gradients of one image.
struct AnchorGradients {
  AnchorGradient gamma, phi, theta;
};

// One attention of every group of every image.
class Engine {
 public:
  Engine(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients, WriteMode mode,
         const TatTokenPlan& plan, const ParallelFor& parallel_for, const Kernels& kernels,
         const AnchorGradients& anchors = {})
      : options_(options), plan_(plan), mode_(mode), n_(maps.n), parallel_for_(parallel_for), kernels_(kernels) {
    const Side gamma{&maps.gamma, &plan.student, gradients.gamma, anchors.gamma};
    const Side theta{&maps.theta, &plan.teacher, gradients.theta, anchors.theta};
    const bool teacher_query = options.orientation == TatOrientation::kTeacherQuery;
    query_ = teacher_query ? theta : gamma;
    key_ = teacher_query ? gamma : theta;
    // In student_query the two sides have equal tokens, and value and target are read at the other side's indices.
    value_ = {&maps.phi, &plan.student, gradients.phi, anchors.phi};
    target_ = {&maps.target, &plan.teacher, nullptr, {}};
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
    for (size_t b = 0; b < blocks.size(); ++b) images[b / each].Add(blocks[b]);
    return images;
  }

  // Groups small enough to keep their weights: a few neighbouring ones per task (see PatchPixels), all on chip.
  std::vector<BlockSums> RunSmall() {
    const int64_t tq = RoundUp(queries_, kPad), tk = RoundUp(keys_, kPad), p = plan_.patches;
    const int64_t chunk = std::clamp<int64_t>(kChunkTokens / (p * std::max(tq, tk)), 1, plan_.groups);
    const int64_t chunks = (plan_.groups + chunk - 1) / chunk;
    std::vector<BlockSums> sums(n_ * plan_.groups);
    parallel_for_(0, n_ * chunks, 1, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      // All groups of a task, one after the other. Gradients take the place of their maps, except the keys': theirs lie
      // one group before, as the queries' still need the keys.
      const FloatArray qs = NewFloats(chunk * d_ * tq), ks = NewFloats((chunk + 1) * d_ * tk),
                       vs = NewFloats(chunk * c_ * tk), fs = NewFloats(chunk * c_ * tq);
      const FloatArray weights = NewFloats(chunk * tk * tq), d_weights = NewFloats(chunk * tk * tq);
      const FloatArray o = NewFloats(c_ / p * tq), turned = NewFloats(tk * tq);
      const FloatArray panel = NewFloats(PanelFloats(std::max(tq, tk))),
                       staging = NewFloats(StagingFloats(std::max(tq, tk)));
      std::vector<float> m(tq), l(tq), h(tq), unused(tq), dot(tq);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t n = task / chunks, first = task % chunks * chunk, groups = std::min(chunk, plan_.groups - first);
        const auto patches_of = [&](const Side& side) { return Patches{&side, n, first * p, groups * p, p}; };
        const auto pack = [&](const Side& side, int64_t tokens, int64_t t, float* to) {
          Pack(kernels_, patches_of(side), 0, tokens, t, to, staging.get());
        };
        const auto unpack = [&](const Side& side, int64_t tokens, int64_t t, const float* from) {
          if (wants(side)) Unpack(kernels_, patches_of(side), 0, tokens, t, from, factor(n), mode_, staging.get());
        };
        // Queries and keys, then values and targets, then queries and keys again: two maps at a time stay in the cache.
        pack(query_, queries_, tq, qs.get());
        pack(key_, keys_, tk, ks.get() + d_ * tk);
        for (int64_t g = 0; g < groups; ++g) {
          // Weights, transposed: [keys][queries].
          float* const w = weights.get() + g * tk * tq;
          Multiply(keys_, tq, d_, ks.get() + (g + 1) * d_ * tk, 1, tk, qs.get() + g * d_ * tq, tq, w, tq, false,
                   panel.get());
          std::fill(m.begin(), m.end(), -1e30f);
          std::fill(l.begin(), l.end(), 0.0f);
          std::fill(h.begin(), h.end(), 0.0f);
          kernels_.softmax_update(w, keys_, tq, scale(), m.data(), l.data(), h.data(), unused.data());
          FinishSoftmax(queries_, m.data(), l.data(), h.data(), &sums[n * plan_.groups + first + g]);
          Invert(tq, l.data());
          kernels_.scale_columns(w, keys_, tq, l.data());
        }
        pack(value_, keys_, tk, vs.get());
        pack(target_, queries_, tq, fs.get());
        for (int64_t g = 0; g < groups; ++g) {
          const float* const w = weights.get() + g * tk * tq;
          float *const dw = d_weights.get() + g * tk * tq, *const v = vs.get() + g * c_ * tk,
                       *const f = fs.get() + g * c_ * tq;
          // o = w v, some features at a time; f becomes o - f.
          const int64_t c = c_ / p;
          std::fill(dot.begin(), dot.end(), 0.0f);
          for (int64_t u = 0; u < p; ++u) {
            Multiply(c, tq, keys_, v + u * c * tk, tk, 1, w, tq, o.get(), tq, false, panel.get());
            sums[n * plan_.groups + first + g].squares +=
                kernels_.residual(o.get(), f + u * c * tq, c, tq, queries_, dot.data());
          }
          if (wants(query_) || wants(key_)) {
            Multiply(keys_, tq, c_, v, 1, tk, f, tq, dw, tq, false, panel.get());
            kernels_.softmax_backward(w, dw, keys_, tq, scale(), dot.data());
          }
          if (wants(value_)) {
            Turn(w, turned.get(), tq, tk);
            Multiply(c_, tk, queries_, f, tq, 1, turned.get(), tk, v, tk, false, panel.get());
          }
        }
        unpack(value_, keys_, tk, vs.get());
        for (int64_t g = 0; g < groups; ++g) {
          const float *const dw = d_weights.get() + g * tk * tq, *const k = ks.get() + (g + 1) * d_ * tk;
          float* const q = qs.get() + g * d_ * tq;
          if (wants(key_)) {
            Turn(dw, turned.get(), tq, tk);
            Multiply(d_, tk, queries_, q, tq, 1, turned.get(), tk, ks.get() + g * d_ * tk, tk, false, panel.get());
          }
          if (wants(query_)) Multiply(d_, tq, keys_, k, tk, 1, dw, tq, q, tq, false, panel.get());
        }
        unpack(query_, queries_, tq, qs.get());
        unpack(key_, keys_, tk, ks.get());
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
    if (units >= CountThreads(parallel_for_)) {  // whole units for each thread, which then waits for no other
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
      parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        const FloatArray staging = NewFloats(StagingFloats(t));
        for (int64_t task = begin; task < end; ++task) {
          const int64_t b = task % blocks;
          Pack(kernels_, PatchesOf(side, first + task / blocks), b * t, std::min(t, tokens - b * t), t,
               to + task * features * t, staging.get());
        }
      });
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
        if (j == 0) FinishSoftmax(tokens, all_m, all_l, all_h, &sum_of(unit));
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
               q.get() + (unit * query_blocks + b) * d_ * t, factor((first + unit) / plan_.groups), mode_,
               staging.get());
      });
    }
    const auto unpack_turned = [&](const Side& side, const float* gradient, int64_t features, int64_t padded) {
      for_each(key_blocks, [&](int64_t unit, int64_t j, float*) {
        const FloatArray staging = NewFloats(StagingFloats(t)), block = NewFloats(features * t);
        kernels_.transpose(gradient + (unit * key_blocks + j) * t * padded, keys_in(j), features, padded, block.get(),
                           t);
        Unpack(kernels_, PatchesOf(side, first + unit), j * t, keys_in(j), t, block.get(),
               factor((first + unit) / plan_.groups), mode_, staging.get());
      });
    };
    if (wants(key_)) unpack_turned(key_, dk.get(), d_, d_padded);
    if (wants(value_)) unpack_turned(value_, dv.get(), c_, c_padded);
  }

  Patches PatchesOf(const Side& side, int64_t unit) const {
    return {&side, unit / plan_.groups, unit % plan_.groups * plan_.patches, plan_.patches, plan_.patches};
  }

  float scale() const { return static_cast<float>(options_.attention_scale); }

  const TatOptions& options_;
  const TatTokenPlan& plan_;
  const WriteMode mode_;
  const int64_t n_;
  const ParallelFor& parallel_for_;
  const Kernels& kernels_;
  Side query_, key_, value_, target_;
  int64_t d_, c_, queries_, keys_;  // features of a token: logits, values; tokens of a group
  const std::vector<double>* factors_ = nullptr;
};

// The images' sums as a result, and what the gradients of their squares are multiplied by.
class Loss {
 public:
  Loss(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan)
      : options_(options), images_(static_cast<double>(maps.n)) {
    const TatTokens& tokens = options.orientation == TatOrientation::kTeacherQuery ? plan.teacher : plan.student;
    queries_ = static_cast<double>(plan.groups) * tokens.count();
    elements_ = queries_ * plan.patches * maps.target.channels;
    const auto used = [&](const TatTokens& side) {
      return plan.groups * plan.patches * side.count() * side.window.count();
    };
    result_.dropped_teacher_pixels = maps.target.height * maps.target.width - used(plan.teacher);
    result_.dropped_student_pixels = maps.phi.height * maps.phi.width - used(plan.student);
  }

  // d loss / d squares, twice, for each of the engine's images.
  std::vector<double> Factors(Engine* engine, int64_t images) const {
    switch (options_.reduction) {
      case TatReduction::kMeanAll:
        return std::vector<double>(images, 2 * options_.weight / (elements_ * images_));
      case TatReduction::kSumPerImage:
        return std::vector<double>(images, 2 * options_.weight / images_);
      case TatReduction::kL2Norm:
        break;
    }
    std::vector<double> factors;
    for (const BlockSums& image : engine->Run({})) {
      factors.push_back(image.squares > 0 ? options_.weight / (std::sqrt(image.squares) * images_) : 0);
    }
    return factors;
  }

  // In the images' order.
  void Add(const BlockSums& image) {
    switch (options_.reduction) {
      case TatReduction::kMeanAll:
        result_.loss += options_.weight * image.squares / (elements_ * images_);
        break;
      case TatReduction::kSumPerImage:
        result_.loss += options_.weight * image.squares / images_;
        break;
      case TatReduction::kL2Norm:
        result_.loss += options_.weight * std::sqrt(image.squares) / images_;
        break;
    }
    result_.mean_entropy += image.entropy / (queries_ * images_);
    result_.mean_largest_weight += image.largest_weight / (queries_ * images_);
    all_.Add(image);
  }

  // A NaN or infinity in a map makes logits or squares so: the maps need to be searched only then.
  TatResult Finish(const TatMaps& maps) {
    if (all_.finite && std::isfinite(all_.squares)) return result_;
    for (const auto& [map, name] :
         {std::pair{&maps.gamma, "gamma"}, {&maps.phi, "phi"}, {&maps.theta, "theta"}, {&maps.target, "target"}}) {
      if (result_.nonfinite == nullptr && !tat::AllFinite(*map, maps.n)) result_.nonfinite = name;
    }
    if (result_.nonfinite == nullptr && !all_.finite) result_.nonfinite = "attention logits";
    if (result_.nonfinite != nullptr) result_.loss = std::numeric_limits<double>::quiet_NaN();
    return result_;
  }

 private:
  const TatOptions& options_;
  const double images_;
  double queries_ = 0, elements_ = 0;  // of an image
  BlockSums all_;
  TatResult result_;
};

// Sizes of a pooled image's maps: its plan is that of a plain attention.
TatTokenPlan PooledPlan(const TatTokenPlan& plan) {
  TatTokenPlan pooled = plan;
  for (TatTokens* tokens : {&pooled.teacher, &pooled.student}) {
    tokens->window = {1, 1};
    tokens->map_height = tokens->height;
    tokens->map_width = tokens->width;
  }
  return pooled;
}

// The averaged maps of one image. Their gradients take their places: an engine that has one image and one group copies
// all that it reads of a map before it writes there.
class PooledImage {
 public:
  PooledImage(const TatMaps& image, const TatGradients& wanted, const TatTokenPlan& plan) : plan_(plan) {
    maps_.n = 1;
    const auto add = [&](const FeatureMap& map, const TatTokens& tokens, FeatureMap* pooled) {
      storage_.push_back(NewFloats(map.channels * tokens.count()));
      *pooled = {storage_.back().get(), ElementType::kFloat32, map.layout, map.channels, tokens.height, tokens.width};
      return storage_.back().get();
    };
    float* const gamma = add(image.gamma, plan.student, &maps_.gamma);
    float* const phi = add(image.phi, plan.student, &maps_.phi);
    float* const theta = add(image.theta, plan.teacher, &maps_.theta);
    if (image.target.data == image.theta.data) {  // theta is the identity
      maps_.target = maps_.theta;
    } else {
      add(image.target, plan.teacher, &maps_.target);
    }
    if (wanted.gamma != nullptr) gradients_.gamma = gamma;
    if (wanted.phi != nullptr) gradients_.phi = phi;
    if (wanted.theta != nullptr) gradients_.theta = theta;
  }

  void Fill(const TatMaps& image, const ParallelFor& parallel_for) {
    const auto pool = [&](const FeatureMap& from, const TatTokens& tokens, const FeatureMap& to) {
      parallel_for(0, Planes(to), 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        tat::Pool(from, tokens, 0, begin, end, static_cast<float*>(const_cast<void*>(to.data)));
      });
    };
    pool(image.gamma, plan_.student, maps_.gamma);
    pool(image.phi, plan_.student, maps_.phi);
    pool(image.theta, plan_.teacher, maps_.theta);
    if (maps_.target.data != maps_.theta.data) pool(image.target, plan_.teacher, maps_.target);
  }

  const TatMaps& maps() const { return maps_; }
  const TatGradients& gradients() const { return gradients_; }

  // The gradients as seen from the image.
  AnchorGradients Anchors() const {
    const auto of = [](const float* gradient, const TatTokens& tokens) {
      return AnchorGradient{gradient, tokens.height, tokens.width, tokens.window};
    };
    return {of(gradients_.gamma, plan_.student), of(gradients_.phi, plan_.student),
            of(gradients_.theta, plan_.teacher)};
  }

 private:
  const TatTokenPlan& plan_;
  std::vector<FloatArray> storage_;
  TatMaps maps_;
  TatGradients gradients_;
};

// Writes the gradients of the pixels that no patch of `plan` covers, which are all if there is no plan.
void WriteUncovered(const TatMaps& maps, const TatGradients& gradients, WriteMode mode, const TatTokenPlan* plan,
                    const AnchorGradients& anchors, const ParallelFor& parallel_for, const Kernels& kernels) {
  const auto write = [&](const FeatureMap& map, float* gradient, const AnchorGradient& anchor,
                         const TatTokens* tokens) {
    if (gradient == nullptr) return;
    int64_t rows = 0, columns = 0;
    if (tokens != nullptr) {
      rows = plan->groups * plan->patches / tokens->patch_columns * tokens->height;
      columns = tokens->patch_columns * tokens->width;
    }
    if (rows == map.height && columns == map.width) return;
    const Side side{&map, tokens, gradient, anchor};
    const int64_t planes = Planes(map);
    parallel_for(0, maps.n * planes, 1, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      for (int64_t i = begin; i < end;) {
        const int64_t plane = i % planes, count = std::min(planes - plane, end - i);
        WriteRest(kernels, side, i / planes, rows, columns, mode, plane, plane + count);
        i += count;
      }
    });
  };
  const TatTokens* const student = plan == nullptr ? nullptr : &plan->student;
  write(maps.gamma, gradients.gamma, anchors.gamma, student);
  write(maps.phi, gradients.phi, anchors.phi, student);
  write(maps.theta, gradients.theta, anchors.theta, plan == nullptr ? nullptr : &plan->teacher);
}

// f(image, parallel_for) for every image. Threads do whole images while there is one for each, so that none waits for
// another; they share the rest.
template <typename F>
void ForEachImage(int64_t images, const ParallelFor& parallel_for, const F& f) {
  const int64_t threads = CountThreads(parallel_for), alone = images / threads * threads;
  parallel_for(0, alone, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) f(image, SerialFor);
  });
  for (int64_t image = alone; image < images; ++image) f(image, parallel_for);
}

// One image of the maps, and its gradients.
TatMaps ImageOf(TatMaps maps, int64_t image) {
  maps.n = 1;
  for (FeatureMap* map : {&maps.gamma, &maps.phi, &maps.theta, &maps.target}) {
    map->data =
        static_cast<const char*>(map->data) + image * map->channels * map->height * map->width * SizeOf(map->type);
  }
  return maps;
}
TatGradients ImageOf(const TatMaps& maps, TatGradients gradients, int64_t image) {
  for (auto [gradient, map] :
       {std::pair{&gradients.gamma, &maps.gamma}, {&gradients.phi, &maps.phi}, {&gradients.theta, &maps.theta}}) {
    if (*gradient != nullptr) *gradient += image * map->channels * map->height * map->width;
  }
  return gradients;
}

bool AnyWanted(const TatGradients& gradients) {
  return gradients.gamma != nullptr || gradients.phi != nullptr || gradients.theta != nullptr;
}

WriteMode ModeOf(const TatMaps& maps) {
  const int64_t bytes = maps.n * maps.phi.channels * maps.phi.height * maps.phi.width * SizeOf(ElementType::kFloat32);
  return bytes >= kStreamBytes ? WriteMode::kStream : WriteMode::kSet;
}

// A loss in the making.
struct Term {
  Term(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan)
      : options(options), plan(plan), loss(maps, options, plan), sums(maps.n) {}

  std::vector<BlockSums> Run(Engine* engine, const TatGradients& gradients, int64_t images) const {
    return engine->Run(AnyWanted(gradients) ? loss.Factors(engine, images) : std::vector<double>());
  }
  TatResult Finish(const TatMaps& maps) {
    for (const BlockSums& image : sums) loss.Add(image);
    return loss.Finish(maps);
  }

  const TatOptions& options;
  const TatTokenPlan& plan;
  Loss loss;
  std::vector<BlockSums> sums;  // per image
};

// Image by image the anchors, then the patch groups (null: none), which take the anchors' gradients along.
void RunImages(const TatMaps& maps, const TatGradients& gradients, WriteMode mode, const ParallelFor& parallel_for,
               const Kernels& kernels, Term* patch_group, Term* anchor) {
  const TatTokenPlan pooled_plan = PooledPlan(anchor->plan);
  ForEachImage(maps.n, parallel_for, [&](int64_t n, const ParallelFor& threads) {
    const TatMaps image = ImageOf(maps, n);
    const TatGradients image_gradients = ImageOf(maps, gradients, n);
    PooledImage pooled(image, image_gradients, anchor->plan);
    pooled.Fill(image, threads);
    Engine on_anchors(pooled.maps(), anchor->options, pooled.gradients(), WriteMode::kSet, pooled_plan, threads,
                      kernels);
    anchor->sums[n] = anchor->Run(&on_anchors, gradients, 1)[0];
    const AnchorGradients anchors = pooled.Anchors();
    if (patch_group != nullptr) {
      Engine on_patches(image, patch_group->options, image_gradients, mode, patch_group->plan, threads, kernels,
                        anchors);
      patch_group->sums[n] = patch_group->Run(&on_patches, gradients, 1)[0];
    }
    WriteUncovered(image, image_gradients, mode, patch_group == nullptr ? nullptr : &patch_group->plan, anchors,
                   threads, kernels);
  });
}

}  // namespace

StatusOr<TatResult> TatAttention(const TatMaps& maps, const TatOptions& options, const TatGradients& gradients,
                                 const ParallelFor& parallel_for, SimdLevel level) {
  DISTILL_ASSIGN_OR_RETURN(const TatTokenPlan plan, PlanTat(maps, options));
  if (maps.n == 0) return TatResult();
  const Kernels& kernels = KernelsFor(level);
  const WriteMode mode = ModeOf(maps);
  Term term(maps, options, plan);
  if (options.mode == TatMode::kAnchor) {
    RunImages(maps, gradients, mode, parallel_for, kernels, nullptr, &term);
  } else {
    Engine engine(maps, options, gradients, mode, plan, parallel_for, kernels);
    term.sums = term.Run(&engine, gradients, maps.n);
    WriteUncovered(maps, gradients, mode, &plan, {}, parallel_for, kernels);
  }
  return term.Finish(maps);
}

StatusOr<TatHierarchicalResult> TatHierarchical(const TatMaps& maps, const TatOptions& patch_group,
                                                const TatOptions& anchor, const TatGradients& gradients,
                                                const ParallelFor& parallel_for, SimdLevel level) {
  if (patch_group.mode != TatMode::kPatchGroup || anchor.mode != TatMode::kAnchor) {
    return absl::InvalidArgumentError("tat: a hierarchical loss is one of mode patch_group and one of mode anchor");
  }
  DISTILL_ASSIGN_OR_RETURN(const TatTokenPlan patch_plan, PlanTat(maps, patch_group));
  DISTILL_ASSIGN_OR_RETURN(const TatTokenPlan anchor_plan, PlanTat(maps, anchor));
  if (maps.n == 0) return TatHierarchicalResult();
  Term patch_term(maps, patch_group, patch_plan), anchor_term(maps, anchor, anchor_plan);
  RunImages(maps, gradients, ModeOf(maps), parallel_for, KernelsFor(level), &patch_term, &anchor_term);
  return TatHierarchicalResult{patch_term.Finish(maps), anchor_term.Finish(maps)};
}

}  // namespace distill
