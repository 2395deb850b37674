// What users see when something is wrong: a message that names the thing and the remedy, a distinct exit code, nothing
// half-written.
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

class BadInputTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!FashionMnistInstalled()) GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
  }
  CommandResult SubmitText(Cluster* cluster, const std::string& yaml) {
    WriteFile(cluster->dir() / "bad.yaml", yaml);
    return cluster->Ctl({"submit", cluster->dir() / "bad.yaml"});
  }
  static std::string Replace(std::string text, const std::string& from, const std::string& to) {
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  }
};

TEST_F(BadInputTest, JobFileMistakesAreRefusedAtSubmit) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 0));
  const std::string good = JobText().Yaml();
  struct Case {
    std::string from, to, expect;
  };
  const Case cases[] = {
      {"weight: 0.9", "wieght: 0.9", "weight"},
      {"students: 2", "students: two", "students"},
      {"student: layer3", "student: layer9", "layer"},
      {"trainable: [conv1, bn1, layer1]", "trainable: [conv1, nothing*]", "nothing*"},
      {"teacher: fashion\n", "teacher: fashoin\n", "fashoin"},
      {"teacher: layer1", "teacher: layer2", "layer2"},  // other size
      {"arch: cifar_resnet8", "arch: cifar_resnet9", "cifar_resnet8"},
      {"temperature: 4", "temperature: 0", "temperature"},
      {"batch_size: 64", "batch_size: 63", "batch_size"},
      {"path: fashion-mnist", "path: ../etc", "path"},
  };
  for (const Case& c : cases) {
    const CommandResult result = SubmitText(&cluster, Replace(good, c.from, c.to));
    EXPECT_EQ(result.exit_code, 3) << c.to << ": " << result.out << result.err;
    EXPECT_NE(result.err.find(c.expect), std::string::npos) << c.to << ": " << result.err;
    EXPECT_NE(result.err.find("bad.yaml:"), std::string::npos) << "no file and line for " << c.to << ": " << result.err;
  }
  const auto jobs = nlohmann::json::parse(cluster.Ctl({"list", "--output", "json"}).out, nullptr, false);
  EXPECT_TRUE(!jobs.contains("jobs") || jobs["jobs"].empty()) << "a refused job was stored";
}

TEST_F(BadInputTest, MissingDataFolderFailsTheJobWithItsPath) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 2));
  const auto job =
      cluster.WaitEnd(cluster.Submit(Replace(JobText().Yaml(), "path: fashion-mnist", "path: no-such-data")));
  EXPECT_EQ(job.value("state", ""), "JOB_STATE_FAILED");
  EXPECT_NE(job.value("reason", "").find("no-such-data"), std::string::npos) << job.value("reason", "");
}

TEST_F(BadInputTest, CoordinatorUnreachableHasItsOwnExitCode) {
  const CommandResult result = RunCommand(
      {std::string(DISTILL_BIN_DIR) + "/distillctl", "--coordinator", "127.0.0.1:1", "--timeout", "2", "list"},
      std::chrono::seconds(30));
  EXPECT_EQ(result.exit_code, 7) << result.err;
  EXPECT_NE(result.err.find("127.0.0.1:1"), std::string::npos) << result.err;
}

TEST_F(BadInputTest, CorruptTeacherWeightsStopTheTeacherWithAMessage) {
  TempDir dir;
  const std::string bytes = ReadFileOrEmpty(TeacherFile());
  ASSERT_FALSE(bytes.empty());
  WriteFile(dir / "half.safetensors", bytes.substr(0, bytes.size() / 2));
  const CommandResult result =
      RunCommand({std::string(DISTILL_BIN_DIR) + "/distill-teacher", "--model", "x=" + (dir / "half.safetensors")},
                 std::chrono::seconds(60));
  EXPECT_EQ(result.exit_code, 42) << result.err;
  EXPECT_NE(result.err.find("half.safetensors"), std::string::npos) << result.err;
}

TEST_F(BadInputTest, AStudentThatCannotWriteItsFolderEndsWithItsOwnExitCode) {
  TempDir dir;
  WriteFile(dir / "file", "in the way");
  const CommandResult result = RunCommand({std::string(DISTILL_BIN_DIR) + "/distill-student", "--coordinator",
                                           "127.0.0.1:1", "--data-root", dir.path(), "--work-dir", dir / "file/work"},
                                          std::chrono::seconds(60));
  EXPECT_EQ(result.exit_code, 74) << result.err;
  EXPECT_NE(result.err.find("file/work cannot be made or written to"), std::string::npos) << result.err;
}

TEST_F(BadInputTest, TeacherWithOtherWeightsIsNotUsed) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 0));
  const std::string job = cluster.Submit(JobText().Yaml());
  cluster.Kill("t0", 15);
  // The same name, other weights: an exported student of the same architecture would do; here one byte of a tensor
  // differs.
  std::string bytes = ReadFileOrEmpty(TeacherFile());
  bytes[bytes.size() - 3] ^= 1;
  WriteFile(cluster.dir() / "other.safetensors", bytes);
  ASSERT_TRUE(cluster.StartTeacher("t1", {"--model", "fashion=" + (cluster.dir() / "other.safetensors")}));
  ASSERT_TRUE(cluster.StartStudent("s0"));
  ASSERT_TRUE(cluster.StartStudent("s1"));
  const auto state = cluster.WaitFor(job, std::chrono::seconds(60), [](const auto& j) {
    return j.value("reason", "").find("digest") != std::string::npos;
  });
  EXPECT_FALSE(state.is_null());
  EXPECT_NE(state.value("state", ""), "JOB_STATE_SUCCEEDED");
}

TEST_F(BadInputTest, UnwritableWorkFolderFailsTheJobAndLeavesNothingHalfWritten) {
  Cluster cluster;
  ASSERT_TRUE(cluster.StartCoordinator());
  ASSERT_TRUE(cluster.StartTeacher("t0"));
  // A full disk, made without one: the folder's file system is a 1 MiB tmpfs when this test may mount one.
  const std::string disk = cluster.dir() / "disk";
  std::filesystem::create_directory(disk);
  if (RunCommand({"/bin/mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk}, std::chrono::seconds(10)).exit_code !=
      0) {
    GTEST_SKIP() << "mounting a small tmpfs needs root and CAP_SYS_ADMIN";
  }
  JobText text;
  text.students = 1;
  if (cluster.StartStudent("s0", {"--work-dir", disk, "--write-patience", "2"})) {
    const auto job = cluster.WaitEnd(cluster.Submit(text.Yaml()));
    EXPECT_EQ(job.value("state", ""), "JOB_STATE_FAILED");
    EXPECT_NE(job.value("reason", "").find(disk), std::string::npos) << job.value("reason", "");
    for (const auto& entry : std::filesystem::recursive_directory_iterator(disk)) {
      EXPECT_EQ(entry.path().filename().string().find("manifest.json"), std::string::npos)
          << "half a checkpoint looks complete: " << entry.path();
    }
    cluster.Kill("s0", 9);
  }
  RunCommand({"/bin/umount", "-l", disk}, std::chrono::seconds(10));
}

}  // namespace
}  // namespace distill::testing
