// Every loss on a GPU against itself on the CPU. Skipped where there is none.
#include "common/cuda/cuda_runtime.h"
#include "tests/common/cuda/gpu_test.h"
#include "tests/student_worker/losses/every_loss.h"

namespace distill {
namespace {

class CudaLossTest : public EveryLossTest {
 protected:
  void SetUp() override {
    DISTILL_NEED_GPU();
    at::globalContext().setAllowTF32CuDNN(false);  // the adapters' convolutions: both sides compute in float32
  }
};

INSTANTIATE_TEST_SUITE_P(Table, CudaLossTest, testing::ValuesIn(LossTypes()),
                         [](const auto& info) { return std::string(info.param); });

// Also in bfloat16, and channels last: the fused kernels have code for each.
TEST_P(CudaLossTest, EqualsTheCpus) {
  for (const auto dtype : {torch::kFloat32, torch::kBFloat16}) {
    for (const bool last : {false, true}) {
      if (last && !maps()) continue;  // logits have one layout
      LossInputs inputs = Inputs(dtype);
      if (last) {
        inputs.student = inputs.student.contiguous(torch::MemoryFormat::ChannelsLast);
        inputs.teacher = inputs.teacher.contiguous(torch::MemoryFormat::ChannelsLast);
      }
      const auto on_cpu = Make(), on_gpu = Make();
      if (on_gpu->module() != nullptr) on_gpu->module()->to(torch::kCUDA);
      const LossAndGradient want = Differentiate(*on_cpu, inputs);
      inputs.student = inputs.student.to(torch::kCUDA);
      if (inputs.teacher.defined()) inputs.teacher = inputs.teacher.to(torch::kCUDA);
      if (inputs.labels.defined()) inputs.labels = inputs.labels.to(torch::kCUDA);
      const LossAndGradient got = Differentiate(*on_gpu, inputs);
      const double epsilon = dtype == torch::kFloat32 ? 1e-3 : 1e-2;
      EXPECT_NEAR(got.loss, want.loss, epsilon * std::max(1.0, want.loss)) << dtype << (last ? ", channels last" : "");
      const torch::Tensor expected = want.gradient.to(torch::kFloat64);
      EXPECT_LE((got.gradient.cpu().to(torch::kFloat64) - expected).norm().item<double>(),
                2 * epsilon * expected.norm().item<double>())
          << dtype << (last ? ", channels last" : "");
      EXPECT_EQ(on_gpu->details().size(), on_cpu->details().size());
      for (size_t i = 0; i < on_cpu->details().size(); ++i) {
        const double value = on_cpu->details()[i].item<double>();
        EXPECT_NEAR(on_gpu->details()[i].item<double>(), value, 10 * epsilon * std::max(1.0, std::abs(value)))
            << on_cpu->detail_names()[i];
      }
    }
  }
}

}  // namespace
}  // namespace distill
