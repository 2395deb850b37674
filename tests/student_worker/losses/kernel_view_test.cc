#include "student_worker/losses/kernel_view.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <mutex>
#include <set>
#include <thread>

#include "common/wire/copy_count.h"

namespace distill::loss_internal {
namespace {

// A build without OpenMP runs everything on the caller's thread, and only the clock would tell.
TEST(ParallelForOfTorchTest, SharesTheWorkAmongTorchsThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  int64_t done = 0;
  ParallelForOfTorch(0, 30, 1, [&](int64_t begin, int64_t end) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
    done += end - begin;
  });
  at::set_num_threads(before);
  EXPECT_EQ(threads.size(), 3u);
  EXPECT_EQ(done, 30);
}

TEST(TimesIncomingTest, AFactorThatWasExpectedCostsNoPass) {
  const torch::Tensor gradient = torch::rand({2, 3});
  // 0.1 is no float32.
  EXPECT_TRUE(TimesIncoming(gradient, 0.1, torch::tensor(0.1f)).is_same(gradient));
  EXPECT_TRUE(TimesIncoming(gradient, 1, torch::ones({})).is_same(gradient));
  EXPECT_TRUE(torch::allclose(TimesIncoming(gradient, 0.5, torch::tensor(2.0f)), gradient * 4));
  EXPECT_TRUE(torch::equal(TimesIncoming(gradient, 0.5, torch::zeros({})), torch::zeros({2, 3})));
}

TEST(InLayoutTest, OnlyAMapInTheOtherLayoutIsCopied) {
  const torch::Tensor map = torch::rand({2, 3, 4, 5});
  const auto last = torch::MemoryFormat::ChannelsLast, first = torch::MemoryFormat::Contiguous;
  const uint64_t before = FeatureBytesCopied();
  EXPECT_TRUE(InLayout(map, first).is_same(map));
  EXPECT_EQ(FeatureBytesCopied(), before);
  const torch::Tensor moved = InLayout(map, last);
  EXPECT_EQ(FeatureBytesCopied() - before, map.nbytes());
  EXPECT_TRUE(moved.is_contiguous(last));
  EXPECT_TRUE(torch::equal(moved, map));
  EXPECT_TRUE(InLayout(moved, last).is_same(moved));
  EXPECT_EQ(FeatureBytesCopied() - before, map.nbytes());
}

}  // namespace
}  // namespace distill::loss_internal
