// Jobs over images of which a tenth has no label: stage by stage (SSKD) with the real programs.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/harness/cluster.h"
#include "tests/student_worker/data/image_files.h"

namespace distill::testing {
namespace {

constexpr int kImages = 320, kUnlabelled = 32, kTest = 40, kSide = 28;

// A grey image that is brighter in the band of its class.
std::string Picture(int index, int label) {
  std::vector<uint8_t> pixels;
  uint32_t state = 2654435761u * static_cast<uint32_t>(index + 1);
  for (int y = 0; y < kSide; ++y) {
    for (int x = 0; x < kSide; ++x) {
      state = state * 1664525u + 1013904223u;
      pixels.push_back(static_cast<uint8_t>((y * 10 / kSide == label ? 120 : 20) + (state >> 24) % 80));
    }
  }
  return EncodePng(kSide, kSide, /*grey=*/0, 8, pixels);
}

class UnlabelledJobTest : public ::testing::Test {
 protected:
  bool Start(int students) {
    for (int i = 0; i < kImages + kTest; ++i) {
      const std::string name = std::to_string(1000 + i) + ".png", label = "class" + std::to_string(i % 10);
      std::string folder = "train/" + label;
      if (i >= kImages) folder = "test/" + label;
      if (i < kUnlabelled) folder = "more";
      WriteWithFolders(data_ / ("bands/" + folder + "/" + name), Picture(i, i % 10));
    }
    if (!cluster_.Start(1, 0)) return false;
    for (int i = 0; i < students; ++i) {
      if (!StartStudent("s" + std::to_string(i))) return false;
    }
    return true;
  }
  bool StartStudent(const std::string& id) { return cluster_.StartStudent(id, {"--data-root", data_.path()}); }
  static std::string Yaml(const std::string& sskd, const std::string& budget = "epochs: 24",
                          const std::string& sizes = "train_size: 288, unlabelled_size: 32, holdout: 32") {
    return "name: bands\nseed: 3\nstudents: 2\nthreads: 1\ndevice: cpu\nbatch_size: 32\n"
           "student: {arch: cifar_resnet8, width: 4, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], "
           "std: "
           "[0.353]}\n"
           "teacher: fashion\n"
           "data: {format: image_folder, path: bands, unlabelled: more, " +
           sizes +
           ", transforms: {train: [{pad_crop: {padding: 2}}, horizontal_flip]}}\n"
           "preset: sskd\nbudget: {" +
           budget + "}\ncheckpoint: {every: 5}\nlog_every: 2\nsskd: {" + sskd + "}\n";
  }

  TempDir data_;
  Cluster cluster_;
};

TEST_F(UnlabelledJobTest, FinishesAndIsBitIdenticalAfterTheLossOfARank) {
  ASSERT_TRUE(Start(2));
  const std::string yaml = Yaml("unlabelled_ok: true, select: best");
  WriteFile(cluster_.dir() / "plan.yaml", yaml);
  const CommandResult plan = cluster_.Ctl({"submit", "--dry-run", cluster_.dir() / "plan.yaml"});
  EXPECT_NE(plan.out.find("without labels more for mimic-1, mimic-2, mimic-3"), std::string::npos)
      << plan.out << plan.err;
  const std::string first = cluster_.Submit(yaml);
  const auto job = cluster_.WaitEnd(first);
  ASSERT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "");
  ASSERT_EQ(job["stages_done"].size(), 4u);
  // 32 of the 288 images with labels are held out: (256 + 32) / 32 steps an epoch in the backbone, 256 / 32 in the
  // head.
  const auto& stages = job["plan"]["stages"];
  ASSERT_EQ(stages.size(), 4u);
  for (int k = 0; k < 3; ++k) EXPECT_EQ(stages[k].value("steps", ""), "54") << k;
  EXPECT_EQ(stages[3].value("steps", ""), "48");
  for (const std::string id : {"s0", "s1"}) {
    EXPECT_NE(cluster_.Log(id).find("train=288 unlabelled=32 test=40"), std::string::npos) << cluster_.Log(id);
  }

  // Rank 0 tells how each phase went.
  const std::string logs = cluster_.Log("s0") + cluster_.Log("s1");
  for (const std::string phase : {"mimic-1", "mimic-2", "mimic-3", "head"}) {
    EXPECT_NE(logs.find("stage trained stage=" + phase + " steps="), std::string::npos) << phase << "\n" << logs;
    const size_t measured = logs.find("measured on held-out images stage=" + phase + " step=");
    ASSERT_NE(measured, std::string::npos) << phase << "\n" << logs;
    const std::string line = logs.substr(measured, logs.find('\n', measured) - measured);
    EXPECT_NE(line.find("training_loss="), std::string::npos) << line;
    EXPECT_NE(line.find("learning_rate="), std::string::npos) << line;
  }

  const std::string second = cluster_.Submit(yaml);
  ASSERT_FALSE(
      cluster_.WaitFor(second, std::chrono::seconds(120), [](const auto& j) { return StageOf(j) >= 1; }).is_null());
  cluster_.Kill("s1", SIGKILL);
  ASSERT_TRUE(StartStudent("s1"));
  const auto resumed = cluster_.WaitEnd(second);
  ASSERT_EQ(resumed.value("state", ""), "JOB_STATE_SUCCEEDED") << resumed.value("reason", "");
  const std::string student = ReadFileOrEmpty(cluster_.StudentFile(first));
  ASSERT_FALSE(student.empty());
  EXPECT_TRUE(student == ReadFileOrEmpty(cluster_.StudentFile(second))) << "the resumed job's student differs";
}

TEST_F(UnlabelledJobTest, WithoutTheKnobItIsRefusedAtSubmitWithTheRemedy) {
  ASSERT_TRUE(Start(0));
  WriteFile(cluster_.dir() / "job.yaml", Yaml("policy: freeze_previous"));
  const CommandResult result = cluster_.Ctl({"submit", cluster_.dir() / "job.yaml"});
  EXPECT_EQ(result.exit_code, 3) << result.out << result.err;
  EXPECT_NE(result.err.find("sskd: {unlabelled_ok: true}"), std::string::npos) << result.err;
}

TEST_F(UnlabelledJobTest, WithoutAnyLabelTheHeadIsRefusedByNameAndTheBackboneAloneRuns) {
  ASSERT_TRUE(Start(2));
  std::filesystem::remove_all(data_ / "bands/train");
  const auto refused = cluster_.WaitEnd(cluster_.Submit(Yaml("unlabelled_ok: true", "steps: 8", "holdout: 0")));
  EXPECT_EQ(refused.value("state", ""), "JOB_STATE_FAILED");
  EXPECT_NE(refused.value("reason", "").find("stage 'head' reads labels, but no training image has one"),
            std::string::npos)
      << refused.value("reason", "");
  const auto alone = cluster_.WaitEnd(cluster_.Submit(
      Yaml("unlabelled_ok: true, head: {share: 0}", "epochs: 6", "train_size: 0, unlabelled_size: 32")));
  EXPECT_EQ(alone.value("state", ""), "JOB_STATE_SUCCEEDED") << alone.value("reason", "");
  EXPECT_EQ(alone["stages_done"].size(), 4u);
}

}  // namespace
}  // namespace distill::testing
