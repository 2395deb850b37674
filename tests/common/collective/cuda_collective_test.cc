// NCCL on a GPU, with the plugin beside the program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "common/collective/collective_backend.h"
#include "tests/common/cuda/gpu_test.h"

namespace distill {
namespace {

TEST(CudaCollectiveTest, WithoutADeviceThereIsNoGroup) {
  const Status cuda = LoadCudaRuntime();
  EXPECT_EQ(CollectiveGroup::Create({.device = "cuda:0"}, nullptr).status(), cuda);
}

// NCCL refuses two ranks on one GPU, so one rank must do: it goes through the same communicator, reducer and abort.
TEST(CudaCollectiveTest, NcclGroupOfOneReducesBroadcastsAndAborts) {
  DISTILL_NEED_GPU();
  const CollectiveGroup::Options options = {.device = "cuda:0"};
  const auto store = c10::make_intrusive<CoordinatorStore>(MakeLocalKvClient(), options.timeout);
  const auto group = MakeC10dGroup(options, store, MakeNcclBackend(store, options));
  const Status connected = group->Connect();
  ASSERT_TRUE(connected.ok()) << connected;

  std::vector<torch::Tensor> tensors = {torch::full({1000}, 3.0f, torch::kCUDA)};
  Status status = group->AllReduceSum(tensors);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE((tensors[0] == 3).all().item<bool>());
  ASSERT_TRUE(group->Broadcast(tensors, 0).ok());
  EXPECT_TRUE(group->Check().ok());
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
  EXPECT_EQ(group->Check().code(), StatusCode::kAborted);
}

}  // namespace
}  // namespace distill
