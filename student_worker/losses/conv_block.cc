#include "student_worker/losses/conv_block.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cmath>

#include "common/str_cat.h"
#include "common/zoo/batch_norm.h"

namespace distill {

uint64_t SeedFor(std::string_view name, uint64_t job_seed) {
  // FNV-1a: std::hash may change between runs and versions.
  uint64_t hash = 0xcbf29ce484222325ull ^ job_seed;
  for (unsigned char c : name) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

ConvBlock::ConvBlock(const Options& options, uint64_t seed) : options_(options) {
  torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double bound = 1.0 / std::sqrt(static_cast<double>(options.in * options.kernel * options.kernel));
  const auto uniform = [&](at::IntArrayRef shape) {
    return torch::empty(shape, torch::kFloat32).uniform_(-bound, bound, generator);
  };
  weight = register_parameter("weight", uniform({options.out, options.in, options.kernel, options.kernel}));
  if (options.bias) bias = register_parameter("bias", uniform({options.out}));
  if (options.norm != Norm::kNone) {
    norm_weight = register_parameter("norm_weight", torch::ones({options.out}));
    norm_bias = register_parameter("norm_bias", torch::zeros({options.out}));
  }
}

torch::Tensor ConvBlock::forward(const torch::Tensor& x) {
  const auto type = x.scalar_type();
  const auto cast = [&](const torch::Tensor& parameter) {
    return parameter.defined() ? parameter.to(type) : parameter;
  };
  const int64_t padding = options_.kernel / 2;
  torch::Tensor y = torch::conv2d(x, cast(weight), cast(bias), /*stride=*/1, padding);
  constexpr double kEpsilon = 1e-5, kMomentum = 0.1;  // torch's; there are no running statistics to move
  // Batch norm of one sample, contiguous, has wrong gradients on the CPU (torch 2.11) when the incoming one lies in
  // memory as channels last, which it does behind a transposition.
  const auto same_layout_gradient = [](const torch::Tensor& output) {
    if (!output.requires_grad()) return;
    const auto format = output.suggest_memory_format();
    output.register_hook([format](const torch::Tensor& gradient) { return gradient.contiguous(format); });
  };
  // Torch refuses to normalise each of no samples.
  const bool nothing_to_measure = options_.norm == Norm::kPerSample && x.size(0) == 0;
  switch (nothing_to_measure ? Norm::kFrozen : options_.norm) {
    case Norm::kNone:
      break;
    case Norm::kBatch:
      if (norm_ranks_ != nullptr && torch::GradMode::is_enabled()) {
        y = BatchNormOverRanks(y, cast(norm_weight), cast(norm_bias), {}, {}, kMomentum, kEpsilon, norm_ranks_);
        break;
      }
      y = torch::batch_norm(y, cast(norm_weight), cast(norm_bias), {}, {}, /*training=*/true, kMomentum, kEpsilon,
                            /*cudnn_enabled=*/true);
      same_layout_gradient(y);
      break;
    case Norm::kPerSample:
      y = torch::instance_norm(y, cast(norm_weight), cast(norm_bias), {}, {}, /*use_input_stats=*/true, kMomentum,
                               kEpsilon, /*cudnn_enabled=*/true);
      same_layout_gradient(y);
      break;
    case Norm::kFrozen: {
      // As batch norm in eval mode with the statistics it was made with.
      const torch::Tensor scale = cast(norm_weight) / std::sqrt(1 + kEpsilon);
      y = y * scale.view({1, -1, 1, 1}) + cast(norm_bias).view({1, -1, 1, 1});
      break;
    }
  }
  switch (options_.activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
      return y.relu();
    case Activation::kGelu:
      return torch::gelu(y);
  }
  return y;
}

StatusOr<std::shared_ptr<ConvBlock>> MakeAdapter(const LossPlan& loss, uint64_t seed) {
  if (loss.adapter.empty() || loss.adapter == "none") return std::shared_ptr<ConvBlock>();
  ConvBlock::Options options{.in = loss.student_channels, .out = loss.teacher_channels};
  if (loss.adapter == "conv3x3") {
    options.kernel = 3;
  } else if (loss.adapter == "conv1x1_bn" || loss.adapter == "conv1x1_bn_relu") {
    options.norm = ConvBlock::Norm::kBatch;
    if (loss.adapter == "conv1x1_bn_relu") options.activation = ConvBlock::Activation::kRelu;
  } else if (loss.adapter != "conv1x1") {
    return absl::InvalidArgumentError(StrCat("loss '", loss.name, "': unknown adapter '", loss.adapter,
                                             "'; this student knows none, conv1x1, conv1x1_bn, conv1x1_bn_relu and "
                                             "conv3x3"));
  }
  if (options.in == 0 || options.out == 0) {
    return absl::InvalidArgumentError(StrCat("loss '", loss.name, "': adapter ", loss.adapter, " from ", options.in,
                                             " to ", options.out, " channels; both must be at least 1"));
  }
  return std::make_shared<ConvBlock>(options, SeedFor("adapter", seed));
}

}  // namespace distill
