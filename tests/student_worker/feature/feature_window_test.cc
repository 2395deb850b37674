#include "student_worker/feature/feature_window.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace distill {
namespace {

class FeatureWindowTest : public ::testing::Test {
 protected:
  FillableBuffer Receive(uint64_t bytes) {
    window_->Grant(bytes);
    return window_->Receive(bytes);
  }
  int released_ = 0;
  std::shared_ptr<FeatureWindow> window_ = std::make_shared<FeatureWindow>(4096, [this] { ++released_; });
};

TEST_F(FeatureWindowTest, MemoryOfATensorServesTheNextOneOfItsSize) {
  FillableBuffer first = Receive(1000);
  const uint8_t* const address = first.bytes;
  EXPECT_EQ(reinterpret_cast<uintptr_t>(address) % 64, 0);
  EXPECT_EQ(window_->used(), 1000);
  EXPECT_EQ(window_->kept(), 0);
  first = {};
  EXPECT_EQ(released_, 1);
  EXPECT_EQ(window_->used(), 0);
  EXPECT_EQ(window_->kept(), 1024);
  const FillableBuffer other = Receive(500);
  EXPECT_NE(other.bytes, address);
  const FillableBuffer again = Receive(1000);
  EXPECT_EQ(again.bytes, address);
  EXPECT_EQ(window_->kept(), 0);
  EXPECT_EQ(window_->used(), 1500);
}

TEST_F(FeatureWindowTest, WhatIsKeptMakesRoomForOtherSizes) {
  {
    std::vector<FillableBuffer> small;
    for (int i = 0; i < 4; ++i) small.push_back(Receive(1024));
  }
  EXPECT_EQ(window_->kept(), 4096);
  const FillableBuffer large = Receive(3000);
  EXPECT_EQ(window_->kept(), 1024);  // together at most the window
  const FillableBuffer rest = Receive(1024);
  EXPECT_EQ(window_->kept(), 0);
  EXPECT_EQ(window_->used(), 4024);
}

TEST_F(FeatureWindowTest, ATensorMayOutliveThePool) {
  FillableBuffer tensor = Receive(64);
  const std::weak_ptr<FeatureWindow> watch = window_;
  window_.reset();
  tensor.bytes[63] = 1;
  EXPECT_FALSE(watch.expired());
  tensor = {};
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace distill
