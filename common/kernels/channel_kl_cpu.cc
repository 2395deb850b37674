#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "common/kernels/channel_kl.h"
#include "common/kernels/channel_kl_simd.h"
#include "common/kernels/float_array.h"
#include "common/kernels/flush_denormals.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using channel_kl::Block;
using channel_kl::ColumnMaps;
using channel_kl::Columns;
using channel_kl::FarSums;
using channel_kl::kBlock;
using channel_kl::kColumnBlock;
using channel_kl::Kernels;
using channel_kl::kMaxLanes;
using channel_kl::kNearLimit;
using channel_kl::Scale;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
// A gradient larger than this is written past the caches: they would not hold it until it is read.
constexpr int64_t kStreamBytes = int64_t{16} << 20;
// Channels last: values per task, and values in flight between the two sweeps over a group of samples.
constexpr int64_t kSegmentValues = int64_t{1} << 18;
constexpr int64_t kGroupValues = int64_t{1} << 22;

const Kernels& KernelsFor(SimdLevel level) {
#ifdef DISTILL_KERNELS_X86
  if (level == SimdLevel::kAvx512) return channel_kl::Avx512Kernels();
  if (level == SimdLevel::kAvx2) return channel_kl::Avx2Kernels();
#endif
  static_cast<void>(level);
  return channel_kl::PortableKernels();
}

const void* At(const void* map, ElementType type, int64_t index) {
  return static_cast<const char*>(map) + index * SizeOf(type);
}
void* At(void* map, ElementType type, int64_t index) { return static_cast<char*>(map) + index * SizeOf(type); }

float Value(const void* map, ElementType type, int64_t index) {
  return DispatchElement(
      type, [&](auto* tag) { return ToFloat(static_cast<const std::remove_pointer_t<decltype(tag)>*>(map)[index]); });
}
void SetValue(void* map, ElementType type, int64_t index, float value) {
  DispatchElement(type, [&](auto* tag) { FromFloat(value, static_cast<decltype(tag)>(map) + index); });
}

// The shift taken off the student before it is compared with the teacher. Only a large constant between the maps needs
// one: a shift rounds, and maps that nearly agree are compared exactly without it.
float StudentOffset(float student, float teacher, double temperature) {
  const float offset = student - teacher;
  return std::isfinite(offset) && std::fabs(offset) > 16 * temperature ? offset : 0.0f;
}

// A row in the near form, from the sums of its blocks.
struct Fit {
  bool near = false;  // false: a difference beyond kNearLimit, or something not finite; the rest is unset
  float m = 0;        // the largest t
  double c = 0;       // the common shift
  double z = 0;       // sum p, relative to m
  double y = 0;       // Y = E_p[e^(y) - 1]
  double divergence = 0;
};

// exp((b.m - m) / T): 0 for a block outside the mask.
double BlockShare(const Block& b, float m, double temperature) {
  if (b.z == 0) return 0;
  return b.m == m ? 1 : std::exp((static_cast<double>(b.m) - m) / temperature);
}

// Moves the blocks' sums to a common maximum and shift, exactly, and adds them. REQUIRES: some block has a position in
// use.
Fit FitRow(const Block* blocks, int64_t count, double temperature) {
  Fit fit;
  fit.m = channel_kl::kExcluded;
  for (int64_t k = 0; k < count; ++k) fit.m = std::max(fit.m, blocks[k].m);
  double zc = 0;
  for (int64_t k = 0; k < count; ++k) {
    const double z = BlockShare(blocks[k], fit.m, temperature) * blocks[k].z;
    if (z == 0) continue;
    fit.z += z;
    zc += z * blocks[k].c;
  }
  fit.c = zc / fit.z;
  // Any NaN or infinity in a block makes its shift one.
  if (!std::isfinite(fit.c)) return fit;
  double zy = 0, zw = 0;
  for (int64_t k = 0; k < count; ++k) {
    const Block& b = blocks[k];
    const double r = BlockShare(b, fit.m, temperature);
    const double d = b.c - fit.c;  // y grows by so much
    if (b.z == 0) continue;
    if (!(b.spread + std::fabs(d) <= kNearLimit)) return fit;
    const double e = d == 0 ? 0 : std::expm1(d);
    zy += r * (b.zy + d * b.z);
    zw += r * (b.zw * (1 + e) + b.zy * e + b.z * (e - d));
  }
  const double a = zy / fit.z;
  fit.y = a + zw / fit.z;
  fit.near = std::isfinite(fit.y);
  fit.divergence = std::max(0.0, std::log1p(fit.y) - a);
  return fit;
}

