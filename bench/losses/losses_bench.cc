// The losses' fused kernels against the compositions of PyTorch operators that compute the same, forward and backward,
// same threads. Every case is checked before it is timed; then baseline and ours alternate in one run.
//
//   losses_bench [--threads T] [--rounds R] [--only TEXT]       (through scripts/bench.sh losses)
//
// Defaults: all cores, 9 rounds, all cases. The last lines are figures: RESULT <name> <value> <unit> baseline=<value>
// ratio=<x>, with the median time of either side and the median of the rounds' ratios baseline / ours. "_rate" compares
// the bytes of the maps read and the gradient written per second with those of a plain copy; "_memory" is the most
// memory that a call takes beyond its maps and gradients, in shares of plain TaT's attention matrix of one image.
#include <malloc.h>
#include <torch/torch.h>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/losses/bench_run.h"
#include "bench/losses/eager_losses.h"
#include "common/kernels/channel_kl.h"
#include "common/kernels/channel_kl_reference.h"
#include "common/kernels/tat_attention.h"
#include "common/service/memory.h"
#include "common/str_cat.h"
#include "student_worker/losses/kernel_view.h"
#include "student_worker/losses/row_softmax_kl.h"

namespace distill {
namespace {

const ParallelFor kTorchThreads = loss_internal::ParallelForOfTorch;  // as in the student

ElementType TypeOf(const Tensor& map) {
  return map.scalar_type() == torch::kFloat32 ? ElementType::kFloat32 : ElementType::kBfloat16;
}
MapLayout LayoutOf(const Tensor& map) {
  return map.is_contiguous() ? MapLayout::kChannelsFirst : MapLayout::kChannelsLast;
}

// --- CWD

constexpr double kTemperature = 4;

void BenchChannelKl(Bench* bench, const std::string& name, at::IntArrayRef shape, torch::ScalarType type,
                    torch::MemoryFormat format) {
  if (!bench->Wants(name)) return;
  const Tensor student = RandomMap(shape).to(type).contiguous(format).set_requires_grad(true);
  const Tensor teacher = RandomMap(shape).to(type).contiguous(format);
  const double rows = static_cast<double>(shape[0] * shape[1]);
  const ChannelKlOptions options{.temperature = kTemperature, .weight = kTemperature * kTemperature / rows};
  ChannelKlMaps maps{shape[0],
                     shape[1],
                     shape[2] * shape[3],
                     format == torch::MemoryFormat::ChannelsLast ? MapLayout::kChannelsLast : MapLayout::kChannelsFirst,
                     student.data_ptr(),
                     TypeOf(student),
                     teacher.data_ptr(),
                     TypeOf(teacher)};
  Tensor gradient;
  const auto ours = [&] {
    gradient = torch::empty_like(student, torch::MemoryFormat::Preserve);  // every step's is a new one, as torch's is
    return Value(ChannelKl(maps, options, {gradient.data_ptr(), TypeOf(student)}, kTorchThreads)).loss;
  };
  const auto baseline = [&] {
    student.mutable_grad() = Tensor();
    const Tensor loss = EagerChannelKl(student, teacher, kTemperature);
    loss.backward();
    return loss.item<double>();
  };

  const bool narrow = type != torch::kFloat32;  // the baseline rounds its softmax, and both round the gradient
  CheckClose(name + ": loss", ours(), baseline(), narrow ? 3e-2 : 1e-4);
  CheckClose(name + ": gradient", gradient, student.grad(), narrow ? 2e-2 : 1e-4);
  ChannelKlMaps first = maps;
  first.n = 1;
  const ChannelKlReferenceResult reference = Value(ChannelKlReference<double>(first, options));
  const Tensor got = gradient[0].contiguous(torch::MemoryFormat::Contiguous);
  Tensor want = torch::tensor(reference.gradient, torch::kDouble);
  want = format == torch::MemoryFormat::ChannelsLast ? want.view({shape[2], shape[3], shape[1]}).permute({2, 0, 1})
                                                     : want.view({shape[1], shape[2], shape[3]});
  CheckClose(name + ": gradient of the first image, against the reference", got, want, narrow ? 4e-3 : 1e-5);

  const double seconds = bench->Time(name, baseline, ours);
  const Tensor copy = torch::empty_like(student);
  const double bytes = static_cast<double>(student.nbytes());
  const double copy_s = bench->Measure([&] {
    kTorchThreads(0, student.nbytes(), 65536, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(copy.data_ptr()) + begin, static_cast<char*>(student.data_ptr()) + begin,
                  end - begin);
    });
  });
  bench->Result(name + "_rate", 3 * bytes / seconds / 1e9, "GB/s", 2 * bytes / copy_s / 1e9,
                3 * bytes / seconds / (2 * bytes / copy_s));
}

