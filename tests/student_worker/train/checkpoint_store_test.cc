#include "student_worker/train/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "student_worker/train/plan_digest.h"
#include "tests/student_worker/train/temp_folder.h"

namespace distill {
namespace {

using testing::HasSubstr;
namespace fs = std::filesystem;

SafetensorsFile Tensors(const std::string& name, size_t floats, uint8_t fill) {
  SafetensorsFile file;
  file.metadata["step_count"] = "7";
  file.tensors[name] = {
      "F32", {static_cast<int64_t>(floats)}, Buffer::FromVector(std::vector<uint8_t>(4 * floats, fill))};
  return file;
}

Checkpoint At(uint32_t stage, uint64_t step, bool stage_end = false) {
  Checkpoint checkpoint;
  CheckpointState& state = checkpoint.state;
  state.job_id = "job-1";
  state.plan_digest = "digest";
  state.stage = stage;
  state.step = step;
  state.total_step = 100 * stage + step;
  state.stage_end = stage_end;
  state.seed = 18446744073709551615ull;
  state.world_size = 2;
  state.threads = 1;
  state.generation = 3;
  state.score = {.accuracy = 0.875, .mean_iou = 0.5};
  state.loss = 0.1;
  checkpoint.model = Tensors("fc.weight", 16, static_cast<uint8_t>(step));
  checkpoint.optimizer = Tensors("optimizer.fc.weight.momentum_buffer", 16, static_cast<uint8_t>(step + 1));
  return checkpoint;
}

class CheckpointStoreTest : public testing::Test {
 protected:
  CheckpointStore Open() {
    auto store = CheckpointStore::Open(folder_ / "job-1/checkpoints");
    if (!store.ok()) throw std::runtime_error(store.status().ToString());
    return *store;
  }
  std::string Write(CheckpointStore& store, const Checkpoint& checkpoint) {
    auto stored = store.Write(checkpoint);
    if (!stored.ok()) throw std::runtime_error(stored.status().ToString());
    return stored->path;
  }
  std::optional<StoredCheckpoint> Newest(const CheckpointStore& store) {
    skipped_.clear();
    auto newest = store.LoadNewest("job-1", "digest", &skipped_);
    if (!newest.ok()) throw std::runtime_error(newest.status().ToString());
    return std::move(*newest);
  }
  std::vector<std::string> Names(const CheckpointStore& store) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(store.root())) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

  TempFolder folder_;
  std::vector<std::string> skipped_;
};

TEST_F(CheckpointStoreTest, WhatIsWrittenComesBack) {
  CheckpointStore store = Open();
  EXPECT_FALSE(Newest(store).has_value());
  const Checkpoint written = At(1, 20);
  auto stored = store.Write(written);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->path, store.root() + "/stage-1-step-20");
  const auto newest = Newest(store);
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->path, stored->path);
  EXPECT_EQ(newest->digest, stored->digest);
  EXPECT_EQ(newest->digest.size(), 64u);
  EXPECT_EQ(newest->checkpoint.state, written.state);
  const SafeTensor& tensor = newest->checkpoint.model.tensors.at("fc.weight");
  EXPECT_EQ(std::vector<uint8_t>(tensor.bytes.data, tensor.bytes.data + tensor.bytes.size),
            std::vector<uint8_t>(64, 20));
  EXPECT_EQ(newest->checkpoint.optimizer.metadata.at("step_count"), "7");
  EXPECT_TRUE(skipped_.empty());
}

TEST_F(CheckpointStoreTest, StageBoundariesHaveNoOptimizerTensors) {
  CheckpointStore store = Open();
  Checkpoint checkpoint = At(0, 100, true);
  checkpoint.optimizer = SafetensorsFile();
  Write(store, checkpoint);
  const auto newest = Newest(store);
  ASSERT_TRUE(newest.has_value());
  EXPECT_TRUE(newest->checkpoint.optimizer.tensors.empty());
}

TEST_F(CheckpointStoreTest, NewestIsByStageThenStepAsNumbers) {
  CheckpointStore store = Open();
  Write(store, At(0, 100, true));
  Write(store, At(1, 9));
  Write(store, At(1, 10));
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 10u);
}

TEST_F(CheckpointStoreTest, EveryDamageFallsBackToTheOneBefore) {
  for (const char* file : {"model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"}) {
    for (const char* damage : {"removed", "truncated", "changed"}) {
      SCOPED_TRACE(std::string(file) + " " + damage);
      TempFolder folder;
      auto store = CheckpointStore::Open(folder.path());
      ASSERT_TRUE(store.ok());
      Write(*store, At(0, 10));
      const std::string path = Write(*store, At(0, 20)) + "/" + file;
      std::string bytes = ReadAll(path);
      ASSERT_GT(bytes.size(), 20u);
      if (damage == std::string("removed")) {
        fs::remove(path);
      } else if (damage == std::string("truncated")) {
        WriteAll(path, bytes.substr(0, bytes.size() - 10));
      } else {
        bytes[bytes.size() - 12] ^= 1;
        WriteAll(path, bytes);
      }
      const auto newest = Newest(*store);
      ASSERT_TRUE(newest.has_value());
      EXPECT_EQ(newest->checkpoint.state.step, 10u);
      ASSERT_EQ(skipped_.size(), 1u);
      EXPECT_THAT(skipped_[0], HasSubstr("stage-0-step-20"));
    }
  }
}