// One row of either layout as the kernels see it: contiguous.
struct Row {
  const void* student;
  ElementType student_type;
  const void* teacher;
  ElementType teacher_type;
  const uint8_t* mask;  // or null
  void* gradient;       // or null
  ElementType gradient_type;
};

// Computes rows one after the other with one set of scratch arrays. Thread-compatible: one per thread.
class RowWorker {
 public:
  RowWorker(const Kernels& kernels, const ChannelKlMaps& maps, const ChannelKlOptions& options, bool stream)
      : kernels_(kernels),
        hw_(maps.hw),
        temperature_(options.temperature),
        cross_entropy_(options.cross_entropy),
        stream_(stream),
        gradient_factor_(options.weight / options.temperature),
        p_(NewFloats(RoundUp(hw_, kMaxLanes))),
        u_(NewFloats(RoundUp(hw_, kMaxLanes))),
        blocks_((hw_ + kBlock - 1) / kBlock),
        alpha_(blocks_.size()),
        beta_(blocks_.size()) {
    scale_.exponent = static_cast<float>(1.4426950408889634 / temperature_);
    scale_.lowest = -125 / scale_.exponent;
    scale_.inverse_t = static_cast<float>(1 / temperature_);
    scale_.offset = 0;
  }

  const Scale& scale() const { return scale_; }

  // The row's divergence, kl_t_s or ce; writes its gradient. NaN for a row that is not finite.
  double Run(const Row& row) {
    const int64_t first = FirstInUse(row);
    if (first == hw_) {
      ZeroGradient(row);
      return 0;
    }
    double divergence = 0;
    // A single position: p = q = 1, and rounding must not say otherwise.
    if (hw_ == 1 || !Near(row, first, &divergence)) divergence = Far(row);
    if (cross_entropy_ && std::isfinite(divergence)) {
      kernels_.row_to_float(row.teacher, row.teacher_type, row.mask, hw_, p_.get());
      divergence += kernels_.row_entropy(p_.get(), hw_, scale_);
    }
    return divergence;
  }

 private:
  int64_t FirstInUse(const Row& row) const {
    if (row.mask == nullptr) return 0;
    return std::find_if(row.mask, row.mask + hw_, [](uint8_t keep) { return keep != 0; }) - row.mask;
  }

  void ZeroGradient(const Row& row) const {
    // All bits 0 is 0 in every element type.
    if (row.gradient != nullptr) std::memset(row.gradient, 0, hw_ * SizeOf(row.gradient_type));
  }

  // Returns false, with the gradient untouched, if the row needs the far form or is not finite.
  bool Near(const Row& row, int64_t first, double* divergence) {
    scale_.offset = StudentOffset(Value(row.student, row.student_type, first),
                                  Value(row.teacher, row.teacher_type, first), temperature_);
    kernels_.row_stats(row.student, row.student_type, row.teacher, row.teacher_type, row.mask, hw_, scale_, p_.get(),
                       u_.get(), blocks_.data());
    const Fit fit = FitRow(blocks_.data(), blocks_.size(), temperature_);
    if (!fit.near) return false;
    *divergence = fit.divergence;
    if (row.gradient == nullptr) return true;
    // q - p = p / z * (e^d u + e^d - 1 - Y) / (1 + Y), with p and u relative to the block's maximum and shift
    for (size_t k = 0; k < blocks_.size(); ++k) {
      const double d = blocks_[k].c - fit.c;
      const double e = d == 0 ? 0 : std::expm1(d);
      const double factor = gradient_factor_ * BlockShare(blocks_[k], fit.m, temperature_) / fit.z / (1 + fit.y);
      alpha_[k] = static_cast<float>(factor * (1 + e));
      beta_[k] = static_cast<float>(factor * (e - fit.y));
    }
    kernels_.row_gradient(p_.get(), u_.get(), hw_, alpha_.data(), beta_.data(), row.gradient, row.gradient_type,
                          stream_);
    return true;
  }

  double Far(const Row& row) {
    if (!kernels_.row_to_float(row.teacher, row.teacher_type, row.mask, hw_, p_.get()) ||
        !kernels_.row_to_float(row.student, row.student_type, row.mask, hw_, u_.get())) {
      ZeroGradient(row);
      return kNan;
    }
    if (hw_ == 1) {
      ZeroGradient(row);
      return 0;
    }
    const FarSums sums = kernels_.row_far(p_.get(), u_.get(), hw_, scale_);
    if (row.gradient != nullptr) {
      kernels_.row_far_gradient(p_.get(), u_.get(), hw_, static_cast<float>(gradient_factor_ / sums.z_teacher),
                                static_cast<float>(gradient_factor_ / sums.z_student), row.gradient, row.gradient_type);
    }
    return std::max(0.0, sums.a / sums.z_teacher - std::log(sums.z_teacher) + std::log(sums.z_student));
  }

