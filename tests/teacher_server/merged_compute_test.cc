#include "teacher_server/merged_compute.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distill {
namespace {

using testing::ElementsAre;

// A device with room for some images at a time; answers say which request they are of.
class Device {
 public:
  explicit Device(uint32_t room) : room_(room) {}
  StatusOr<std::vector<FeatureBatch>> Compute(std::span<const QueuedRequest> batch) {
    uint32_t images = 0;
    for (const QueuedRequest& item : batch) images += item.request.images.n;
    passes.push_back(images);
    if (images > room_) return absl::ResourceExhaustedError("CUDA out of memory");
    if (broken) return absl::InternalError("broken");
    std::vector<FeatureBatch> answers(batch.size());
    for (size_t i = 0; i < batch.size(); ++i) answers[i].model_digest = std::to_string(batch[i].request.tag);
    return answers;
  }
  std::vector<StatusOr<FeatureBatch>> Run(std::span<const QueuedRequest> batch) {
    return ComputeMerged(
        batch, [this](std::span<const QueuedRequest> part) { return Compute(part); }, [this] { ++releases; });
  }
  std::vector<uint32_t> passes;  // images of each
  int releases = 0;
  bool broken = false;

 private:
  const uint32_t room_;
};

std::vector<QueuedRequest> Batch(const std::vector<uint32_t>& images) {
  std::vector<QueuedRequest> batch(images.size());
  for (size_t i = 0; i < images.size(); ++i) {
    batch[i].request.tag = i;
    batch[i].request.images.n = images[i];
  }
  return batch;
}

TEST(MergedComputeTest, OnePassWhereItFits) {
  Device device(100);
  const auto answers = device.Run(Batch({30, 30}));
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_EQ(answers[0]->model_digest, "0");
  EXPECT_EQ(answers[1]->model_digest, "1");
  EXPECT_THAT(device.passes, ElementsAre(60));
  EXPECT_EQ(device.releases, 0);
}

TEST(MergedComputeTest, RequestsThatFitAloneAreAnswered) {
  Device device(40);
  const auto answers = device.Run(Batch({30, 50, 40}));
  ASSERT_EQ(answers.size(), 3u);
  EXPECT_EQ(answers[0]->model_digest, "0");
  EXPECT_EQ(answers[1].status().code(), StatusCode::kResourceExhausted) << "this one fits nowhere";
  EXPECT_EQ(answers[2]->model_digest, "2");
  EXPECT_THAT(device.passes, ElementsAre(120, 30, 50, 40));
  EXPECT_EQ(device.releases, 2);
}

TEST(MergedComputeTest, OneRequestIsNotTriedTwice) {
  Device device(10);
  const auto answers = device.Run(Batch({30}));
  ASSERT_EQ(answers.size(), 1u);
  EXPECT_EQ(answers[0].status().code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(device.passes, ElementsAre(30));
  EXPECT_EQ(device.releases, 1);
}

TEST(MergedComputeTest, OtherFailuresAreAllClients) {
  Device device(100);
  device.broken = true;
  const auto answers = device.Run(Batch({30, 30}));
  ASSERT_EQ(answers.size(), 2u);
  EXPECT_EQ(answers[0].status().code(), StatusCode::kInternal);
  EXPECT_EQ(answers[1].status().code(), StatusCode::kInternal);
  EXPECT_THAT(device.passes, ElementsAre(60));
}

}  // namespace
}  // namespace distill
