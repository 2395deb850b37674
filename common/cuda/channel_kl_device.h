// The device side of channel_kl_cuda.h. Included after device_cuda.h (or, by tests, the emulator).
//
// The arithmetic is that of common/kernels/channel_kl_simd.h, which explains it: with any shift c near the mean of
// (s - t)/T under p,  y = (s - t)/T - c,  u = e^y - 1,  w = e^y - 1 - y;  sums are kept relative to their own maximum m
// and shift and merged exactly; rows with |y| > kNearLimit are done in the max-relative ("far") form.
//
// A tile is kLanes rows: one row (channels first), or kLanes neighbouring channels of one image (channels last, so that
// the threads of a warp read neighbouring channels). Thread i of a block works on lane i % kLanes and on every
// (threads / kLanes)-th position. A segment is the part of a tile's positions that one block holds in shared memory.
#ifndef DISTILL_COMMON_CUDA_CHANNEL_KL_DEVICE_H_
#define DISTILL_COMMON_CUDA_CHANNEL_KL_DEVICE_H_

#include <math.h>
#include <cstdint>

#include "common/cuda/channel_kl_shared.h"
#include "common/kernels/element_type.h"

namespace distill::cuda_channel_kl {

inline constexpr float kNearLimit = 60;
inline constexpr float kNothing = -3.40282347e+38f;  // the maximum of no values

struct Args {
  const void* student;
  const void* teacher;
  const uint8_t* mask;  // [N, HW] or null
  void* gradient;       // or null
  double* divergence;   // [N*C]
  int64_t n, c, hw;
  bool channels_last;
  bool cross_entropy;
  double temperature;
  double gradient_factor;  // of q - p
  int64_t segment;         // positions of a tile per block
  int64_t segments;        // per tile
};

DISTILL_DEVICE Near Merge(const Near& x, const Near& y, double temperature) {
  if (x.z == 0 || y.z == 0) {
    Near out = x.z == 0 ? y : x;
    out.bad = x.bad + y.bad;
    return out;
  }
  Near out;
  out.m = fmaxf(x.m, y.m);
  out.bad = x.bad + y.bad;
  const double rx = exp((static_cast<double>(x.m) - out.m) / temperature);
  const double ry = exp((static_cast<double>(y.m) - out.m) / temperature);
  out.z = rx * x.z + ry * y.z;
  out.c = x.c == y.c ? x.c : (rx * x.z * x.c + ry * y.z * y.c) / out.z;
  out.zx = rx * (x.zx + (static_cast<double>(x.m) - out.m) / temperature * x.z) +
           ry * (y.zx + (static_cast<double>(y.m) - out.m) / temperature * y.z);
  out.zy = out.zw = 0;
  out.spread = 0;
  for (int side = 0; side < 2; ++side) {
    const Near& part = side == 0 ? x : y;
    const double r = side == 0 ? rx : ry;
    const double d = part.c - out.c, e = expm1(d);  // y grows by d
    out.zy += r * (part.zy + d * part.z);
    out.zw += r * (part.zw * (1 + e) + part.zy * e + part.z * (e - d));
    out.spread = fmaxf(out.spread, part.spread + fabsf(static_cast<float>(d)));
  }
  return out;
}

DISTILL_DEVICE Far Merge(const Far& x, const Far& y, double temperature) {
  if (x.zt == 0) return y;
  if (y.zt == 0) return x;
  Far out;
  out.mt = fmaxf(x.mt, y.mt);
  out.ms = fmaxf(x.ms, y.ms);
  out.zt = out.zs = out.a = 0;
  for (int side = 0; side < 2; ++side) {
    const Far& part = side == 0 ? x : y;
    const double dt = (static_cast<double>(part.mt) - out.mt) / temperature;
    const double ds = (static_cast<double>(part.ms) - out.ms) / temperature;
    out.zt += exp(dt) * part.zt;
    out.zs += exp(ds) * part.zs;
    out.a += exp(dt) * (part.a + (dt - ds) * part.zt);
  }
  return out;
}

DISTILL_DEVICE bool IsNear(const Near& row) { return row.spread <= kNearLimit; }    // false for NaN
DISTILL_DEVICE double Shift(const Near& row) { return (row.zy + row.zw) / row.z; }  // Y = E_p[e^y - 1]
DISTILL_DEVICE double NearDivergence(const Near& row) { return fmax(0.0, log1p(Shift(row)) - row.zy / row.z); }
DISTILL_DEVICE double FarDivergence(const Far& row) { return fmax(0.0, row.a / row.zt - log(row.zt) + log(row.zs)); }
DISTILL_DEVICE double Entropy(const Near& row) { return log(row.z) - row.zx / row.z; }

// e^y - 1 into *u and e^y - 1 - y into *w, without cancellation. Near 0 by the series of w.
DISTILL_DEVICE void Expm1(float y, float* u, float* w) {
  if (fabsf(y) < 0.5f) {
    float series = 1.0f / 362880;
    series = fmaf(series, y, 1.0f / 40320);
    series = fmaf(series, y, 1.0f / 5040);
    series = fmaf(series, y, 1.0f / 720);
    series = fmaf(series, y, 1.0f / 120);
    series = fmaf(series, y, 1.0f / 24);
    series = fmaf(series, y, 1.0f / 6);
    series = fmaf(series, y, 0.5f);
    *w = series * y * y;
    *u = y + *w;
  } else {
    *u = expm1f(y);
    *w = *u - y;
  }
}

struct Add {
  template <typename T>
  DISTILL_DEVICE T operator()(T x, T y) const {
    return x + y;
  }
};
struct Larger {
  DISTILL_DEVICE float operator()(float x, float y) const { return fmaxf(x, y); }
};

// The values of all threads with this thread's lane, combined in a fixed order; every thread gets its lane's.
// `scratch`: kThreads / kWarp * kLanes values.
template <int kLanes, typename T, typename Combine>
DISTILL_DEVICE T Reduce(T value, Combine combine, void* scratch) {
  T* const warps = static_cast<T*>(scratch);
  for (int mask = kWarp / 2; mask >= kLanes; mask /= 2) value = combine(value, device::Exchange(value, mask));
  const int lane = device::Thread() % kLanes;
  if (device::Thread() % kWarp < kLanes) warps[device::Thread() / kWarp * kLanes + lane] = value;
  device::Sync();
  value = warps[lane];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) value = combine(value, warps[warp * kLanes + lane]);
  device::Sync();  // scratch may be written again
  return value;
}