  const Kernels& kernels_;
  const int64_t hw_;
  const double temperature_;
  const bool cross_entropy_;
  const bool stream_;
  const double gradient_factor_;  // of q - p
  Scale scale_;
  FloatArray p_, u_;
  std::vector<Block> blocks_;
  std::vector<float> alpha_, beta_;
};

struct Job {
  const ChannelKlMaps& maps;
  const ChannelKlOptions& options;
  const ChannelKlOutput& output;
  const ParallelFor& parallel_for;
  const Kernels& kernels;
  bool stream;
  double* row_divergence;  // [N, C]
};

int64_t RowGrain(int64_t hw) { return std::max<int64_t>(1, 16384 / hw); }

// [N, C, H*W].
void RunRows(const Job& job) {
  const ChannelKlMaps& maps = job.maps;
  job.parallel_for(0, maps.n * maps.c, RowGrain(maps.hw), [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    RowWorker worker(job.kernels, maps, job.options, job.stream);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t at = r * maps.hw;
      job.row_divergence[r] = worker.Run(
          {At(maps.student, maps.student_type, at), maps.student_type, At(maps.teacher, maps.teacher_type, at),
           maps.teacher_type, maps.mask == nullptr ? nullptr : maps.mask + r / maps.c * maps.hw,
           job.output.gradient == nullptr ? nullptr : At(job.output.gradient, job.output.gradient_type, at),
           job.output.gradient_type});
    }
  });
}

// Rows of [N, H*W, C], gathered one by one: for few channels, and for rows that need the far form.
void RunGatheredRows(const Job& job, const std::vector<int64_t>& rows) {
  const ChannelKlMaps& maps = job.maps;
  job.parallel_for(0, rows.size(), RowGrain(maps.hw), [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    RowWorker worker(job.kernels, maps, job.options, false);
    const FloatArray student = NewFloats(maps.hw), teacher = NewFloats(maps.hw), gradient = NewFloats(maps.hw);
    for (int64_t k = begin; k < end; ++k) {
      const int64_t n = rows[k] / maps.c, first = n * maps.hw * maps.c + rows[k] % maps.c;
      for (int64_t i = 0; i < maps.hw; ++i) {
        student[i] = Value(maps.student, maps.student_type, first + i * maps.c);
        teacher[i] = Value(maps.teacher, maps.teacher_type, first + i * maps.c);
      }
      job.row_divergence[rows[k]] =
          worker.Run({student.get(), ElementType::kFloat32, teacher.get(), ElementType::kFloat32,
                      maps.mask == nullptr ? nullptr : maps.mask + n * maps.hw,
                      job.output.gradient == nullptr ? nullptr : gradient.get(), ElementType::kFloat32});
      if (job.output.gradient == nullptr) continue;
      for (int64_t i = 0; i < maps.hw; ++i)
        SetValue(job.output.gradient, job.output.gradient_type, first + i * maps.c, gradient[i]);
    }
  });
}

// Few channels would leave lanes idle: [H*W, C] is then read as [H*W / fold, fold * C], each channel as `fold` rows of
// every fold-th position, whose sums are merged in the end. The smallest divisor of H*W that wastes least; 1 with a
// mask, which is per position.
int64_t Fold(const ChannelKlMaps& maps, int64_t lanes) {
  int64_t best = 1;
  double least = 1e9;
  for (int64_t fold = 1; fold <= 32 && (fold == 1 || (maps.mask == nullptr && fold * maps.c <= 1024)); ++fold) {
    if (maps.hw % fold != 0) continue;
    const int64_t columns = fold * maps.c;
    const double waste = columns < lanes ? 1e8 : static_cast<double>(RoundUp(columns, lanes)) / columns;
    if (waste < least - 0.02) {
      least = waste;
      best = fold;
    }
  }
  return best;
}

