#include <gtest/gtest.h>
#include <torch/torch.h>

#include "common/zoo/zoo_net.h"

namespace distill {
namespace {

// The operators that a GPU runs, one pass each.
torch::Tensor ByOperators(const torch::Tensor& pixels, const ModelSpec& spec) {
  torch::Tensor x = pixels.to(torch::kFloat32).div_(255);
  if (!spec.mean.empty()) x.sub_(torch::tensor(spec.mean).view({1, -1, 1, 1}));
  if (!spec.std.empty()) x.div_(torch::tensor(spec.std).view({1, -1, 1, 1}));
  return x;
}

TEST(NormalizePixelsInOnePassTest, GivesTheBitsOfTheOperators) {
  for (int64_t channels : {1, 2, 3, 4}) {
    for (const auto& [n, h, w] : {std::tuple{1, 1, 1}, {2, 16, 16}, {5, 3, 7}, {0, 4, 4}, {3, 224, 1}}) {
      const torch::Tensor pixels = torch::randint(0, 256, {n, channels, h, w}, torch::kUInt8);
      for (bool scaled : {false, true}) {
        ModelSpec spec;
        if (scaled) {
          for (int64_t c = 0; c < channels; ++c) {
            spec.mean.push_back(0.4f + 0.013f * static_cast<float>(c));
            spec.std.push_back(0.23f - 0.017f * static_cast<float>(c));
          }
        }
        const torch::Tensor wanted = ByOperators(pixels, spec);
        for (bool last : {false, true}) {
          const torch::Tensor got = NormalizePixels(pixels, spec, last);
          EXPECT_TRUE(torch::equal(got, wanted)) << channels << " channels, " << n << "x" << h << "x" << w;
          EXPECT_TRUE(got.is_contiguous(last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous));
        }
      }
    }
  }
}

TEST(NormalizePixelsInOnePassTest, ReadsAViewOfPixelsRight) {
  const torch::Tensor pixels = torch::randint(0, 256, {4, 3, 10, 12}, torch::kUInt8);
  const torch::Tensor view = pixels.slice(3, 2, 9).transpose(2, 3);
  EXPECT_TRUE(torch::equal(NormalizePixels(view, {}, true), ByOperators(view, {})));
}

}  // namespace
}  // namespace distill
