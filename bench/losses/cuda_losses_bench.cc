// The GPU's fused kernels against the compositions of PyTorch operators that compute the same, forward and backward, on
// the first CUDA device. Every case is checked before it is timed; then baseline and ours alternate in one run.
//
//   cuda_losses_bench [--rounds R] [--only TEXT]       (through scripts/bench.sh cuda_losses; needs a GPU)
//
// A round is 20 calls. The last lines are figures, as losses_bench prints them: "_rate" compares the bytes of the maps
// read and the gradient written per second with those of a copy on the device, which reads and writes as fast as its
// memory allows; "_sdpa" has scaled_dot_product_attention and mse_loss as its baseline.
#include <torch/torch.h>

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "bench/losses/bench_run.h"
#include "bench/losses/eager_losses.h"
#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"
#include "student_worker/losses/kernel_view.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill {
namespace {

constexpr int kCalls = 20;  // of a round
constexpr double kTemperature = 4;

std::function<void()> Repeated(const std::function<void()>& call) {
  return [call] {
    for (int i = 0; i < kCalls; ++i) call();
  };
}

void BenchChannelKl(Bench* bench, const std::string& name, at::IntArrayRef shape, torch::ScalarType type,
                    torch::MemoryFormat format) {
  if (!bench->Wants(name)) return;
  const auto on_gpu = [&](const Tensor& map) { return map.to(torch::kCUDA, type).contiguous(format); };
  const Tensor student = on_gpu(RandomMap(shape)).set_requires_grad(true), teacher = on_gpu(RandomMap(shape));
  const double scale = kTemperature * kTemperature / static_cast<double>(shape[0] * shape[1]);
  Tensor loss;
  const auto ours = [&] {
    student.mutable_grad() = Tensor();
    loss = MapSoftmaxKl(student, teacher, {.temperature = kTemperature, .scale = scale});
    loss.backward();
  };
  const auto baseline = [&] {
    student.mutable_grad() = Tensor();
    loss = EagerChannelKl(student, teacher, kTemperature);
    loss.backward();
  };
  ours();
  const double got = loss.item<double>();
  const Tensor gradient = student.grad().cpu();
  const Tensor exact = student.detach().cpu().to(torch::kDouble).set_requires_grad(true);
  const Tensor want = EagerChannelKl(exact, teacher.cpu().to(torch::kDouble), kTemperature);
  want.backward();
  const bool narrow = type != torch::kFloat32;
  CheckClose(name + ": loss", got, want.item<double>(), 1e-4);
  CheckClose(name + ": gradient", gradient, exact.grad(), narrow ? 8e-3 : 1e-4);

  const double seconds = bench->Time(name, Repeated(baseline), Repeated(ours)) / kCalls;
  Tensor copy = torch::empty_like(student);
  const double copy_s = bench->Measure(Repeated([&] { copy.copy_(student.detach()); })) / kCalls;
  const double bytes = static_cast<double>(student.nbytes());
  bench->Result(name + "_rate", 3 * bytes / seconds / 1e9, "GB/s", 2 * bytes / copy_s / 1e9,
                3 * bytes / seconds / (2 * bytes / copy_s));
}

FeatureMap View(const Tensor& map) {
  return {map.data_ptr(), *loss_internal::KernelType(map), loss_internal::LayoutOf(map), map.size(1), map.size(2),
          map.size(3)};
}

void BenchTat(Bench* bench, const std::string& name, at::IntArrayRef shape, std::optional<EagerTatPatches> patches) {
  if (!bench->Wants(name)) return;
  const double scale = 1.4 / std::pow(static_cast<double>(shape[1]), 0.25);  // logits of a few units
  const auto random = [&](double size) {
    return (size * torch::randn(shape)).to(torch::kCUDA).set_requires_grad(true);
  };
  const EagerTatMaps maps{random(scale), random(1), random(scale), random(1).detach()};
  const Tensor gamma = torch::zeros_like(maps.gamma), phi = torch::zeros_like(maps.phi),
               theta = torch::zeros_like(maps.theta), numbers = torch::zeros({3}, gamma.options());
  const TatMaps views{shape[0], View(maps.gamma), View(maps.phi), View(maps.theta), View(maps.target)};
  TatOptions options;
  if (patches) {
    options.mode = TatMode::kPatchGroup;
    options.grid_rows = options.grid_columns = patches->grid;
    options.groups = patches->groups;
  }
  const TatTokenPlan plan = Value(PlanTat(views, options));
  TatCudaOutput output;
  output.gradients = {gamma.data_ptr<float>(), phi.data_ptr<float>(), theta.data_ptr<float>()};
  output.loss = numbers.data_ptr<float>();
  output.mean_entropy = output.loss + 1;
  output.mean_largest_weight = output.loss + 2;
  const auto ours = [&] {
    const std::string error = LoadedCudaPlugin()->tat_attention(views, options, plan, output);
    if (!error.empty()) Die(name + ": " + error);
  };
  const auto eager = [&](const EagerTatMaps& m) {
    for (const Tensor* map : {&m.gamma, &m.phi, &m.theta}) map->mutable_grad() = Tensor();
    const Tensor loss = patches ? EagerPatchGroupTat(m, *patches) : EagerPlainTat(m);
    loss.backward();
    return loss;
  };
  const auto attention = [&] {  // PyTorch's own kernel without the matrix
    for (const Tensor* map : {&maps.gamma, &maps.phi, &maps.theta}) map->mutable_grad() = Tensor();
    const auto rows = [](const Tensor& map) { return map.flatten(2).transpose(1, 2); };
    const Tensor mixed = at::scaled_dot_product_attention(rows(maps.theta), rows(maps.gamma), rows(maps.phi), {}, 0.0,
                                                          /*is_causal=*/false, /*scale=*/1.0);
    torch::mse_loss(mixed, rows(maps.target)).backward();
  };
  ours();
  EagerTatMaps exact = InDouble(maps);
  CheckClose(name + ": loss", numbers[0].item<double>(), eager(exact).item<double>(), 1e-4);
  CheckClose(name + ": gradient of gamma", gamma, exact.gamma.grad(), 1e-4);
  CheckClose(name + ": gradient of phi", phi, exact.phi.grad(), 1e-4);
  CheckClose(name + ": gradient of theta", theta, exact.theta.grad(), 1e-4);
  exact = {};
  bench->Time(name, Repeated([&] { eager(maps); }), Repeated(ours));
  if (!patches) bench->Time(name + "_sdpa", Repeated(attention), Repeated(ours));
}

int Main(int argc, char** argv) {
  int rounds = 9;
  std::string only;
  CLI::App app("cuda_losses_bench: the losses' GPU kernels against PyTorch operators; see the head of its source.");
  app.add_option("--rounds", rounds, "alternations of baseline and ours")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--only", only, "cases whose name holds this text");
  CLI11_PARSE(app, argc, argv);
  if (const Status loaded = LoadCudaRuntime(); !loaded.ok()) {
    Die(StrCat("this benchmark needs a GPU: ", ToStd(loaded.message())));
  }
  torch::manual_seed(1);
  std::printf("%s, rounds: %d of %d calls, torch %s\n", CudaDeviceName(0).c_str(), rounds, kCalls, TORCH_VERSION);
  Bench bench(rounds, only, [] { torch::cuda::synchronize(); });
  constexpr auto kFirst = torch::MemoryFormat::Contiguous, kLast = torch::MemoryFormat::ChannelsLast;
  BenchChannelKl(&bench, "cwd_n8_c512_64x128", {8, 512, 64, 128}, torch::kFloat32, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c19_512x1024", {8, 19, 512, 1024}, torch::kFloat32, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c512_64x128_bf16", {8, 512, 64, 128}, torch::kBFloat16, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c19_512x1024_bf16", {8, 19, 512, 1024}, torch::kBFloat16, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c512_64x128_channels_last", {8, 512, 64, 128}, torch::kFloat32, kLast);
  BenchTat(&bench, "tat_plain_n8_c256_32x32", {8, 256, 32, 32}, std::nullopt);
  BenchTat(&bench, "tat_plain_n64_c512_7x7", {64, 512, 7, 7}, std::nullopt);
  BenchTat(&bench, "tat_patches_n2_c256_128x128", {2, 256, 128, 128}, EagerTatPatches{16, 64});
  bench.Print();
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