// Where a thread's values of a tile lie.
template <int kLanes>
struct Place {
  DISTILL_DEVICE Place(const Args& args, int64_t tile) {
    lane = device::Thread() % kLanes;
    first = device::Thread() / kLanes;
    if (args.channels_last) {
      const int64_t tiles = (args.c + kLanes - 1) / kLanes, channel = tile % tiles * kLanes + lane;
      image = tile / tiles;
      in_use = channel < args.c;
      row = image * args.c + channel;
      base = image * args.hw * args.c + channel;
      stride = args.c;
    } else {
      image = tile / args.c;
      in_use = true;
      row = tile;
      base = tile * args.hw;
      stride = 1;
    }
  }
  DISTILL_DEVICE int64_t At(int64_t position) const { return base + position * stride; }
  DISTILL_DEVICE bool Uses(const Args& args, int64_t position) const {
    return in_use && (args.mask == nullptr || args.mask[image * args.hw + position] != 0);
  }

  static constexpr int kStep = kThreads / kLanes;  // positions between two of a thread's
  int lane, first;
  int64_t image, row, base, stride;
  bool in_use;
};

// The part of the student's values that is taken off before they are compared with the teacher's: only a large constant
// between the maps needs it. With a mask the first position may hold anything, so there is none.
template <int kLanes, typename S, typename T>
DISTILL_DEVICE float StudentOffset(const Args& args, const Place<kLanes>& place) {
  if (args.mask != nullptr || !place.in_use) return 0;
  const float offset = ToFloat(static_cast<const S*>(args.student)[place.base]) -
                       ToFloat(static_cast<const T*>(args.teacher)[place.base]);
  return isfinite(offset) && fabsf(offset) > 16 * static_cast<float>(args.temperature) ? offset : 0.0f;
}

// Positions of a tile that a block works on.
struct Range {
  int64_t begin, end;
};
DISTILL_DEVICE Range SegmentRange(const Args& args, int64_t segment) {
  const int64_t begin = segment * args.segment < args.hw ? segment * args.segment : args.hw;
  return {begin, begin + args.segment < args.hw ? begin + args.segment : args.hw};
}

