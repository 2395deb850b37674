#include "student_worker/train/checkpoint_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "student_worker/train/failure_class.h"
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
  state.skipped_steps = 2;
  state.total_skipped_steps = 5;
  state.seed = 18446744073709551615ull;
  state.world_size = 2;
  state.threads = 1;
  state.generation = 3;
  state.score = {.metrics = {{"top1", 0.875}, {"top5", 0.1 + 0.2}},
                 .by_class = {.labelled = {4, 4}, .answered = {3, 5}, .right = {3, 4}, .confusion = {3, 1, 0, 4}}};
  state.teacher_score = {.metrics = {{"top1", 1.0 / 3}}, .by_class = {}};
  state.loss = 0.1;
  checkpoint.model = Tensors("fc.weight", 16, static_cast<uint8_t>(step));
  checkpoint.optimizer = Tensors("optimizer.fc.weight.momentum_buffer", 16, static_cast<uint8_t>(step + 1));
  return checkpoint;
}

class CheckpointStoreTest : public testing::Test {
 protected:
  CheckpointStore Open() { return OpenAndClaim(folder_ / "job-1/checkpoints", 3); }
  static CheckpointStore OpenAndClaim(const std::string& root, uint64_t generation) {
    auto store = CheckpointStore::Open(root);
    if (!store.ok()) throw std::runtime_error(store.status().ToString());
    if (const Status claimed = store->Claim(generation); !claimed.ok()) throw std::runtime_error(claimed.ToString());
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
  // Without the fence.
  std::vector<std::string> Names(const CheckpointStore& store) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(store.root())) {
      if (entry.path().filename() != "generation") names.push_back(entry.path().filename());
    }
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
  EXPECT_EQ(stored->path, store.root() + "/stage-1-step-20-gen-3");
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
      CheckpointStore store = OpenAndClaim(folder.path(), 3);
      Write(store, At(0, 10));
      const std::string path = Write(store, At(0, 20)) + "/" + file;
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
      const auto newest = Newest(store);
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
  EXPECT_EQ(Names(store),
            (std::vector<std::string>{"stage-0-step-100-gen-3", "stage-1-step-30-gen-3", "stage-1-step-40-gen-3"}));
}

TEST_F(CheckpointStoreTest, LeftoversOfInterruptedWritersAreIgnoredAndRemoved) {
  CheckpointStore store = Open();
  fs::create_directories(store.root() + "/.tmp-2");
  WriteAll(store.root() + "/.tmp-2/model.safetensors", "half");
  fs::create_directories(store.root() + "/.tmp-9");                // of a newer generation: not ours to touch
  fs::create_directories(store.root() + "/stage-5-step-1-gen-3");  // no manifest: does not exist
  fs::create_directories(store.root() + "/stage-6-step-7-gen-x");
  EXPECT_FALSE(Newest(store).has_value());
  Write(store, At(0, 10));
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 10u);
  const auto names = Names(store);
  EXPECT_FALSE(fs::exists(store.root() + "/.tmp-2"));
  EXPECT_TRUE(fs::exists(store.root() + "/.tmp-9"));
}

TEST_F(CheckpointStoreTest, AWholeCheckpointOfTheSameStepStaysAndADamagedOneIsReplaced) {
  CheckpointStore store = Open();
  const std::string first = Write(store, At(0, 10));
  const std::string digest = Newest(store)->digest;
  auto again = store.Write(At(0, 10));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->path, first);
  EXPECT_EQ(again->digest, digest);
  WriteAll(first + "/model.safetensors", "damaged");
  again = store.Write(At(0, 10));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(Newest(store)->digest, digest);
}

TEST_F(CheckpointStoreTest, AnOlderGenerationCanNeitherWriteNorReplaceNorPrune) {
  CheckpointStore zombie = Open();  // generation 3
  Write(zombie, At(1, 400));
  Write(zombie, At(1, 500));
  CheckpointStore store = OpenAndClaim(zombie.root(), 4);
  Write(store, At(1, 450));
  const auto before = Names(store);
  for (uint64_t step : {450, 900, 1000}) {
    const auto refused = zombie.Write(At(1, step));
    EXPECT_EQ(refused.status().code(), StatusCode::kAborted) << refused.status();
    EXPECT_THAT(refused.status().ToString(), HasSubstr("generation 4"));
  }
  EXPECT_EQ(Names(store), before);
  EXPECT_EQ(Newest(store)->path, store.root() + "/stage-1-step-450-gen-4");
}

