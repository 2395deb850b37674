// The device side of tat_cuda.h. Included after device_cuda.h (or, by tests, the emulator).
//
// The maps' tokens are copied (pooled, cut into patches) into float matrices [group][feature][token]; a group is one
// attention of one image. All that follows works on tiles of kTile x kTile attention weights in shared memory:
//     Stats       the maximum and the sum of every query's weights, passing its keys
//     Accumulate  own += W other, where a block owns kTile tokens of one side, passes the tokens of the other side and
//                 makes the tile W of weights (or of their gradients) anew each time:
//                     kOutput    own queries  W = P    other v     then r = o - f
//                     kQueries   own queries  W = dS   other k
//                     kValues    own keys     W = P^T  other r
//                     kKeys      own keys     W = dS^T other q
//                 with P = exp(scale S - m)/l,  dS = scale P (r v^T - dot),  dot_i = sum_c r_ic o_ic.
// So attention weights are computed several times, and never stored.
#ifndef DISTILL_COMMON_CUDA_TAT_DEVICE_H_
#define DISTILL_COMMON_CUDA_TAT_DEVICE_H_

#include <math.h>
#include <cstdint>

#include "common/kernels/element_type.h"

namespace distill::cuda_tat {

inline constexpr int kThreads = 256;
inline constexpr int kTile = 64;
inline constexpr int kDepth = 16;  // features, or tokens, staged in shared memory at a time
inline constexpr int kSlab = 256;  // features of `own` that a block accumulates at a time

// A map and how its pixels become tokens (TatTokens of tat_attention.h).
struct Side {
  const void* map;
  float* gradient;  // or null; the map's layout
  ElementType type;
  bool channels_last;
  int64_t channels, height, width;
  int64_t patch_columns, token_rows, token_columns, window_height, window_width;
  int64_t groups, patches;  // per image; p
};

DISTILL_DEVICE int64_t Tokens(const Side& side) { return side.token_rows * side.token_columns; }
DISTILL_DEVICE int64_t Features(const Side& side) { return side.patches * side.channels; }

// Where the window of (group, feature, token) begins in the map, and the steps to its other pixels.
struct Window {
  int64_t offset, row, column;
};
DISTILL_DEVICE Window WindowOf(const Side& side, int64_t group, int64_t feature, int64_t token) {
  const int64_t image = group / side.groups, patch = group % side.groups * side.patches + feature / side.channels;
  const int64_t channel = feature % side.channels;
  const int64_t y = (patch / side.patch_columns * side.token_rows + token / side.token_columns) * side.window_height;
  const int64_t x = (patch % side.patch_columns * side.token_columns + token % side.token_columns) * side.window_width;
  const int64_t pixels = side.height * side.width;
  if (side.channels_last) {
    return {(image * pixels + y * side.width + x) * side.channels + channel, side.width * side.channels, side.channels};
  }
  return {(image * side.channels + channel) * pixels + y * side.width + x, side.width, 1};
}

// out [groups of all images][Features][Tokens], one thread per value.
template <typename T>
DISTILL_DEVICE void Pack(const Side& side, int64_t groups, float* out) {
  const int64_t index = device::BlockX() * kThreads + device::Thread();
  const int64_t tokens = Tokens(side), features = Features(side);
  if (index >= groups * features * tokens) return;
  const int64_t group = index / (features * tokens), rest = index % (features * tokens);
  // Neighbouring threads read neighbouring values.
  const int64_t feature = side.channels_last ? rest % features : rest / tokens;
  const int64_t token = side.channels_last ? rest / features : rest % tokens;
  const Window window = WindowOf(side, group, feature, token);
  float sum = 0;
  for (int64_t dy = 0; dy < side.window_height; ++dy) {
    for (int64_t dx = 0; dx < side.window_width; ++dx) {
      sum += ToFloat(static_cast<const T*>(side.map)[window.offset + dy * window.row + dx * window.column]);
    }
  }
  out[(group * features + feature) * tokens + token] = sum / static_cast<float>(side.window_height * side.window_width);
}

struct Args {
  const float *q, *k, *v;  // packed: [groups][d][queries], [groups][d][keys], [groups][c][keys]
  float* f;                // [groups][c][queries]: the target, from kOutput on r
  float *m, *inverse_l;    // [groups][queries]
  float* dot;              // [groups][queries]
  // Per block of kTile queries: sum of r^2, of the entropies, of the largest weights.
  double *squares, *entropy, *largest;
  const float* factors;  // per image: what d(sum of squares)/2 is multiplied by
  int64_t d, c, queries, keys;
  int64_t groups_per_image;
  float scale;
};

struct Shared {
  float a[kDepth][kTile], b[kDepth][kTile];
  float weights[kTile][kTile + 1];  // [other token][own token]
  float x[kDepth][kSlab];
};

DISTILL_DEVICE int64_t Tiles(int64_t tokens) { return (tokens + kTile - 1) / kTile; }

// sum[i][j] = sum over features of a[feature][a0 + 4 (thread / 16) + i] * b[feature][b0 + 4 (thread % 16) + j];
// a [features][na], b [features][nb]; tokens beyond na and nb count as 0.
DISTILL_DEVICE void Product(const float* a, int64_t na, int64_t a0, const float* b, int64_t nb, int64_t b0,
                            int64_t features, Shared* shared, float sum[4][4]) {
  const int row = device::Thread() / 16 * 4, column = device::Thread() % 16 * 4;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  }
  for (int64_t begin = 0; begin < features; begin += kDepth) {
    for (int k = device::Thread(); k < kDepth * kTile; k += kThreads) {
      const int64_t feature = begin + k / kTile, token = k % kTile;
      const bool exists = feature < features;
      shared->a[k / kTile][token] = exists && a0 + token < na ? a[feature * na + a0 + token] : 0.0f;
      shared->b[k / kTile][token] = exists && b0 + token < nb ? b[feature * nb + b0 + token] : 0.0f;
    }
    device::Sync();
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sum[i][j] = fmaf(shared->a[depth][row + i], shared->b[depth][column + j], sum[i][j]);
      }
    }
    device::Sync();
  }
}