// Reads a segment once, leaves p and u of every position in shared memory ([position][lane]; 0 outside the mask), and
// returns the sums of the thread's lane.
template <int kLanes, typename S, typename T>
DISTILL_DEVICE Near ReadSegment(const Args& args, const Place<kLanes>& place, Range range, float* p, float* u,
                                void* scratch) {
  const S* const student = static_cast<const S*>(args.student);
  const T* const teacher = static_cast<const T*>(args.teacher);
  const float inverse_t = static_cast<float>(1 / args.temperature);
  const float offset = StudentOffset<kLanes, S, T>(args, place);
  const int64_t count = range.end - range.begin;
  Near out;
  float largest = kNothing;
  int bad = 0;
#pragma unroll 4
  for (int64_t i = place.first; i < count; i += place.kStep) {
    float t = kNothing, d = 0;
    if (place.Uses(args, range.begin + i)) {
      const int64_t at = place.At(range.begin + i);
      const float s = ToFloat(student[at]);
      t = ToFloat(teacher[at]);
      bad += !isfinite(s) || !isfinite(t);
      d = (s - offset - t) * inverse_t;
    }
    largest = fmaxf(largest, t);
    p[i * kLanes + place.lane] = t;
    u[i * kLanes + place.lane] = d;
  }
  out.m = Reduce<kLanes>(largest, Larger(), scratch);
  out.bad = Reduce<kLanes>(bad, Add(), scratch);

  const float exponent = static_cast<float>(1.4426950408889634 / args.temperature);
  float z = 0, zd = 0, zx = 0;
  for (int64_t i = place.first; i < count; i += place.kStep) {
    const float t = p[i * kLanes + place.lane];
    const float weight = t == kNothing ? 0.0f : exp2f((t - out.m) * exponent);
    p[i * kLanes + place.lane] = weight;
    z += weight;
    if (weight > 0) {
      zd = fmaf(weight, u[i * kLanes + place.lane], zd);
      zx = fmaf(weight, (t - out.m) * inverse_t, zx);
    }
  }
  out.z = Reduce<kLanes>(static_cast<double>(z), Add(), scratch);
  out.zx = Reduce<kLanes>(static_cast<double>(zx), Add(), scratch);
  const float c = static_cast<float>(Reduce<kLanes>(static_cast<double>(zd), Add(), scratch) / out.z);
  out.c = static_cast<double>(c) + static_cast<double>(offset) / args.temperature;

  float zy = 0, zw = 0, spread = 0;
  for (int64_t i = place.first; i < count; i += place.kStep) {
    const float weight = p[i * kLanes + place.lane];
    if (!place.Uses(args, range.begin + i)) continue;  // u is 0 already
    const float y = u[i * kLanes + place.lane] - c;
    float w;
    Expm1(y, &u[i * kLanes + place.lane], &w);
    zy = fmaf(weight, y, zy);
    zw = fmaf(weight, w, zw);
    spread = fmaxf(spread, fabsf(y));
  }
  out.zy = Reduce<kLanes>(static_cast<double>(zy), Add(), scratch);
  out.zw = Reduce<kLanes>(static_cast<double>(zw), Add(), scratch);
  out.spread = Reduce<kLanes>(spread, Larger(), scratch);
  return out;
}

// The far sums of a segment, read again from memory: few rows need them.
template <int kLanes, typename S, typename T>
DISTILL_DEVICE Far ReadSegmentFar(const Args& args, const Place<kLanes>& place, Range range, void* scratch) {
  const S* const student = static_cast<const S*>(args.student);
  const T* const teacher = static_cast<const T*>(args.teacher);
  const float inverse_t = static_cast<float>(1 / args.temperature);
  Far out;
  float largest_t = kNothing, largest_s = kNothing;
  for (int64_t i = range.begin + place.first; i < range.end; i += place.kStep) {
    if (!place.Uses(args, i)) continue;
    largest_t = fmaxf(largest_t, ToFloat(teacher[place.At(i)]));
    largest_s = fmaxf(largest_s, ToFloat(student[place.At(i)]));
  }
  out.mt = Reduce<kLanes>(largest_t, Larger(), scratch);
  out.ms = Reduce<kLanes>(largest_s, Larger(), scratch);
  double zt = 0, zs = 0, a = 0;
  for (int64_t i = range.begin + place.first; i < range.end; i += place.kStep) {
    if (!place.Uses(args, i)) continue;
    const float t = (ToFloat(teacher[place.At(i)]) - out.mt) * inverse_t;
    const float s = (ToFloat(student[place.At(i)]) - out.ms) * inverse_t;
    const float weight = expf(t);
    zt += weight;
    zs += expf(s);
    a += static_cast<double>(weight) * (t - s);
  }
  out.zt = Reduce<kLanes>(zt, Add(), scratch);
  out.zs = Reduce<kLanes>(zs, Add(), scratch);
  out.a = Reduce<kLanes>(a, Add(), scratch);
  return out;
}