TEST_F(CheckpointStoreTest, WhatAnOlderGenerationSlippedInIsNeitherTakenNorCostsTheNewOneItsOwn) {
  CheckpointStore zombie = Open();
  for (uint64_t step : {400, 1000}) Write(zombie, At(1, step));  // 1000: as if written after generation 4 began
  CheckpointStore store = OpenAndClaim(zombie.root(), 4);
  Write(store, At(1, 450));
  EXPECT_EQ(Newest(store)->path, store.root() + "/stage-1-step-450-gen-4");
  Write(store, At(1, 500));
  EXPECT_EQ(Names(store), (std::vector<std::string>{"stage-1-step-450-gen-4", "stage-1-step-500-gen-4"}));
}

TEST_F(CheckpointStoreTest, AWriterIsTheLaterOneAlsoWhereGenerationsAreCountedAnew) {
  CheckpointStore store = OpenAndClaim(folder_ / "job", 7);
  Write(store, At(1, 20));
  CheckpointStore later = OpenAndClaim(folder_ / "job", 2);  // the coordinator's store was restored from a copy
  Write(later, At(1, 10));
  EXPECT_EQ(Newest(later)->path, later.root() + "/stage-1-step-10-gen-8");
  fs::remove(later.root() + "/generation");
  CheckpointStore last = OpenAndClaim(folder_ / "job", 3);  // the fence was lost as well
  EXPECT_EQ(Write(last, At(1, 15)), last.root() + "/stage-1-step-15-gen-9");
  EXPECT_EQ(store.Write(At(1, 30)).status().code(), StatusCode::kAborted);
}

TEST_F(CheckpointStoreTest, AFolderThatVanishedIsMadeAgain) {
  CheckpointStore store = Open();
  Write(store, At(0, 10));
  fs::remove_all(store.root());
  Write(store, At(0, 20));
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 20u);
  EXPECT_TRUE(fs::exists(store.root() + "/generation"));
}

TEST_F(CheckpointStoreTest, WritingNeedsAClaim) {
  auto store = CheckpointStore::Open(folder_ / "job");
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ(store->Write(At(0, 10)).status().code(), StatusCode::kFailedPrecondition);
}

TEST_F(CheckpointStoreTest, ACommittedCheckpointIsFoundByItsDigest) {
  CheckpointStore store = Open();
  const auto stored = store.Write(At(0, 100, true));
  ASSERT_TRUE(stored.ok()) << stored.status();
  Write(store, At(1, 10));
  EXPECT_EQ(store.Find(0, stored->digest), stored->path);
  EXPECT_EQ(store.Find(1, stored->digest), std::nullopt);
  EXPECT_EQ(store.Find(0, std::string(64, '0')), std::nullopt);
}

TEST_F(CheckpointStoreTest, APipeInAFilesPlaceIsNotWaitedFor) {
  CheckpointStore store = Open();
  Write(store, At(0, 10));
  const std::string path = Write(store, At(0, 20));
  for (const char* file : {"manifest.json", "model.safetensors"}) {
    fs::remove(path + "/" + file);
    ASSERT_EQ(mkfifo((path + "/" + file).c_str(), 0600), 0);
  }
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 10u);
}

TEST_F(CheckpointStoreTest, AFullDiskLeavesTheOlderCheckpointAndNothingElse) {
  const SmallDisk disk(folder_ / "disk", "128k");
  if (!disk.ok()) GTEST_SKIP() << "this process may not mount a tmpfs";
  CheckpointStore store = OpenAndClaim(folder_ / "disk/checkpoints", 3);
  Write(store, At(0, 10));
  Checkpoint large = At(0, 20);
  large.model = Tensors("fc.weight", 1 << 16, 1);
  const auto refused = store.Write(large);
  EXPECT_EQ(refused.status().code(), StatusCode::kResourceExhausted) << refused.status();
  EXPECT_THAT(refused.status().ToString(), HasSubstr(folder_ / "disk"));
  EXPECT_EQ(Names(store), std::vector<std::string>{"stage-0-step-10-gen-3"});
  EXPECT_EQ(Newest(store)->checkpoint.state.step, 10u);
}

TEST_F(CheckpointStoreTest, AFileInTheWayIsNamedAndIsNotTheJobsFault) {
  WriteAll(folder_ / "job-1", "a file");
  for (const char* path : {"job-1/checkpoints", "job-1"}) {
    const auto store = CheckpointStore::Open(folder_ / path);
    ASSERT_FALSE(store.ok());
    EXPECT_THAT(store.status().ToString(),
                testing::AllOf(HasSubstr(folder_ / path), HasSubstr("choose another --work-dir")));
    EXPECT_EQ(ClassOf(store.status()), FailureKind::kWorker) << store.status();
  }
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