// The pairs of layouts that training has, through autograd and with the loss's weight: a student's map channels last,
// as its network makes it, and a teacher's as it came. Ours: in the layout and the dtype of the teacher's network,
// which is channels last too, and the weight known. Baseline: float32 in rows, as if somebody had transposed and
// widened it on the way, and the weight only in backward.
void BenchTrainingPair(Bench* bench, const std::string& name, at::IntArrayRef shape, torch::ScalarType wire) {
  if (!bench->Wants(name)) return;
  constexpr auto kLast = torch::MemoryFormat::ChannelsLast;
  const Tensor student = RandomMap(shape).contiguous(kLast).set_requires_grad(true);
  const Tensor came = RandomMap(shape).to(wire).contiguous(kLast);
  const Tensor rows = came.to(torch::kFloat32).contiguous(torch::MemoryFormat::Contiguous);
  constexpr double kWeight = 2.5;
  RowKlOptions options{.temperature = kTemperature,
                       .scale = kTemperature * kTemperature / static_cast<double>(shape[0] * shape[1])};
  const auto step = [&](const Tensor& teacher, double known) {
    student.mutable_grad() = Tensor();
    options.weight = known;
    const Tensor loss = MapSoftmaxKl(student, teacher, options);
    (loss * kWeight).backward();
    return loss.item<double>();
  };
  const double wanted = step(rows, 1);
  const Tensor gradient = student.grad().clone();
  CheckClose(name + ": loss", step(came, kWeight), wanted, 1e-5);
  CheckClose(name + ": gradient", student.grad(), gradient, 1e-5);
  bench->Time(
      name, [&] { step(rows, 1); }, [&] { step(came, kWeight); });
}

// --- TaT

// Resident memory now, or its peak since the last reset, in bytes.
double Resident(const char* key) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(key, 0) == 0) return std::stod(line.substr(line.find(':') + 1)) * 1024;
  }
  Die(StrCat("/proc/self/status has no ", key));
}
// The most memory `call` takes while it runs.
double PeakExtraBytes(const std::function<void()>& call) {
  malloc_trim(0);  // else the call could use memory that earlier cases gave back to the allocator
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak becomes what is resident now
  const double before = Resident("VmRSS");
  call();
  return Resident("VmHWM") - before;
}

FeatureMap View(const Tensor& map) {
  return {map.data_ptr(), TypeOf(map), LayoutOf(map), map.size(1), map.size(2), map.size(3)};
}

struct TatCase {
  const char* name;
  int64_t n, c, size;
  std::optional<EagerTatPatches> patches;  // with anchors: hierarchical; without: plain
  int64_t anchor_kernel;
};