// Block b does queries [kTile * (b % tiles), ...) of group b / tiles.
DISTILL_DEVICE void Stats(const Args& args, Shared* shared) {
  const int64_t tiles = Tiles(args.queries), group = device::BlockX() / tiles;
  const int64_t query0 = device::BlockX() % tiles * kTile;
  const float* const q = args.q + group * args.d * args.queries;
  const float* const k = args.k + group * args.d * args.keys;
  const int row = device::Thread() / 16 * 4, column = device::Thread() % 16 * 4;
  // Of query query0 + thread, in the first kTile threads: maximum, sum of e = exp(x - m), sum of e (x - m).
  float m = -INFINITY, l = 0, h = 0;
  for (int64_t key0 = 0; key0 < args.keys; key0 += kTile) {
    float sum[4][4];
    Product(q, args.queries, query0, k, args.keys, key0, args.d, shared, sum);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < 4; ++j) shared->weights[column + j][row + i] = args.scale * sum[i][j];
    }
    device::Sync();
    if (device::Thread() < kTile) {
      const int64_t keys = args.keys - key0 < kTile ? args.keys - key0 : kTile;
      float largest = m;
      for (int64_t j = 0; j < keys; ++j) largest = fmaxf(largest, shared->weights[j][device::Thread()]);
      if (l > 0) {
        const float shrink = expf(m - largest);
        h = shrink * fmaf(m - largest, l, h);
        l *= shrink;
      }
      m = largest;
      for (int64_t j = 0; j < keys; ++j) {
        const float x = shared->weights[j][device::Thread()] - m, e = expf(x);
        l += e;
        if (e > 0) h = fmaf(e, x, h);
      }
    }
    device::Sync();
  }
  if (device::Thread() < kTile) {
    const int64_t query = query0 + device::Thread();
    const bool exists = query < args.queries;
    if (exists) {
      args.m[group * args.queries + query] = m;
      args.inverse_l[group * args.queries + query] = 1 / l;
    }
    shared->x[0][device::Thread()] = exists ? logf(l) - h / l : 0;
    shared->x[1][device::Thread()] = exists ? 1 / l : 0;
  }
  device::Sync();
  if (device::Thread() == 0) {
    double entropy = 0, largest = 0;
    for (int i = 0; i < kTile; ++i) {
      entropy += shared->x[0][i];
      largest += shared->x[1][i];
    }
    args.entropy[device::BlockX()] = entropy;
    args.largest[device::BlockX()] = largest;
  }
}

enum class Kind { kOutput, kQueries, kValues, kKeys };

