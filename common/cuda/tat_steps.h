// The order in which tat_device.h's kernels run, and what they read and write: one function for the GPU and for the
// emulator of the tests. Included after device_cuda.h or the emulator.
#ifndef DISTILL_COMMON_CUDA_TAT_STEPS_H_
#define DISTILL_COMMON_CUDA_TAT_STEPS_H_

#include <cstdint>

#include "common/cuda/tat_cuda.h"
#include "common/cuda/tat_device.h"

namespace distill::cuda_tat {

// Hands out parts of the scratch memory; with a null base it only counts.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* Take(int64_t count) {
    T* const part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return part;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* const base_;
  int64_t bytes_ = 0;
};

struct Steps {
  Args args;
  Side query, key, value, target;  // value and target are read at the key's and the query's token numbers
  float *packed_query, *packed_key, *packed_value, *packed_target;
  float* factors;
  int64_t groups;            // of all images
  double elements, queries;  // per image
  int64_t scratch_bytes;
};

inline Side MakeSide(const FeatureMap& map, float* gradient, const TatTokens& tokens, const TatTokenPlan& plan) {
  return {map.data,
          gradient,
          map.type,
          map.layout == MapLayout::kChannelsLast,
          map.channels,
          map.height,
          map.width,
          tokens.patch_columns,
          tokens.height,
          tokens.width,
          tokens.window.height,
          tokens.window.width,
          plan.groups,
          plan.patches};
}

inline Steps PlanSteps(const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
                       const TatGradients& gradients, void* scratch_base) {
  const bool teacher_query = options.orientation == TatOrientation::kTeacherQuery;
  const Side gamma = MakeSide(maps.gamma, gradients.gamma, plan.student, plan);
  const Side theta = MakeSide(maps.theta, gradients.theta, plan.teacher, plan);
  Steps steps;
  steps.query = teacher_query ? theta : gamma;
  steps.key = teacher_query ? gamma : theta;
  steps.value = MakeSide(maps.phi, gradients.phi, plan.student, plan);
  steps.target = MakeSide(maps.target, nullptr, plan.teacher, plan);
  steps.groups = maps.n * plan.groups;
  const int64_t queries = (teacher_query ? plan.teacher : plan.student).count();
  const int64_t keys = (teacher_query ? plan.student : plan.teacher).count();
  const int64_t d = plan.patches * maps.gamma.channels, c = plan.patches * maps.phi.channels;
  const int64_t blocks = steps.groups * ((queries + kTile - 1) / kTile);
  Scratch scratch(scratch_base);
  steps.packed_query = scratch.Take<float>(steps.groups * d * queries);
  steps.packed_key = scratch.Take<float>(steps.groups * d * keys);
  steps.packed_value = scratch.Take<float>(steps.groups * c * keys);
  steps.packed_target = scratch.Take<float>(steps.groups * c * queries);
  steps.factors = scratch.Take<float>(maps.n);
  steps.args.q = steps.packed_query;
  steps.args.k = steps.packed_key;
  steps.args.v = steps.packed_value;
  steps.args.f = steps.packed_target;
  steps.args.m = scratch.Take<float>(steps.groups * queries);
  steps.args.inverse_l = scratch.Take<float>(steps.groups * queries);
  steps.args.dot = scratch.Take<float>(steps.groups * queries);
  steps.args.squares = scratch.Take<double>(blocks);
  steps.args.entropy = scratch.Take<double>(blocks);
  steps.args.largest = scratch.Take<double>(blocks);
  steps.args.factors = steps.factors;
  steps.args.d = d;
  steps.args.c = c;
  steps.args.queries = queries;
  steps.args.keys = keys;
  steps.args.groups_per_image = plan.groups;
  steps.args.scale = static_cast<float>(options.attention_scale);
  steps.queries = static_cast<double>(plan.groups) * queries;
  steps.elements = steps.queries * c;
  steps.scratch_bytes = scratch.bytes();
  return steps;
}

// Device: offers Pack(side, groups, out, threads), Stats(args, blocks), Accumulate<Kind>(args, side, blocks),
// Finish(...), Zero(pointer, floats); each runs after the one before.
template <typename Device>
void RunSteps(const Steps& steps, const TatMaps& maps, const TatOptions& options, const TatTokenPlan& plan,
              const TatCudaOutput& output, Device device) {
  const Args& args = steps.args;
  device.Pack(steps.query, steps.groups, steps.packed_query, steps.groups * args.d * args.queries);
  device.Pack(steps.key, steps.groups, steps.packed_key, steps.groups * args.d * args.keys);
  device.Pack(steps.value, steps.groups, steps.packed_value, steps.groups * args.c * args.keys);
  device.Pack(steps.target, steps.groups, steps.packed_target, steps.groups * args.c * args.queries);
  const int64_t query_blocks = steps.groups * ((args.queries + kTile - 1) / kTile);
  const int64_t key_blocks = steps.groups * ((args.keys + kTile - 1) / kTile);
  device.Stats(args, query_blocks);
  device.template Accumulate<Kind::kOutput>(args, steps.value, query_blocks);
  const Reduction reduction = options.reduction == TatReduction::kMeanAll       ? Reduction::kMeanAll
                              : options.reduction == TatReduction::kSumPerImage ? Reduction::kSumPerImage
                                                                                : Reduction::kL2Norm;
  device.Finish(args, maps.n, reduction, options.weight, steps.elements, steps.queries, steps.factors,
                Results{output.loss, output.mean_entropy, output.mean_largest_weight});
  // Pixels without a token keep these zeros.
  const auto zero = [&](const FeatureMap& map, float* gradient, const TatTokens& tokens) {
    const int64_t used = plan.groups * plan.patches * tokens.count() * tokens.window.count();
    if (gradient != nullptr && used < map.height * map.width) {
      device.Zero(gradient, maps.n * map.channels * map.height * map.width);
    }
  };
  zero(maps.gamma, output.gradients.gamma, plan.student);
  zero(maps.phi, output.gradients.phi, plan.student);
  zero(maps.theta, output.gradients.theta, plan.teacher);
  if (steps.query.gradient != nullptr) {
    device.template Accumulate<Kind::kQueries>(args, steps.query, query_blocks);
  }
  if (steps.value.gradient != nullptr) device.template Accumulate<Kind::kValues>(args, steps.value, key_blocks);
  if (steps.key.gradient != nullptr) device.template Accumulate<Kind::kKeys>(args, steps.key, key_blocks);
}

}  // namespace distill::cuda_tat

#endif  // DISTILL_COMMON_CUDA_TAT_STEPS_H_