TEST_F(CheckpointStoreTest, OtherPlansAndJobsAreNotContinued) {
  CheckpointStore store = Open();
  Write(store, At(0, 10));
  std::vector<std::string> skipped;
  auto other_plan = store.LoadNewest("job-1", "another", &skipped);
  ASSERT_TRUE(other_plan.ok());
  EXPECT_FALSE(other_plan->has_value());
  ASSERT_EQ(skipped.size(), 1u);
  EXPECT_THAT(skipped[0], HasSubstr("another"));
  auto other_job = store.LoadNewest("job-2", "digest", nullptr);
  ASSERT_TRUE(other_job.ok());
  EXPECT_FALSE(other_job->has_value());
}

TEST_F(CheckpointStoreTest, KeepsTheNewestTwoAndStageBoundaries) {
  CheckpointStore store = Open();
  Write(store, At(0, 50));
  Write(store, At(0, 100, true));
  for (uint64_t step : {10, 20, 30, 40}) Write(store, At(1, step));
  EXPECT_EQ(Names(store), (std::vector<std::string>{"stage-0-step-100", "stage-1-step-30", "stage-1-step-40"}));
}

TEST_F(CheckpointStoreTest, LeftoversOfInterruptedWritersAreIgnoredAndRemoved) {
  CheckpointStore store = Open();
  fs::create_directories(store.root() + "/.tmp-2");
  WriteAll(store.root() + "/.tmp-2/model.safetensors", "half");
  fs::create_directories(store.root() + "/.tmp-9");          // of a newer generation: not ours to touch
  fs::create_directories(store.root() + "/stage-5-step-1");  // no manifest: does not exist
  fs::create_directories(store.root() + "/stage-6-step-x");
  EXPECT_FALSE(Newest(store).has_value());
  Write(store, At(0, 10));
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 10u);
  const auto names = Names(store);
  EXPECT_FALSE(fs::exists(store.root() + "/.tmp-2"));
  EXPECT_TRUE(fs::exists(store.root() + "/.tmp-9"));
}

TEST_F(CheckpointStoreTest, TheSameStepIsReplaced) {
  CheckpointStore store = Open();
  Write(store, At(0, 10));
  Checkpoint again = At(0, 10);
  again.state.generation = 4;
  Write(store, again);
  EXPECT_EQ(Newest(store)->checkpoint.state.generation, 4u);
}

TEST_F(CheckpointStoreTest, AFullDiskLeavesTheOlderCheckpointAndNothingElse) {
  const SmallDisk disk(folder_ / "disk", "128k");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  auto store = CheckpointStore::Open(folder_ / "disk/checkpoints");
  ASSERT_TRUE(store.ok()) << store.status();
  Write(*store, At(0, 10));
  Checkpoint large = At(0, 20);
  large.model = Tensors("fc.weight", 1 << 16, 1);
  const auto refused = store->Write(large);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted) << refused.status();
  EXPECT_THAT(refused.status().ToString(), HasSubstr(folder_ / "disk"));
  EXPECT_EQ(Names(*store), std::vector<std::string>{"stage-0-step-10"});
  EXPECT_EQ(Newest(*store)->checkpoint.state.step, 10u);
}

TEST_F(CheckpointStoreTest, AFileInTheWayIsNamed) {
  WriteAll(folder_ / "job-1", "a file");
  const auto store = CheckpointStore::Open(folder_ / "job-1/checkpoints");
  ASSERT_FALSE(store.ok());
  EXPECT_THAT(store.status().ToString(), HasSubstr("job-1"));
}

TEST(PlanDigestTest, ChangesWithThePlanAndOnlyThen) {
  JobPlan plan;
  plan.name = "a";
  plan.stages.resize(1);
  plan.stages[0].losses.resize(1);
  plan.stages[0].losses[0].knobs = {{"temperature", 4.0}, {"reduction", std::string("mean")}};
  const std::string digest = PlanDigest(plan);
  EXPECT_EQ(digest, PlanDigest(plan));
  JobPlan other = plan;
  other.stages[0].losses[0].knobs["temperature"] = 5.0;
  EXPECT_NE(digest, PlanDigest(other));
  other = plan;
  other.seed = 1;
  EXPECT_NE(digest, PlanDigest(other));
}

}  // namespace
}  // namespace distill