// [N, H*W, C] with lanes across channels. A group of samples at a time: sums of segments of positions, merged per
// sample in order, then the gradient from a second sweep, which finds the group in the last-level cache.
void RunColumns(const Job& job, int64_t fold) {
  const ChannelKlMaps& maps = job.maps;
  const int64_t channels = fold * maps.c, hw = maps.hw / fold, padded = RoundUp(channels, kMaxLanes);
  const int64_t block = std::clamp<int64_t>(65536 / channels, 16, kColumnBlock);
  const int64_t segment = block * std::max<int64_t>(1, kSegmentValues / (channels * block));
  const int64_t segments = (hw + segment - 1) / segment;
  const int64_t group = std::clamp<int64_t>(kGroupValues / (channels * hw), 1, maps.n);
  const double factor = job.options.weight / job.options.temperature;
  const Scale scale = RowWorker(job.kernels, maps, job.options, false).scale();

  // Sums [group][segments][6][C]; the merged ones replace segment 0's. Zeroed because whole vectors reach beyond C.
  std::vector<float> sums(group * segments * 6 * padded);
  std::vector<uint8_t> in_use(group * segments);
  std::vector<float> offsets(group * padded), alpha(group * padded), beta(group * padded);
  auto columns = [&](int64_t sample, int64_t k) {
    float* at = sums.data() + (sample * segments + k) * 6 * padded;
    return Columns{at, at + padded, at + 2 * padded, at + 3 * padded, at + 4 * padded, at + 5 * padded};
  };
  std::vector<int64_t> far_rows;

  for (int64_t first = 0; first < maps.n; first += group) {
    const int64_t samples = std::min(group, maps.n - first);
    auto run_of = [&](int64_t sample, int64_t begin, int64_t end) {
      const int64_t at = ((first + sample) * hw + begin) * channels;
      return ColumnMaps{At(maps.student, maps.student_type, at),
                        At(maps.teacher, maps.teacher_type, at),
                        maps.student_type,
                        maps.teacher_type,
                        maps.mask == nullptr ? nullptr : maps.mask + (first + sample) * hw + begin,
                        end - begin,
                        channels,
                        offsets.data() + sample * padded};
    };
    job.parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) {
        int64_t position = 0;
        if (maps.mask != nullptr) {
          const uint8_t* mask = maps.mask + (first + sample) * hw;
          position = std::find_if(mask, mask + hw, [](uint8_t keep) { return keep != 0; }) - mask;
        }
        for (int64_t c = 0; c < channels; ++c) {
          // With a fold all rows of a channel share the offset of its first position.
          const int64_t at = ((first + sample) * hw + position) * channels + c % maps.c;
          offsets[sample * padded + c] =
              position == hw ? 0.0f
                             : StudentOffset(Value(maps.student, maps.student_type, at),
                                             Value(maps.teacher, maps.teacher_type, at), job.options.temperature);
        }
      }
    });
    job.parallel_for(0, samples * segments, 1, [&](int64_t begin, int64_t end) {
      const FlushDenormals flush;
      std::vector<float> scratch(2 * kColumnBlock * kMaxLanes + 6 * padded);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t sample = task / segments, k = task % segments;
        bool any = false;
        for (int64_t at = k * segment; at < std::min(hw, (k + 1) * segment); at += block) {
          const ColumnMaps run = run_of(sample, at, std::min({hw, (k + 1) * segment, at + block}));
          any = job.kernels.column_stats(run, scale, !any, columns(sample, k), scratch.data()) || any;
        }
        in_use[task] = any;
      }
    });
    job.parallel_for(0, samples, 1, [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; ++sample) {
        const Columns merged = columns(sample, 0);
        bool any = in_use[sample * segments] != 0;
        for (int64_t k = 1; k < segments; ++k) {
          if (in_use[sample * segments + k] == 0) continue;
          const Columns from = columns(sample, k);
          if (any) {
            job.kernels.column_merge(channels, scale, from, merged);
          } else {
            std::copy(from.m, from.m + 6 * padded, merged.m);
          }
          any = true;
        }
        std::vector<Block> parts(fold);
        for (int64_t c = 0; c < maps.c; ++c) {
          double* divergence = &job.row_divergence[(first + sample) * maps.c + c];
          *divergence = 0;
          Fit fit;
          if (any) {
            for (int64_t k = 0; k < fold; ++k) {
              const int64_t j = k * maps.c + c;
              parts[k] = {merged.z[j], merged.zy[j], merged.zw[j], merged.m[j], merged.c[j], merged.spread[j]};
            }
            fit = FitRow(parts.data(), fold, job.options.temperature);
            *divergence = fit.near ? fit.divergence : kNan;  // marks the row for the far form
          }
          // q - p = p / z * (u - Y) / (1 + Y). The shift that the gradient's sweep uses is a float; Y moves with it.
          const float shift = static_cast<float>(fit.c);
          const double moved = std::expm1(fit.c - shift), y = fit.y + moved + fit.y * moved;
          const double scaled = fit.near ? factor / fit.z / (1 + y) : 0;
          for (int64_t k = 0; k < fold; ++k) {
            const int64_t j = k * maps.c + c;
            merged.m[j] = fit.m;
            merged.c[j] = shift;
            alpha[sample * padded + j] = static_cast<float>(scaled);
            beta[sample * padded + j] = static_cast<float>(-scaled * y);
          }
        }
      }
    });
    if (job.output.gradient != nullptr) {
      job.parallel_for(0, samples * segments, 1, [&](int64_t begin, int64_t end) {
        const FlushDenormals flush;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t sample = task / segments, k = task % segments;
          const ColumnMaps run = run_of(sample, k * segment, std::min(hw, (k + 1) * segment));
          const Columns merged = columns(sample, 0);
          job.kernels.column_gradient(
              run, scale, merged.m, merged.c, alpha.data() + sample * padded, beta.data() + sample * padded,
              At(job.output.gradient, job.output.gradient_type, ((first + sample) * hw + k * segment) * channels),
              job.output.gradient_type, job.stream);
        }
      });
    }
    for (int64_t r = first * maps.c; r < (first + samples) * maps.c; ++r) {
      if (std::isnan(job.row_divergence[r])) far_rows.push_back(r);
    }
  }
  if (!far_rows.empty()) RunGatheredRows(job, far_rows);
}

}  // namespace