// The tile of weights between own tokens from own0 and other tokens from other0, into shared->weights.
template <Kind kKind>
DISTILL_DEVICE void WeightTile(const Args& args, int64_t group, int64_t own0, int64_t other0, Shared* shared) {
  constexpr bool kOwnQueries = kKind == Kind::kOutput || kKind == Kind::kQueries;
  const float* const q = args.q + group * args.d * args.queries;
  const float* const k = args.k + group * args.d * args.keys;
  const float* const v = args.v + group * args.c * args.keys;
  const float* const r = args.f + group * args.c * args.queries;
  const int64_t own = kOwnQueries ? args.queries : args.keys, other = kOwnQueries ? args.keys : args.queries;
  const int row = device::Thread() / 16 * 4, column = device::Thread() % 16 * 4;
  float logits[4][4], slope[4][4];
  Product(kOwnQueries ? q : k, own, own0, kOwnQueries ? k : q, other, other0, args.d, shared, logits);
  if constexpr (kKind == Kind::kQueries || kKind == Kind::kKeys) {
    Product(kOwnQueries ? r : v, own, own0, kOwnQueries ? v : r, other, other0, args.c, shared, slope);
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int64_t own_token = own0 + row + i, other_token = other0 + column + j;
      float weight = 0;
      if (own_token < own && other_token < other) {
        const int64_t query = group * args.queries + (kOwnQueries ? own_token : other_token);
        weight = expf(args.scale * logits[i][j] - args.m[query]) * args.inverse_l[query];
        if constexpr (kKind == Kind::kQueries || kKind == Kind::kKeys) {
          weight *= args.scale * (slope[i][j] - args.dot[query]);
        }
      }
      shared->weights[column + j][row + i] = weight;
    }
  }
  device::Sync();
}

// Block b owns tokens [kTile * (b % tiles), ...) of group b / tiles. `side`: the map whose gradient this is (not read
// by kOutput).
template <Kind kKind>
DISTILL_DEVICE void Accumulate(const Args& args, const Side& side, Shared* shared) {
  constexpr bool kOwnQueries = kKind == Kind::kOutput || kKind == Kind::kQueries;
  const int64_t own = kOwnQueries ? args.queries : args.keys, other = kOwnQueries ? args.keys : args.queries;
  const int64_t features = kKind == Kind::kOutput || kKind == Kind::kValues ? args.c : args.d;
  const int64_t tiles = Tiles(own), group = device::BlockX() / tiles, own0 = device::BlockX() % tiles * kTile;
  const float* const x = (kKind == Kind::kOutput    ? args.v
                          : kKind == Kind::kQueries ? args.k
                          : kKind == Kind::kValues  ? args.f
                                                    : args.q) +
                         group * features * other;
  const int first_own = device::Thread() % 8 * 8, first_feature = device::Thread() / 8 * 8;
  float dot = 0, squares = 0;  // of own token own0 + thread, in the first kTile threads; kOutput
  for (int64_t slab = 0; slab < features; slab += kSlab) {
    float sum[8][8];  // [feature][own token]
    for (int i = 0; i < 8; ++i) {
      for (int j = 0; j < 8; ++j) sum[i][j] = 0;
    }
    for (int64_t other0 = 0; other0 < other; other0 += kTile) {
      // A single tile of weights stays for all slabs.
      if (slab == 0 || other > kTile) WeightTile<kKind>(args, group, own0, other0, shared);
      for (int begin = 0; begin < kTile && other0 + begin < other; begin += kDepth) {
        for (int k = device::Thread(); k < kDepth * kSlab; k += kThreads) {
          const int64_t feature = slab + k % kSlab, token = other0 + begin + k / kSlab;
          shared->x[k / kSlab][k % kSlab] = feature < features && token < other ? x[feature * other + token] : 0.0f;
        }
        device::Sync();
        for (int depth = 0; depth < kDepth; ++depth) {
#pragma unroll
          for (int i = 0; i < 8; ++i) {
#pragma unroll
            for (int j = 0; j < 8; ++j) {
              sum[i][j] =
                  fmaf(shared->x[depth][first_feature + i], shared->weights[begin + depth][first_own + j], sum[i][j]);
            }
          }
        }
        device::Sync();
      }
    }
    if constexpr (kKind == Kind::kOutput) {
      // r = o - f; its products with o and itself, by feature rows of threads first, then over those.
      float dots[8], parts[8];
      for (int j = 0; j < 8; ++j) {
        dots[j] = parts[j] = 0;
        for (int i = 0; i < 8; ++i) {
          const int64_t feature = slab + first_feature + i, token = own0 + first_own + j;
          if (feature >= features || token >= own) continue;
          float* const f = args.f + (group * features + feature) * own + token;
          const float r = sum[i][j] - *f;
          *f = r;
          dots[j] = fmaf(r, sum[i][j], dots[j]);
          parts[j] = fmaf(r, r, parts[j]);
        }
      }
      for (int which = 0; which < 2; ++which) {
        // x is free here: 32 rows of kTile values.
        float* const rows = &shared->x[0][0];
        for (int j = 0; j < 8; ++j) {
          rows[device::Thread() / 8 * kTile + first_own + j] = which == 0 ? dots[j] : parts[j];
        }
        device::Sync();
        if (device::Thread() < kTile) {
          float total = 0;
          for (int i = 0; i < kThreads / 8; ++i) total += rows[i * kTile + device::Thread()];
          (which == 0 ? dot : squares) += total;
        }
        device::Sync();
      }
    } else {
      const float factor =
          args.factors[group / args.groups_per_image] / static_cast<float>(side.window_height * side.window_width);
      for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 8; ++j) {
          const int64_t feature = slab + first_feature + i, token = own0 + first_own + j;
          if (feature >= features || token >= own) continue;
          const Window window = WindowOf(side, group, feature, token);
          for (int64_t dy = 0; dy < side.window_height; ++dy) {
            for (int64_t dx = 0; dx < side.window_width; ++dx) {
              float* const out = side.gradient + window.offset + dy * window.row + dx * window.column;
              *out = factor * sum[i][j];
            }
          }
        }
      }
    }
  }
  if constexpr (kKind == Kind::kOutput) {
    if (device::Thread() < kTile) {
      if (own0 + device::Thread() < own) args.dot[group * own + own0 + device::Thread()] = dot;
      shared->x[0][device::Thread()] = squares;  // 0 beyond the tokens
    }
    device::Sync();
    if (device::Thread() == 0) {
      double total = 0;
      for (int i = 0; i < kTile; ++i) total += shared->x[0][i];
      args.squares[device::BlockX()] = total;
    }
  }
}