// The gradient of a segment from its values in memory: the far form, rows without a value in use and rows that are not
// finite (both 0), and, where nothing was kept in shared memory, the near form.
template <int kLanes, typename S, typename T, typename G>
DISTILL_DEVICE void WriteGradientAgain(const Args& args, const Place<kLanes>& place, Range range, const Near& near,
                                       const Far& far) {
  if (!place.in_use) return;
  const S* const student = static_cast<const S*>(args.student);
  const T* const teacher = static_cast<const T*>(args.teacher);
  const float inverse_t = static_cast<float>(1 / args.temperature);
  const float offset = StudentOffset<kLanes, S, T>(args, place);
  const float c = static_cast<float>(near.c - static_cast<double>(offset) / args.temperature);
  const double rest = near.c - static_cast<double>(offset) / args.temperature - c;  // what float does not hold of c
  const bool zero = near.bad > 0 || near.z == 0 || args.hw == 1, is_near = IsNear(near);
  // Near: q - p = p (u - Y) / (1 + Y), with u from that of the float shift.
  const double factor = is_near ? args.gradient_factor / near.z / (1 + Shift(near)) : 0;
  const double e = expm1(-rest);
  const float alpha = static_cast<float>(factor * (1 + e)), beta = static_cast<float>(factor * (e - Shift(near)));
  const float far_t = static_cast<float>(args.gradient_factor / far.zt);
  const float far_s = static_cast<float>(args.gradient_factor / far.zs);
  for (int64_t i = range.begin + place.first; i < range.end; i += place.kStep) {
    float value = 0;
    if (!zero && place.Uses(args, i)) {
      const float s = ToFloat(student[place.At(i)]), t = ToFloat(teacher[place.At(i)]);
      if (is_near) {
        float u, w;
        Expm1((s - offset - t) * inverse_t - c, &u, &w);
        value = expf((t - near.m) * inverse_t) * fmaf(alpha, u, beta);
      } else {
        value = far_s * expf((s - far.ms) * inverse_t) - far_t * expf((t - far.mt) * inverse_t);
      }
    }
    FromFloat(value, static_cast<G*>(args.gradient) + place.At(i));
  }
}

DISTILL_DEVICE double Divergence(const Args& args, const Near& near, const Far& far) {
  if (near.bad > 0) return nan("");
  if (near.z == 0) return 0;
  const double divergence = args.hw == 1 ? 0 : IsNear(near) ? NearDivergence(near) : FarDivergence(far);
  return args.cross_entropy ? divergence + Entropy(near) : divergence;
}

// Forward and backward of one tile by a team of blocks, each with its segment in shared memory: one read of both maps,
// one write of the gradient. Block b of the grid is number b % size of team b / size.
// Shared memory: SharedBytes(segment, kLanes).
template <int kLanes, typename S, typename T, typename G, typename Team>
DISTILL_DEVICE void FusedTile(const Args& args, char* shared) {
  Near* const own_near = reinterpret_cast<Near*>(shared);
  Far* const own_far = reinterpret_cast<Far*>(own_near + kLanes);
  void* const scratch = own_far + kLanes;
  float* const p = reinterpret_cast<float*>(shared + SharedBytes(0, kLanes));
  float* const u = p + args.segment * kLanes;

  const int64_t tile = device::BlockX() / Team::Size();
  const Place<kLanes> place(args, tile);
  const Range range = SegmentRange(args, Team::Rank());
  const Near mine = ReadSegment<kLanes, S, T>(args, place, range, p, u, scratch);
  if (device::Thread() < kLanes) own_near[place.lane] = mine;
  Team::Sync();
  Near row = *Team::At(own_near + place.lane, 0);
  for (int rank = 1; rank < Team::Size(); ++rank)
    row = Merge(row, *Team::At(own_near + place.lane, rank), args.temperature);

  // The lanes of a tile may differ in what they need, but every block of a team sees the same rows: so all of them, and
  // all of their threads, agree whether any lane needs the far form.
  Far far = {1, 1, 0, 0, 0};
  const bool needs_far = row.bad == 0 && row.z > 0 && !IsNear(row);
  if (Reduce<1>(needs_far ? 1 : 0, Add(), scratch) > 0) {
    const Far part = ReadSegmentFar<kLanes, S, T>(args, place, range, scratch);
    if (device::Thread() < kLanes) own_far[place.lane] = part;
    Team::Sync();
    far = *Team::At(own_far + place.lane, 0);
    for (int rank = 1; rank < Team::Size(); ++rank)
      far = Merge(far, *Team::At(own_far + place.lane, rank), args.temperature);
  }
  Team::Sync();  // no block may end while another reads its shared memory

  if (Team::Rank() == 0 && device::Thread() < kLanes && place.in_use)
    args.divergence[place.row] = Divergence(args, row, far);
  if (args.gradient == nullptr) return;
  if (needs_far || row.bad > 0 || row.z == 0 || args.hw == 1) {
    WriteGradientAgain<kLanes, S, T, G>(args, place, range, row, far);
    return;
  }
  if (!place.in_use) return;
  // q - p from p and u relative to this block's maximum and shift.
  const double d = mine.c - row.c, e = expm1(d);
  const double share = mine.z == 0 ? 0 : exp((static_cast<double>(mine.m) - row.m) / args.temperature);
  const double factor = args.gradient_factor * share / row.z / (1 + Shift(row));
  const float alpha = static_cast<float>(factor * (1 + e)), beta = static_cast<float>(factor * (e - Shift(row)));
  for (int64_t i = place.first; i < range.end - range.begin; i += place.kStep) {
    const int64_t k = i * kLanes + place.lane;
    FromFloat(mine.z == 0 ? 0.0f : p[k] * fmaf(alpha, u[k], beta),
              static_cast<G*>(args.gradient) + place.At(range.begin + i));
  }
}

