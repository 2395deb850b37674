// Networks of few channels: LibTorch's strided 1x1 convolutions write beyond their workspace there
// (common/zoo/narrow_conv.h). The sizes are those at which jobs died of it, and one of every family.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <torch/torch.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "common/str_cat.h"
#include "common/zoo/narrow_conv.h"
#include "common/zoo/zoo_net.h"

namespace distill {
namespace {

struct Narrow {
  const char* arch;
  uint32_t width, image;
};
// Input channels of the strided 1x1 convolutions: `width` and twice that; of bottlenecks 4 and 8 times it.
constexpr Narrow kNets[] = {{"cifar_resnet8", 4, 48},
                            {"cifar_resnet8", 8, 64},
                            {"cifar_resnet14", 3, 48},
                            {"resnet18", 4, 64},
                            {"resnet50", 1, 64},
                            {"resnet50", 3, 64},
                            {"fcn_resnet18", 4, 64},
                            {"fcn_resnet50", 1, 64},
                            // Shortcuts of stride 2, and depthwise convolutions of one channel a group.
                            {"cifar_wrn_16_1", 4, 48},
                            {"cifar_wrn_16_2", 2, 48},
                            {"cifar_resnet8x4", 3, 48},
                            {"cifar_mobilenet_v2", 4, 64},
                            {"cifar_shufflenet_v2", 4, 48},
                            {"mobilenet_v1", 8, 64},
                            {"mobilenet_v2", 8, 64},
                            {"shufflenet_v2_x0_5", 4, 64},
                            {"deeplabv3plus_resnet18_os16", 2, 64},
                            {"pspnet_resnet18", 2, 64},
                            {"vgg11_bn", 1, 32}};

std::shared_ptr<ZooNet> Make(const Narrow& narrow) {
  ModelSpec spec;
  spec.arch = narrow.arch;
  spec.width = narrow.width;
  spec.num_classes = 3;
  spec.in_channels = 3;
  spec.image_height = narrow.image;
  spec.image_width = narrow.image;
  auto net = ZooNet::Create(spec);
  if (!net.ok()) throw std::runtime_error(net.status().ToString());
  (*net)->InitWeights(1);
  (*net)->train();
  return *net;
}

torch::Tensor Images(const Narrow& narrow) {
  torch::manual_seed(2);
  return torch::rand({8, 3, narrow.image, narrow.image});
}

// A smooth function of the output, of each image.
torch::Tensor Loss(ZooNet& net, const torch::Tensor& images) {
  auto output = net.Forward(images, {""});
  if (!output.ok()) throw std::runtime_error(output.status().ToString());
  return (*output)[0].flatten(1).log_softmax(1).select(1, 0).neg().mean();
}

class NarrowNetsTest : public testing::TestWithParam<Narrow> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
  }  // with more, other ranks' tests would be slower; the fault is there
};

TEST_P(NarrowNetsTest, TrainSomeSteps) {
  const auto net = Make(GetParam());
  torch::optim::SGD optimizer(net->parameters(), torch::optim::SGDOptions(0.01));
  const torch::Tensor images = Images(GetParam()).contiguous(torch::MemoryFormat::ChannelsLast);
  for (int step = 0; step < 3; ++step) {
    optimizer.zero_grad();
    Loss(*net, images).backward();
    optimizer.step();
  }
  EXPECT_TRUE(std::isfinite(Loss(*net, images).item<double>()));
}

INSTANTIATE_TEST_SUITE_P(Families, NarrowNetsTest, testing::ValuesIn(kNets), [](const auto& info) {
  return std::string(info.param.arch) + "Of" + std::to_string(info.param.width) + "At" +
         std::to_string(info.param.image);
});

// Each convolution alone: the forward pass bit by bit, gradients as in float64.
TEST(StridedPointwiseConvTest, IsTheStridedConvolution) {
  at::set_num_threads(1);
  for (int64_t in : {1, 3, 4, 7, 8, 12, 15}) {
    for (int64_t out : {1, 4, 8, 24}) {
      for (const auto& [height, width, stride] :
           {std::tuple{48, 48, 2}, std::tuple{16, 24, 2}, std::tuple{9, 7, 2}, std::tuple{24, 24, 3}}) {
        for (const auto format : {torch::MemoryFormat::ChannelsLast, torch::MemoryFormat::Contiguous}) {
          torch::manual_seed(in * 100 + out);
          const torch::Tensor x = torch::randn({2, in, height, width}).contiguous(format).requires_grad_(true);
          const torch::Tensor weight = torch::randn({out, in, 1, 1}).requires_grad_(true);
          const torch::Tensor y = StridedPointwiseConv(x, weight, stride);
          const std::string what = StrCat(in, " -> ", out, " at ", height, "x", width, " stride ", stride);
          EXPECT_TRUE(torch::equal(y.detach(), torch::conv2d(x.detach(), weight.detach(), {}, stride))) << what;
          const torch::Tensor incoming = torch::randn_like(y);
          y.backward(incoming);
          const torch::Tensor x64 = x.detach().to(torch::kFloat64).requires_grad_(true);
          const torch::Tensor weight64 = weight.detach().to(torch::kFloat64).requires_grad_(true);
          torch::conv2d(x64, weight64, {}, stride).backward(incoming.to(torch::kFloat64));
          for (const auto& [got, expected] : {std::pair{x.grad(), x64.grad()}, {weight.grad(), weight64.grad()}}) {
            EXPECT_LE((got - expected).abs().max().item<double>(), 1e-5 * expected.abs().max().item<double>()) << what;
          }
        }
      }
    }
  }
}

TEST(StridedPointwiseConvTest, ComputesOnlyTheGradientsAskedFor) {
  const torch::Tensor x = torch::randn({2, 4, 8, 8}), weight = torch::randn({8, 4, 1, 1}).requires_grad_(true);
  StridedPointwiseConv(x, weight, 2).sum().backward();
  EXPECT_TRUE(weight.grad().defined());
  const torch::Tensor frozen = weight.detach(), input = x.clone().requires_grad_(true);
  StridedPointwiseConv(input, frozen, 2).sum().backward();
  EXPECT_TRUE(input.grad().defined());
  EXPECT_FALSE(frozen.grad().defined());
  EXPECT_FALSE(StridedPointwiseConv(x, frozen, 2).requires_grad());
}

// What a write beyond a block's end does is luck; the C library's checker looks at every free().
TEST(NarrowNetsHeapTest, TheHeapIsSoundAfterwards) {
  const char* checker = nullptr;
  for (const char* path : {"/lib/x86_64-linux-gnu/libc_malloc_debug.so.0", "/lib64/libc_malloc_debug.so.0",
                           "/usr/lib/libc_malloc_debug.so.0", "/lib/aarch64-linux-gnu/libc_malloc_debug.so.0"}) {
    if (std::filesystem::exists(path)) checker = path;
  }
  if (checker == nullptr) GTEST_SKIP() << "glibc's libc_malloc_debug.so.0 is not installed";
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    setenv("LD_PRELOAD", checker, 1);
    setenv("GLIBC_TUNABLES", "glibc.malloc.check=3", 1);
    execl(self.c_str(), self.c_str(), "--gtest_filter=*NarrowNetsTest.TrainSomeSteps*", nullptr);
    _exit(127);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
      << "the child ended with " << (WIFSIGNALED(status) ? StrCat("signal ", WTERMSIG(status)) : StrCat(status));
}

}  // namespace
}  // namespace distill