void BenchTat(Bench* bench, const TatCase& c) {
  if (!bench->Wants(c.name)) return;
  const std::vector<int64_t> shape = {c.n, c.c, c.size, c.size};
  // Logits of a few units.
  const double scale = 1.4 / std::pow(static_cast<double>(c.c), 0.25);
  EagerTatMaps maps{(scale * torch::randn(shape)).set_requires_grad(true), torch::randn(shape).set_requires_grad(true),
                    (scale * torch::randn(shape)).set_requires_grad(true), torch::randn(shape)};
  const double patch_weight = 1, anchor_weight = 0.4;
  const auto eager = [&](const EagerTatMaps& m) {
    for (const Tensor* map : {&m.gamma, &m.phi, &m.theta}) map->mutable_grad() = Tensor();
    const Tensor loss = c.patches ? patch_weight * EagerPatchGroupTat(m, *c.patches) +
                                        anchor_weight * EagerAnchorTat(m, c.anchor_kernel)
                                  : EagerPlainTat(m);
    loss.backward();
    return loss.item<double>();
  };
  const Tensor gamma = torch::zeros(shape), phi = torch::zeros(shape), theta = torch::zeros(shape);
  const TatMaps views{c.n, View(maps.gamma), View(maps.phi), View(maps.theta), View(maps.target)};
  const TatGradients gradients{gamma.data_ptr<float>(), phi.data_ptr<float>(), theta.data_ptr<float>()};
  const auto ours = [&] {
    if (!c.patches) return Value(TatAttention(views, {}, gradients, kTorchThreads)).loss;
    TatOptions local{.mode = TatMode::kPatchGroup,
                     .grid_rows = c.patches->grid,
                     .grid_columns = c.patches->grid,
                     .groups = c.patches->groups,
                     .weight = patch_weight};
    TatOptions global{.mode = TatMode::kAnchor,
                      .teacher_window = {c.anchor_kernel, c.anchor_kernel},
                      .student_window = {c.anchor_kernel, c.anchor_kernel},
                      .weight = anchor_weight};
    const TatHierarchicalResult result = Value(TatHierarchical(views, local, global, gradients, kTorchThreads));
    return result.patch_group.loss + result.anchor.loss;
  };

  double loss = 0;
  const double extra = PeakExtraBytes([&] { loss = ours(); });
  EagerTatMaps exact = InDouble(maps);
  CheckClose(StrCat(c.name, ": loss"), loss, eager(exact), 1e-5);
  CheckClose(StrCat(c.name, ": gradient of gamma"), gamma, exact.gamma.grad(), 2e-5);
  CheckClose(StrCat(c.name, ": gradient of phi"), phi, exact.phi.grad(), 2e-5);
  CheckClose(StrCat(c.name, ": gradient of theta"), theta, exact.theta.grad(), 2e-5);
  exact = {};

  bench->Time(
      c.name, [&] { eager(maps); }, ours);
  if (!c.patches) return;  // the matrix of a small map is no measure
  const double matrix = std::pow(static_cast<double>(c.size * c.size), 2) * sizeof(float);
  bench->Result(StrCat(c.name, "_memory"), extra / (1 << 20), "MiB", matrix / (1 << 20), extra / matrix);
}

int Main(int argc, char** argv) {
  int threads = at::get_num_threads(), rounds = 9;
  std::string only;
  CLI::App app("losses_bench: the losses' CPU kernels against PyTorch operators; see the head of its source.");
  app.add_option("--threads", threads, "CPU threads of either side")->capture_default_str()->check(CLI::Range(1, 1000));
  app.add_option("--rounds", rounds, "alternations of baseline and ours")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  app.add_option("--only", only, "cases whose name holds this text");
  CLI11_PARSE(app, argc, argv);
  KeepFreedMemory();  // as the student does
  at::set_num_threads(threads);
  torch::manual_seed(1);
  std::printf("instructions: %s, threads: %d, rounds: %d, torch %s\n", Name(BestSimdLevel()), threads, rounds,
              TORCH_VERSION);
  Bench bench(rounds, only);
  constexpr auto kFirst = torch::MemoryFormat::Contiguous, kLast = torch::MemoryFormat::ChannelsLast;
  BenchChannelKl(&bench, "cwd_n8_c512_64x128", {8, 512, 64, 128}, torch::kFloat32, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c19_512x512", {8, 19, 512, 512}, torch::kFloat32, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c512_64x128_bf16", {8, 512, 64, 128}, torch::kBFloat16, kFirst);
  BenchChannelKl(&bench, "cwd_n8_c512_64x128_channels_last", {8, 512, 64, 128}, torch::kFloat32, kLast);
  BenchChannelKl(&bench, "cwd_n8_c19_512x512_channels_last", {8, 19, 512, 512}, torch::kFloat32, kLast);
  BenchTrainingPair(&bench, "cwd_pair_n2_c512_64x128", {2, 512, 64, 128}, torch::kFloat32);
  BenchTrainingPair(&bench, "cwd_pair_n2_c512_64x128_bf16", {2, 512, 64, 128}, torch::kBFloat16);
  BenchTrainingPair(&bench, "cwd_pair_n64_c16_28x28", {64, 16, 28, 28}, torch::kFloat32);
  BenchTat(&bench, {"tat_hierarchical_n2_c256_128x128", 2, 256, 128, EagerTatPatches{16, 64}, 4});
  BenchTat(&bench, {"tat_plain_n8_c512_7x7", 8, 512, 7, std::nullopt, 0});
  BenchTat(&bench, {"tat_plain_n2_c256_32x32", 2, 256, 32, std::nullopt, 0});
  bench.Print();
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