// Rows too long for a team: three kernels. First the sums of every segment; block b does segment b % segments of tile
// b / segments. near and far: [tiles][segments][kLanes].
template <int kLanes, typename S, typename T>
DISTILL_DEVICE void SegmentSums(const Args& args, Near* near, Far* far, char* shared) {
  float* const p = reinterpret_cast<float*>(shared + SharedBytes(0, kLanes));
  const int64_t tile = device::BlockX() / args.segments, segment = device::BlockX() % args.segments;
  const Place<kLanes> place(args, tile);
  const Range range = SegmentRange(args, segment);
  const Near near_sums = ReadSegment<kLanes, S, T>(args, place, range, p, p + args.segment * kLanes, shared);
  const Far far_sums = ReadSegmentFar<kLanes, S, T>(args, place, range, shared);
  if (device::Thread() < kLanes) {
    near[device::BlockX() * kLanes + place.lane] = near_sums;
    far[device::BlockX() * kLanes + place.lane] = far_sums;
  }
}

// Then each tile's segments are merged, into its first; one thread per lane of a tile, kThreads per block.
template <int kLanes>
DISTILL_DEVICE void MergeSegments(const Args& args, int64_t tiles, Near* near, Far* far) {
  const int64_t index = device::BlockX() * kThreads + device::Thread();
  if (index >= tiles * kLanes) return;
  const int64_t tile = index / kLanes, lane = index % kLanes, first = tile * args.segments * kLanes + lane;
  Near row = near[first];
  Far row_far = far[first];
  for (int64_t k = 1; k < args.segments; ++k) {
    row = Merge(row, near[first + k * kLanes], args.temperature);
    row_far = Merge(row_far, far[first + k * kLanes], args.temperature);
  }
  near[first] = row;
  far[first] = row_far;
  int64_t out = tile;
  if (args.channels_last) {
    const int64_t per_image = (args.c + kLanes - 1) / kLanes, channel = tile % per_image * kLanes + lane;
    if (channel >= args.c) return;
    out = tile / per_image * args.c + channel;
  }
  args.divergence[out] = Divergence(args, row, row_far);
}

// Then the gradient, from a second read of the maps.
template <int kLanes, typename S, typename T, typename G>
DISTILL_DEVICE void SegmentGradient(const Args& args, const Near* near, const Far* far) {
  const int64_t tile = device::BlockX() / args.segments, segment = device::BlockX() % args.segments;
  const Place<kLanes> place(args, tile);
  const int64_t first = tile * args.segments * kLanes + place.lane;
  WriteGradientAgain<kLanes, S, T, G>(args, place, SegmentRange(args, segment), near[first], far[first]);
}

// Last: loss = scale * sum of the divergences, in a fixed order, by one block. scratch: kThreads doubles.
DISTILL_DEVICE void SumRows(const double* divergence, int64_t rows, double scale, float* loss, int32_t* nonfinite_rows,
                            void* scratch) {
  double sum = 0;
  int bad = 0;
  for (int64_t row = device::Thread(); row < rows; row += kThreads) {
    bad += isnan(divergence[row]);
    sum += divergence[row];
  }
  sum = Reduce<1>(sum, Add(), scratch);
  bad = Reduce<1>(bad, Add(), scratch);
  if (device::Thread() != 0) return;
  *loss = static_cast<float>(scale * sum);
  if (nonfinite_rows != nullptr) *nonfinite_rows = bad;
}

}  // namespace distill::cuda_channel_kl

#endif  // DISTILL_COMMON_CUDA_CHANNEL_KL_DEVICE_H_
