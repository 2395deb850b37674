// The GPU kernels on a GPU, against the CPU's. Skipped where there is none.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "common/cuda/cuda_plugin.h"
#include "common/cuda/cuda_runtime.h"
#include "common/kernels/channel_kl.h"
#include "common/kernels/tat_attention.h"
#include "tests/common/cuda/gpu_test.h"

namespace distill {
namespace {

using torch::Tensor;

class CudaKernelsTest : public testing::Test {
 protected:
  void SetUp() override {
    DISTILL_NEED_GPU();
    plugin_ = LoadedCudaPlugin();
    torch::manual_seed(1);
  }
  const CudaPlugin* plugin_ = nullptr;
};

ElementType TypeOf(const Tensor& map) {
  return map.scalar_type() == torch::kFloat32    ? ElementType::kFloat32
         : map.scalar_type() == torch::kBFloat16 ? ElementType::kBfloat16
                                                 : ElementType::kFloat16;
}
MapLayout LayoutOf(const Tensor& map) {
  return map.is_contiguous() ? MapLayout::kChannelsFirst : MapLayout::kChannelsLast;
}

double Difference(const Tensor& got, const Tensor& want) {
  const Tensor expected = want.to(torch::kDouble);
  return ((got.to(torch::kCPU).to(torch::kDouble) - expected).norm() / expected.norm()).item<double>();
}

TEST_F(CudaKernelsTest, ChannelKlEqualsTheCpus) {
  // One block per row, clusters, and rows too long for any.
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {3, 5, 7, 9}, {2, 19, 65, 65}, {1, 40, 128, 256}, {1, 3, 512, 512}, {1, 2, 1024, 1024}}) {
    for (const auto format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
      for (const auto type : {torch::kFloat32, torch::kBFloat16, torch::kFloat16}) {
        const Tensor student = torch::randn(shape).to(type).contiguous(format);
        const Tensor teacher = torch::randn(shape).to(type).contiguous(format);
        const Tensor student_gpu = student.to(torch::kCUDA), teacher_gpu = teacher.to(torch::kCUDA);
        const Tensor want = torch::empty_like(student), got = torch::empty_like(student_gpu);
        const Tensor loss = torch::empty({1}, torch::device(torch::kCUDA));
        const Tensor bad = torch::empty({1}, torch::device(torch::kCUDA).dtype(torch::kInt));
        ChannelKlMaps maps{shape[0],           shape[1],        shape[2] * shape[3], LayoutOf(student),
                           student.data_ptr(), TypeOf(student), teacher.data_ptr(),  TypeOf(teacher)};
        const StatusOr<ChannelKlResult> reference = ChannelKl(maps, {}, {want.data_ptr(), TypeOf(want)}, SerialFor);
        ASSERT_TRUE(reference.ok()) << reference.status();
        maps.student = student_gpu.data_ptr();
        maps.teacher = teacher_gpu.data_ptr();
        ChannelKlCudaOutput output;
        output.gradient = got.data_ptr();
        output.loss = loss.data_ptr<float>();
        output.nonfinite_rows = bad.data_ptr<int32_t>();
        ASSERT_EQ(plugin_->channel_kl(maps, {}, output), "");
        EXPECT_NEAR(loss.item<double>(), reference->loss, 1e-5 * reference->loss) << student.sizes();
        EXPECT_EQ(bad.item<int32_t>(), 0);
        EXPECT_LE(Difference(got, want), type == torch::kFloat32 ? 1e-5 : 8e-3) << student.sizes();
      }
    }
  }
}

TEST_F(CudaKernelsTest, TatAttentionEqualsTheCpus) {
  for (const auto format : {torch::MemoryFormat::Contiguous, torch::MemoryFormat::ChannelsLast}) {
    for (TatMode mode : {TatMode::kPlain, TatMode::kPatchGroup, TatMode::kAnchor}) {
      const std::vector<int64_t> shape = {2, 48, 33, 35};
      std::vector<Tensor> maps, on_gpu, want, got;
      for (int i = 0; i < 4; ++i) {
        maps.push_back((i % 2 == 0 ? 0.5 : 1.0) * torch::randn(shape).contiguous(format));
        on_gpu.push_back(maps.back().to(torch::kCUDA));
        want.push_back(torch::zeros_like(maps.back()));
        got.push_back(torch::zeros_like(on_gpu.back()));
      }
      const auto views = [&](const std::vector<Tensor>& tensors) {
        const auto view = [](const Tensor& map) {
          return FeatureMap{map.data_ptr(), TypeOf(map), LayoutOf(map), map.size(1), map.size(2), map.size(3)};
        };
        return TatMaps{shape[0], view(tensors[0]), view(tensors[1]), view(tensors[2]), view(tensors[3])};
      };
      const auto gradients = [](const std::vector<Tensor>& tensors) {
        return TatGradients{tensors[0].data_ptr<float>(), tensors[1].data_ptr<float>(), tensors[2].data_ptr<float>()};
      };
      TatOptions options;
      options.mode = mode;
      options.grid_rows = options.grid_columns = 4;
      options.groups = 8;
      const StatusOr<TatResult> reference = TatAttention(views(maps), options, gradients(want), SerialFor);
      ASSERT_TRUE(reference.ok()) << reference.status();
      const Tensor numbers = torch::empty({3}, torch::device(torch::kCUDA));
      const StatusOr<TatTokenPlan> plan = PlanTat(views(on_gpu), options);
      ASSERT_TRUE(plan.ok()) << plan.status();
      TatCudaOutput output;
      output.gradients = gradients(got);
      output.loss = numbers.data_ptr<float>();
      output.mean_entropy = output.loss + 1;
      output.mean_largest_weight = output.loss + 2;
      ASSERT_EQ(plugin_->tat_attention(views(on_gpu), options, *plan, output), "");
      EXPECT_NEAR(numbers[0].item<double>(), reference->loss, 1e-4 * reference->loss);
      EXPECT_NEAR(numbers[1].item<double>(), reference->mean_entropy, 1e-3);
      EXPECT_NEAR(numbers[2].item<double>(), reference->mean_largest_weight, 1e-3);
      for (int i = 0; i < 3; ++i) EXPECT_LE(Difference(got[i], want[i]), 1e-4) << "map " << i;
    }
  }
}

}  // namespace
}  // namespace distill
