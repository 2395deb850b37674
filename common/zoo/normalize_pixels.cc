#include <ATen/Parallel.h>
#include <torch/torch.h>

#include <array>
#include <vector>

#include "common/zoo/zoo_net.h"

#ifndef _OPENMP
#error "compile this file with OpenMP: at::parallel_for runs on one thread without"
#endif

namespace distill {
namespace {

// What a channel's 256 pixel values become: the same float32 operations as on a GPU, done once.
using Table = std::array<float, 256>;

std::vector<Table> Tables(int64_t channels, const ModelSpec& spec) {
  std::vector<Table> tables(channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int value = 0; value < 256; ++value) {
      float x = static_cast<float>(value) / 255;
      if (!spec.mean.empty()) x -= spec.mean[c];
      if (!spec.std.empty()) x /= spec.std[c];
      tables[c][value] = x;
    }
  }
  return tables;
}

// One pass: every pixel is read once and its value written where it belongs.
torch::Tensor OnCpu(const torch::Tensor& pixels, const ModelSpec& spec, torch::MemoryFormat format) {
  const torch::Tensor in = pixels.contiguous();
  const torch::Tensor out =
      torch::empty(in.sizes(), torch::TensorOptions().dtype(torch::kFloat32).memory_format(format));
  const int64_t n = in.size(0), c = in.size(1), hw = in.size(2) * in.size(3);
  const std::vector<Table> tables = Tables(c, spec);
  const uint8_t* const from = in.const_data_ptr<uint8_t>();
  float* const to = out.data_ptr<float>();
  const bool last = format == torch::MemoryFormat::ChannelsLast;
  at::parallel_for(0, n, std::max<int64_t>(1, 32768 / std::max<int64_t>(c * hw, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const uint8_t* const image = from + i * c * hw;
      float* const result = to + i * c * hw;
      if (last && c == 3) {  // whole pixels at a time
        for (int64_t p = 0; p < hw; ++p) {
          result[3 * p] = tables[0][image[p]];
          result[3 * p + 1] = tables[1][image[hw + p]];
          result[3 * p + 2] = tables[2][image[2 * hw + p]];
        }
        continue;
      }
      for (int64_t k = 0; k < c; ++k) {
        const Table& table = tables[k];
        const uint8_t* const channel = image + k * hw;
        float* const values = last ? result + k : result + k * hw;
        const int64_t step = last ? c : 1;
        for (int64_t p = 0; p < hw; ++p) values[p * step] = table[channel[p]];
      }
    }
  });
  return out;
}

}  // namespace

torch::Tensor NormalizePixels(const torch::Tensor& pixels, const ModelSpec& spec, bool channels_last) {
  const auto format = channels_last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
  if (pixels.is_cpu() && pixels.scalar_type() == torch::kUInt8) return OnCpu(pixels, spec, format);
  torch::Tensor x = pixels.to(torch::kFloat32, /*non_blocking=*/false, /*copy=*/true, format).div_(255);
  const auto per_channel = [&](const std::vector<float>& values) {
    return torch::tensor(values).view({1, -1, 1, 1}).to(x.device());
  };
  if (!spec.mean.empty()) x.sub_(per_channel(spec.mean));
  if (!spec.std.empty()) x.div_(per_channel(spec.std));
  return x;
}

}  // namespace distill
