#include "student_worker/train/best_weights.h"

#include <gtest/gtest.h>

namespace distill {
namespace {

TEST(BestWeightsFileTest, ComesBackToTheLastBitAndLeavesTheFileAsItWas) {
  BestWeights best;
  best.loss = 1.0 / 3;
  best.since = 7;
  best.model.tensors["fc.bias"] = {"F32", {1}, Buffer::FromVector({1, 2, 3, 4})};
  SafetensorsFile file;
  file.metadata["step_count"] = "5";
  file.tensors["optimizer.fc.bias.momentum_buffer"] = {"F32", {1}, Buffer::FromVector({5, 6, 7, 8})};
  best.AddTo(&file);
  EXPECT_EQ(file.tensors.size(), 2u);
  const BestWeights back = BestWeights::TakeFrom(&file);
  EXPECT_EQ(back.loss, 1.0 / 3);
  EXPECT_EQ(back.since, 7u);
  ASSERT_TRUE(back.model.tensors.contains("fc.bias"));
  EXPECT_EQ(back.model.tensors.at("fc.bias").bytes.data[3], 4);
  EXPECT_EQ(file.tensors.size(), 1u);
  EXPECT_EQ(file.metadata.size(), 1u);
}

TEST(BestWeightsFileTest, ComesBackWhenNothingFiniteWasMeasured) {
  SafetensorsFile file;
  BestWeights best;
  best.since = 3;
  best.AddTo(&file);
  const BestWeights back = BestWeights::TakeFrom(&file);
  EXPECT_EQ(back.since, 3u);
  EXPECT_EQ(back.loss, best.loss);
  EXPECT_TRUE(back.model.tensors.empty());
  EXPECT_TRUE(file.tensors.empty());
  EXPECT_TRUE(file.metadata.empty());
}

TEST(BestWeightsFileTest, AFileWithoutGivesAFreshOne) {
  SafetensorsFile file;
  const BestWeights fresh = BestWeights::TakeFrom(&file);
  EXPECT_EQ(fresh.since, 0u);
  EXPECT_TRUE(fresh.model.tensors.empty());
}

}  // namespace
}  // namespace distill
