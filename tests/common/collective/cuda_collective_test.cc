// Needs a GPU and the plugin beside the program; skips with the reason otherwise.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "common/collective/c10d_group.h"
#include "common/collective/coordinator_store.h"
#include "common/cuda/cuda_runtime.h"

namespace distill {
namespace {

TEST(CudaRuntimeTest, WithoutADeviceTheAnswerSaysWhyAndStaysTheSame) {
  const Status status = LoadCudaRuntime();
  if (status.ok()) GTEST_SKIP() << "this machine has " << CudaDeviceName(0);
  EXPECT_EQ(status.code(), StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("CUDA"));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("use device cpu"));
  EXPECT_EQ(CudaDeviceCount(), 0);
  EXPECT_EQ(LoadedCudaPlugin(), nullptr);
  EXPECT_EQ(LoadCudaRuntime(), status);
  EXPECT_EQ(CollectiveGroup::Form({.device = "cuda"}, nullptr).status(), status);
}

// NCCL refuses two ranks on one GPU, so one rank must do: it goes through the same communicator, reducer and abort.
TEST(CudaCollectiveTest, NcclGroupOfOneReducesBroadcastsAndAborts) {
  const Status cuda = LoadCudaRuntime();
  if (!cuda.ok()) GTEST_SKIP() << cuda.message();
  const CollectiveGroup::Options options = {.device = "cuda"};
  const auto store = c10::make_intrusive<CoordinatorStore>(MakeLocalKvClient(), options.timeout,
                                                           CoordinatorStore::Clock::time_point::max());
  const auto group = MakeC10dGroup(options, store, MakeNcclBackend(store, options));

  std::vector<torch::Tensor> tensors = {torch::full({1000}, 3.0f, torch::kCUDA)};
  Status status = group->AllReduceSum(tensors);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE((tensors[0] == 3).all().item<bool>());
  ASSERT_TRUE(group->Broadcast(tensors, 0).ok());
  ASSERT_TRUE(group->Barrier().ok());
  std::vector<torch::Tensor> on_cpu = {torch::ones({2})};
  EXPECT_EQ(group->AllReduceSum(on_cpu).code(), StatusCode::kInvalidArgument);

  torch::nn::Linear linear(8, 4);
  linear->to(torch::kCUDA);
  const torch::Tensor x = torch::randn({16, 8}, torch::kCUDA);
  linear->forward(x).pow(2).mean().backward();
  const torch::Tensor expected = linear->weight.grad().clone();
  linear->zero_grad();
  {
    auto reducer = group->MakeReducer(linear->parameters());
    ASSERT_TRUE(reducer.ok()) << reducer.status();
    for (int step = 0; step < 3; ++step) {
      linear->zero_grad();
      ASSERT_TRUE((*reducer)->PrepareForForward().ok());
      const torch::Tensor loss = linear->forward(x).pow(2).mean();
      ASSERT_TRUE((*reducer)->PrepareForBackward({loss}).ok());
      loss.backward();
      EXPECT_TRUE(torch::allclose(linear->weight.grad(), expected)) << "step " << step;
    }
  }
  group->Abort();
  EXPECT_EQ(group->Barrier().code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace distill
