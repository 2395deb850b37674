// The main job from submit to exported student, with real processes on loopback.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/harness/cluster.h"

namespace distill::testing {
namespace {

class JobTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!FashionMnistInstalled()) GTEST_SKIP() << "the package dataset-fashion-mnist is not installed";
  }

  // Runs the tiny job on `teachers` teachers and returns the bytes of its student.
  std::string StudentOf(int teachers) {
    Cluster cluster;
    if (!cluster.Start(teachers, 2)) return "";
    const auto job = cluster.WaitEnd(cluster.Submit(JobText().Yaml()));
    EXPECT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "");
    return job.is_null() ? "" : ReadFileOrEmpty(job["artifacts"].value("safetensors", ""));
  }
};

TEST_F(JobTest, RunsToTheEndAndLeavesAStudentThatPlainPythonLoads) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(2, 2));
  const std::string id = cluster.Submit(JobText().Yaml());
  const auto job = cluster.WaitEnd(id);
  ASSERT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "");
  ASSERT_EQ(job["stages_done"].size(), 2u);
  const auto& artifacts = job["artifacts"];
  // The teacher in examples/ is trained, so a wrong normalisation or tap would show here.
  EXPECT_GT(MetricOf(artifacts, "teacher_score", "top1"), 0.9);
  EXPECT_GT(MetricOf(artifacts, "student_score", "top1"), 0.2);  // 24 steps; chance is 0.1
  EXPECT_EQ(std::filesystem::file_size(artifacts.value("safetensors", "")),
            std::stoull(artifacts.value("safetensors_bytes", "0")));

  const std::string python = std::string(DISTILL_SOURCE_DIR) + "/build/venv/bin/python";
  if (!std::filesystem::exists(python))
    GTEST_SKIP() << "no Python with torch in build/venv (scripts/setup.sh makes it)";
  const CommandResult check =
      RunCommand({python, std::string(DISTILL_SOURCE_DIR) + "/tests/integration/check_student.py",
                  artifacts.value("safetensors", ""), artifacts.value("torchscript", ""),
                  std::string(kDataRoot) + "/fashion-mnist", "10000",
                  std::to_string(MetricOf(artifacts, "student_score", "top1"))},
                 std::chrono::minutes(2));
  EXPECT_EQ(check.exit_code, 0) << check.out << check.err;
}

TEST_F(JobTest, OneAndTwoTeachersGiveTheBitIdenticalStudent) {
  const std::string one = StudentOf(1);
  const std::string two = StudentOf(2);
  ASSERT_FALSE(one.empty());
  EXPECT_TRUE(one == two) << "students differ";
}

TEST_F(JobTest, MetricsOfAllServicesPassPromtool) {
  const std::string promtool = std::string(DISTILL_SOURCE_DIR) + "/build/tools/usr/bin/promtool";
  if (!std::filesystem::exists(promtool)) GTEST_SKIP() << "no promtool in build/tools (scripts/setup.sh puts it there)";
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 1));
  JobText text;
  text.students = 1;
  const auto job = cluster.WaitEnd(cluster.Submit(text.Yaml()));
  ASSERT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "");
  for (const std::string id : {"coordinator", "t0", "s0"}) {
    const std::string metrics = cluster.HttpGet(id, "/metrics");
    ASSERT_NE(metrics.find("distill_"), std::string::npos) << id;
    WriteFile(cluster.dir() / (id + ".metrics"), metrics);
    const CommandResult lint =
        RunCommand({"/bin/sh", "-c", promtool + " check metrics < " + (cluster.dir() / (id + ".metrics"))},
                   std::chrono::seconds(30));
    EXPECT_EQ(lint.exit_code, 0) << id << ": " << lint.out << lint.err;
    EXPECT_NE(cluster.HttpGet(id, "/healthz").find("ok"), std::string::npos);
  }
  EXPECT_NE(cluster.HttpGet("s0", "/metrics").find("distill_student_steps_total"), std::string::npos);
  EXPECT_NE(cluster.HttpGet("t0", "/metrics").find("distill_teacher_requests_total"), std::string::npos);
}

