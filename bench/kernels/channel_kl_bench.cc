// Times the fused channel-wise KL, forward and backward, against the same computed operator by operator
// (eager_channel_kl.h) and against a plain copy, in one run, alternating; each result is checked against the reference
// before it is timed.
//
//   channel_kl_bench [THREADS] [ROUNDS]       defaults: all processors, 7
//
// Bytes counted: one read of student and teacher and one write of the gradient, the least the job can do. The copy's:
// one read and one write. RESULT lines: milliseconds, with the eager form as baseline; GB/s, with the plain copy as
// baseline.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "bench/kernels/eager_channel_kl.h"
#include "bench/kernels/thread_pool.h"
#include "common/kernels/channel_kl.h"
#include "common/kernels/channel_kl_reference.h"

namespace distill {
namespace {

struct Shape {
  const char* name;
  int64_t n, c, hw;
  MapLayout layout;
  ElementType type;
};

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double> x) {
  std::nth_element(x.begin(), x.begin() + x.size() / 2, x.end());
  return x[x.size() / 2];
}

// Skewed, as feature maps are.
std::vector<float> Values(int64_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> normals(1 << 16);
  std::normal_distribution<float> normal;
  for (float& v : normals) v = normal(random);
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    const float v = normals[random() & 0xffff];
    values[i] = v > 1 ? 2 * v * v : 0.5f * v;
  }
  return values;
}

std::vector<char> Packed(const std::vector<float>& values, ElementType type) {
  std::vector<char> bytes(values.size() * SizeOf(type));
  DispatchElement(type, [&](auto* tag) {
    auto* out = reinterpret_cast<decltype(tag)>(bytes.data());
    for (size_t i = 0; i < values.size(); ++i) FromFloat(values[i], out + i);
  });
  return bytes;
}

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "channel_kl_bench: %s\n", what.c_str());
  std::exit(1);
}

// The first sample in full against the reference, and the eager form's loss against ours on everything.
void Check(const Shape& shape, const ChannelKlMaps& maps, const std::vector<char>& gradient, double loss) {
  ChannelKlMaps first = maps;
  first.n = 1;
  ChannelKlOptions options;
  const StatusOr<ChannelKlReferenceResult> want = ChannelKlReference<double>(first, options);
  if (!want.ok()) Die(std::string(want.status().message().data(), want.status().message().size()));
  double error = 0, size = 0;
  DispatchElement(maps.student_type, [&](auto* tag) {
    const auto* got = reinterpret_cast<const std::remove_pointer_t<decltype(tag)>*>(gradient.data());
    for (size_t i = 0; i < want->gradient.size(); ++i) {
      const double expected = want->gradient[i] / shape.n;
      error += std::pow(ToFloat(got[i]) - expected, 2);
      size += expected * expected;
    }
  });
  const double limit = maps.student_type == ElementType::kFloat32 ? 1e-5 : 4e-3;  // bfloat16 rounds the gradient
  if (!(std::sqrt(error / size) < limit))
    Die(std::string(shape.name) + ": gradient differs from the reference by " +
        std::to_string(std::sqrt(error / size)));
  const StatusOr<ChannelKlResult> one = ChannelKl(first, options, {}, SerialFor);
  if (!(std::fabs(one->loss - want->result.loss) < 1e-5 * want->result.loss))
    Die(std::string(shape.name) + ": loss differs from the reference");
  std::printf("%s: checked, loss %.6f, gradient's relative error %.1e\n", shape.name, loss, std::sqrt(error / size));
}

