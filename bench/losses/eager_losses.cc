#include "bench/losses/eager_losses.h"

namespace distill {
namespace {

using torch::Tensor;

// Rows are tokens: [B, tokens, features].
Tensor Attend(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& target) {
  const Tensor weights = torch::softmax(torch::bmm(query, key.transpose(1, 2)), -1);
  return torch::mse_loss(torch::bmm(weights, value), target);
}

Tensor Rows(const Tensor& map) { return map.flatten(2).transpose(1, 2); }

// [N, C, H, W] to [N * groups, h*w, p*C].
Tensor GroupRows(const Tensor& map, EagerTatPatches patches) {
  const int64_t n = map.size(0), c = map.size(1), h = map.size(2) / patches.grid, w = map.size(3) / patches.grid;
  const int64_t p = patches.grid * patches.grid / patches.groups;
  return map.view({n, c, patches.grid, h, patches.grid, w})
      .permute({0, 2, 4, 3, 5, 1})  // [N, grid, grid, h, w, C]
      .reshape({n * patches.groups, p, h * w, c})
      .transpose(1, 2)
      .reshape({n * patches.groups, h * w, p * c});
}

}  // namespace

Tensor EagerChannelKl(const Tensor& student, const Tensor& teacher, double temperature) {
  const double rows = static_cast<double>(student.size(0) * student.size(1));
  const Tensor log_q = torch::log_softmax(student.flatten(2) / temperature, -1);
  const Tensor log_p = torch::log_softmax(teacher.flatten(2) / temperature, -1);
  const auto options = torch::nn::functional::KLDivFuncOptions().reduction(torch::kSum).log_target(true);
  return torch::nn::functional::kl_div(log_q, log_p, options) * (temperature * temperature / rows);
}

EagerTatMaps InDouble(const EagerTatMaps& maps) {
  const auto copy = [](const Tensor& map) {
    return map.detach().to(torch::kDouble).set_requires_grad(map.requires_grad());
  };
  return {copy(maps.gamma), copy(maps.phi), copy(maps.theta), copy(maps.target)};
}

Tensor EagerPlainTat(const EagerTatMaps& maps) {
  return Attend(Rows(maps.theta), Rows(maps.gamma), Rows(maps.phi), Rows(maps.target));
}

Tensor EagerPatchGroupTat(const EagerTatMaps& maps, EagerTatPatches patches) {
  return Attend(GroupRows(maps.theta, patches), GroupRows(maps.gamma, patches), GroupRows(maps.phi, patches),
                GroupRows(maps.target, patches));
}

Tensor EagerAnchorTat(const EagerTatMaps& maps, int64_t kernel) {
  const auto pool = [&](const Tensor& map) { return torch::avg_pool2d(map, {kernel, kernel}); };
  return EagerPlainTat({pool(maps.gamma), pool(maps.phi), pool(maps.theta), pool(maps.target)});
}

}  // namespace distill