TEST_F(JobTest, SubmittingTwiceWithOneRequestIdGivesOneJob) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 0));  // no student: the job stays queued
  const std::string first = cluster.Submit(JobText().Yaml(), {"--request-id", "abc"});
  const std::string second = cluster.Submit(JobText().Yaml(), {"--request-id", "abc"});
  EXPECT_EQ(first, second);
  const auto queued = cluster.Describe(first);
  EXPECT_EQ(queued.value("state", ""), "JOB_STATE_QUEUED");
  EXPECT_NE(queued.value("reason", "").find("student"), std::string::npos) << queued.value("reason", "");
  EXPECT_EQ(cluster.Ctl({"cancel", first}).exit_code, 0);
  EXPECT_EQ(cluster.Describe(first).value("state", ""), "JOB_STATE_CANCELLED");
}

TEST_F(JobTest, CancelledJobStopsAndTheNextOneRuns) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 1));
  JobText text;
  text.students = 1;
  text.whole_steps = 100000;
  const std::string job = cluster.Submit(text.Yaml());
  ASSERT_FALSE(cluster.WaitFor(job, std::chrono::seconds(60), [](const auto& j) { return StageOf(j) == 1; }).is_null());
  EXPECT_EQ(cluster.Ctl({"cancel", job, "--wait"}).exit_code, 0);
  EXPECT_EQ(cluster.WaitEnd(job).value("state", ""), "JOB_STATE_CANCELLED");
  text.whole_steps = 4;
  text.name = "next";
  EXPECT_EQ(cluster.WaitEnd(cluster.Submit(text.Yaml())).value("state", ""), "JOB_STATE_SUCCEEDED");
}

TEST_F(JobTest, AHeadStartsAsTheTeachersFromACopyOfItsFileAndFromNoOther) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 0));
  const std::string models = cluster.dir() / "models";
  std::filesystem::create_directory(models);
  std::filesystem::copy_file(TeacherFile(), models + "/copy.safetensors");
  std::string other = ReadFileOrEmpty(TeacherFile());
  other[other.size() - 3] ^= 1;  // one byte of a tensor
  WriteFile(models + "/other.safetensors", other);
  ASSERT_TRUE(cluster.StartStudent("s0", {"--model-root", models}));
  const auto yaml = [](const std::string& file) {
    return "name: head\ndevice: cpu\nbatch_size: 16\n"
           "student: {arch: cifar_resnet8, num_classes: 10, in_channels: 1, image: [28, 28], mean: [0.286], std: "
           "[0.353], "
           "weights: " +
           file +
           "}\nteacher: fashion\ndata: {path: fashion-mnist, train_limit: 64, test_limit: 64}\n"
           "evaluate: {teacher: false}\npreset: sskd\nbudget: {steps: 4}\nsskd: {head: {init: teacher}}\n";
  };
  const auto right = cluster.WaitEnd(cluster.Submit(yaml("copy.safetensors")));
  EXPECT_EQ(right.value("state", ""), "JOB_STATE_SUCCEEDED") << right.value("reason", "");
  const auto wrong = cluster.WaitEnd(cluster.Submit(yaml("other.safetensors")));
  EXPECT_EQ(wrong.value("state", ""), "JOB_STATE_FAILED");
  EXPECT_NE(wrong.value("reason", "").find("other.safetensors' is not the file of the teacher 'fashion'"),
            std::string::npos)
      << wrong.value("reason", "");
}

TEST_F(JobTest, TerminatedServicesExitInOrder) {
  Cluster cluster;
  ASSERT_TRUE(cluster.Start(1, 1));
  for (const std::string id : {"s0", "t0", "coordinator"}) EXPECT_EQ(cluster.Kill(id, SIGTERM), 143) << id;
}

}  // namespace
}  // namespace distill::testing