void Run(const Shape& shape, const ParallelFor& parallel_for, int rounds, std::vector<std::string>* results) {
  const int64_t rows = shape.n * shape.c, count = rows * shape.hw, bytes = count * SizeOf(shape.type);
  const std::vector<float> student = Values(count, 1), teacher = Values(count, 2);
  const std::vector<char> packed_student = Packed(student, shape.type), packed_teacher = Packed(teacher, shape.type);
  std::vector<char> gradient(bytes), copy(bytes);
  const ChannelKlMaps maps{
      shape.n, shape.c, shape.hw, shape.layout, packed_student.data(), shape.type, packed_teacher.data(), shape.type};
  const ChannelKlOptions options;
  const ChannelKlOutput output{gradient.data(), shape.type, nullptr};
  auto ours = [&] {
    StatusOr<ChannelKlResult> result = ChannelKl(maps, options, output, parallel_for);
    if (!result.ok()) Die("refused");
    return result->loss;
  };
  // The eager form works on float32 rows: for the other layout and type its time is that of the same values so laid
  // out.
  EagerTensors tensors;
  std::vector<float> eager_gradient(count);
  auto eager = [&] {
    return EagerChannelKl(student.data(), teacher.data(), rows, shape.hw, static_cast<float>(options.temperature),
                          parallel_for, &tensors, eager_gradient.data());
  };
  auto plain_copy = [&] {
    parallel_for(0, bytes, 65536, [&](int64_t begin, int64_t end) {
      std::memcpy(copy.data() + begin, packed_student.data() + begin, end - begin);
    });
  };

  const double loss = ours();
  Check(shape, maps, gradient, loss);
  const double eager_loss = eager();
  if (shape.layout == MapLayout::kChannelsFirst && shape.type == ElementType::kFloat32 &&
      !(std::fabs(eager_loss - loss) < 1e-3 * loss)) {
    Die("the eager form's loss is " + std::to_string(eager_loss) + ", ours " + std::to_string(loss));
  }
  plain_copy();
  std::vector<double> ours_s, eager_s, copy_s;
  for (int round = 0; round < rounds; ++round) {
    double start = Seconds();
    eager();
    eager_s.push_back(Seconds() - start);
    start = Seconds();
    ours();
    ours_s.push_back(Seconds() - start);
    start = Seconds();
    plain_copy();
    copy_s.push_back(Seconds() - start);
  }
  const double t = Median(ours_s), rate = 3 * bytes / t / 1e9, copy_rate = 2 * bytes / Median(copy_s) / 1e9;
  char line[256];
  std::snprintf(line, sizeof line, "RESULT %s_ms %.2f ms baseline=%.2f ratio=%.2f", shape.name, t * 1e3,
                Median(eager_s) * 1e3, Median(eager_s) / t);
  results->push_back(line);
  std::snprintf(line, sizeof line, "RESULT %s_rate %.2f GB/s baseline=%.2f ratio=%.2f", shape.name, rate, copy_rate,
                rate / copy_rate);
  results->push_back(line);
  std::printf("  ours %.2f ms (%.1f GB/s), best %.2f; eager %.2f ms; copy %.1f GB/s\n", t * 1e3, rate,
              *std::min_element(ours_s.begin(), ours_s.end()) * 1e3, Median(eager_s) * 1e3, copy_rate);
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : static_cast<int>(std::thread::hardware_concurrency());
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 7;
  if (threads < 1 || rounds < 1) Die("usage: channel_kl_bench [THREADS >= 1] [ROUNDS >= 1]");
  ThreadPool pool(threads);
  std::printf("instructions: %s, threads: %d, rounds: %d, temperature 4\n", Name(BestSimdLevel()), threads, rounds);
  constexpr MapLayout kFirst = MapLayout::kChannelsFirst, kLast = MapLayout::kChannelsLast;
  std::vector<std::string> results;
  for (const Shape& shape :
       {Shape{"channel_kl_n8_c512_64x128_f32", 8, 512, 64 * 128, kFirst, ElementType::kFloat32},
        Shape{"channel_kl_n8_c19_512x512_f32", 8, 19, 512 * 512, kFirst, ElementType::kFloat32},
        Shape{"channel_kl_n8_c512_64x128_bf16", 8, 512, 64 * 128, kFirst, ElementType::kBfloat16},
        Shape{"channel_kl_n8_c512_64x128_f32_channels_last", 8, 512, 64 * 128, kLast, ElementType::kFloat32},
        Shape{"channel_kl_n8_c19_512x512_f32_channels_last", 8, 19, 512 * 512, kLast, ElementType::kFloat32},
        Shape{"channel_kl_n8_c512_64x128_bf16_channels_last", 8, 512, 64 * 128, kLast, ElementType::kBfloat16},
        Shape{"channel_kl_n32_c512_7x7_f32", 32, 512, 7 * 7, kFirst, ElementType::kFloat32}}) {
    Run(shape, pool.parallel_for(), rounds, &results);
  }
  for (const std::string& line : results) std::printf("%s\n", line.c_str());
  return 0;
}

}  // namespace
}  // namespace distill

int main(int argc, char** argv) { return distill::Main(argc, argv); }
