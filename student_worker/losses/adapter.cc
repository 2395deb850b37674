#include "student_worker/losses/adapter.h"

#include <ATen/CPUGeneratorImpl.h>
#include <torch/torch.h>

#include <cmath>

#include "common/str_cat.h"

namespace distill {
namespace {

// FNV-1a, 64 bit: a stable hash (absl::Hash and std::hash may change between runs and versions).
uint64_t StableHash(std::string_view text, uint64_t seed) {
  uint64_t hash = 0xcbf29ce484222325ull ^ seed;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

}  // namespace

Adapter::Adapter(int64_t in_channels, int64_t out_channels, uint64_t seed) {
  torch::NoGradGuard no_grad;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const double bound = 1.0 / std::sqrt(static_cast<double>(in_channels));
  torch::Tensor values = torch::empty({out_channels, in_channels, 1, 1}, torch::kFloat32);
  values.uniform_(-bound, bound, generator);
  weight = register_parameter("weight", values);
}

torch::Tensor Adapter::forward(const torch::Tensor& x) { return torch::conv2d(x, weight.to(x.scalar_type())); }

StatusOr<std::shared_ptr<Adapter>> MakeAdapter(const LossPlan& loss, const std::string& stage_name, uint64_t job_seed) {
  if (loss.adapter.empty() || loss.adapter == "none") return std::shared_ptr<Adapter>();
  if (loss.adapter != "conv1x1") {
    return absl::InvalidArgumentError(
        StrCat("loss '", loss.name, "': unknown adapter '", loss.adapter, "'; this student knows none and conv1x1"));
  }
  if (loss.student_channels == 0 || loss.teacher_channels == 0) {
    return absl::InvalidArgumentError(StrCat("loss '", loss.name, "': adapter conv1x1 from ", loss.student_channels,
                                             " to ", loss.teacher_channels, " channels; both must be at least 1"));
  }
  return std::make_shared<Adapter>(loss.student_channels, loss.teacher_channels,
                                   StableHash(StrCat(stage_name, "/", loss.name), job_seed));
}

}  // namespace distill