Status ValidateChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options, const ChannelKlOutput& output) {
  if (maps.n < 0 || maps.c < 0 || maps.hw < 0) {
    return absl::InvalidArgumentError(StrCat("channel_kl: negative shape [", maps.n, ", ", maps.c, ", ", maps.hw, "]"));
  }
  if (maps.n * maps.c * maps.hw > 0 && (maps.student == nullptr || maps.teacher == nullptr)) {
    return absl::InvalidArgumentError("channel_kl: student or teacher map is null");
  }
  if (!(options.temperature >= 1e-6 && options.temperature <= 1e6)) {
    return absl::InvalidArgumentError(StrCat("channel_kl: temperature is ", options.temperature,
                                             ", must lie between 1e-6 and 1e6 (the paper uses 4)"));
  }
  if (!std::isfinite(options.weight)) {
    return absl::InvalidArgumentError(StrCat("channel_kl: weight is ", options.weight, ", must be finite"));
  }
  if (output.gradient != nullptr && output.gradient_type != ElementType::kFloat32 &&
      output.gradient_type != maps.student_type) {
    return absl::InvalidArgumentError(StrCat("channel_kl: gradient is ", Name(output.gradient_type),
                                             ", must be float32 or the student's ", Name(maps.student_type)));
  }
  return OkStatus();
}

StatusOr<ChannelKlResult> ChannelKl(const ChannelKlMaps& maps, const ChannelKlOptions& options,
                                    const ChannelKlOutput& output, const ParallelFor& parallel_for, SimdLevel level) {
  DISTILL_RETURN_IF_ERROR(ValidateChannelKl(maps, options, output));
  const int64_t rows = maps.n * maps.c;
  std::vector<double> own(output.row_divergence == nullptr ? rows : 0);
  double* row_divergence = output.row_divergence == nullptr ? own.data() : output.row_divergence;
  const Kernels& kernels = KernelsFor(level);
  const Job job{maps,          options, output,
                parallel_for,  kernels, rows * maps.hw * SizeOf(output.gradient_type) >= kStreamBytes,
                row_divergence};
  if (rows == 0 || maps.hw == 0) {
    std::fill(row_divergence, row_divergence + rows, 0.0);
  } else if (maps.layout == MapLayout::kChannelsFirst || maps.c == 1) {
    RunRows(job);
  } else {
    const int64_t fold = Fold(maps, kernels.lanes);
    if (fold * maps.c < kernels.lanes || maps.hw == 1 || options.cross_entropy) {
      std::vector<int64_t> all(rows);
      std::iota(all.begin(), all.end(), 0);
      RunGatheredRows(job, all);
    } else {
      RunColumns(job, fold);
    }
  }

  ChannelKlResult result;
  double sum = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (std::isnan(row_divergence[r])) {
      if (result.nonfinite_rows++ == 0) result.first_nonfinite_row = r;
    }
    sum += row_divergence[r];
  }
  result.loss = result.nonfinite_rows > 0 ? kNan : options.weight * sum;
  return result;
}

}  // namespace distill