// What the caller gets, on the device.
struct Results {
  float *loss, *mean_entropy, *mean_largest_weight;
};
enum class Reduction { kMeanAll, kSumPerImage, kL2Norm };

// From the blocks' sums to the loss and each image's factor; one block. factors [n]. elements, queries: per image.
DISTILL_DEVICE void Finish(const Args& args, int64_t n, Reduction reduction, double weight, double elements,
                           double queries, float* factors, Results results, double* scratch) {
  const int64_t blocks = args.groups_per_image * Tiles(args.queries);  // per image
  double loss = 0, entropy = 0, largest = 0;
  for (int64_t image = device::Thread(); image < n; image += kThreads) {
    double squares = 0;
    for (int64_t b = image * blocks; b < (image + 1) * blocks; ++b) {
      squares += args.squares[b];
      entropy += args.entropy[b];
      largest += args.largest[b];
    }
    double factor = 0;
    if (reduction == Reduction::kMeanAll) {
      loss += weight * squares / (elements * n);
      factor = 2 * weight / (elements * n);
    } else if (reduction == Reduction::kSumPerImage) {
      loss += weight * squares / n;
      factor = 2 * weight / n;
    } else {
      loss += weight * sqrt(squares) / n;
      factor = squares > 0 ? weight / (sqrt(squares) * n) : 0;
    }
    factors[image] = static_cast<float>(factor);
  }
  for (int which = 0; which < 3; ++which) {
    scratch[device::Thread()] = which == 0 ? loss : which == 1 ? entropy / (queries * n) : largest / (queries * n);
    device::Sync();
    if (device::Thread() == 0) {
      double total = 0;
      for (int i = 0; i < kThreads; ++i) total += scratch[i];
      *(which == 0   ? results.loss
        : which == 1 ? results.mean_entropy
                     : results.mean_largest_weight) = static_cast<float>(total);
    }
    device::Sync();
  }
}

}  // namespace distill::cuda_tat

#endif  // DISTILL_COMMON_CUDA_TAT_DEVICE_H_
