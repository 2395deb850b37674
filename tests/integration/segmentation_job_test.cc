// Semantic segmentation with the real programs: a teacher that answers for every pixel is trained, served and
// distilled.
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>

#include "tests/harness/cluster.h"
#include "tests/student_worker/data/image_files.h"

namespace distill::testing {
namespace {

constexpr int kTrain = 48, kTest = 16, kHeight = 24, kWidth = 32, kShrink = 2;
constexpr int kIgnore = 200;  // the value of pixels without a label

// A grey street: dark ground, a brighter sky above a horizon that differs, and a bright box on the ground. The class
// ids 0, 1 and 2, and a border of two pixels without a label.
struct Scene {
  std::vector<uint8_t> pixels, labels;
};
Scene MakeScene(int index) {
  Scene scene;
  uint32_t state = 2654435761u * static_cast<uint32_t>(index + 1);
  const auto draw = [&] { return (state = state * 1664525u + 1013904223u) >> 24; };
  const int height = kHeight * kShrink, width = kWidth * kShrink;
  const int horizon = height / 4 + static_cast<int>(draw()) % (height / 4);
  const int left = static_cast<int>(draw()) % (width / 2);
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      const bool box = y >= horizon + 4 && y < height - 6 && x >= left && x < left + width / 3;
      const int id = box ? 2 : y < horizon ? 1 : 0;
      const bool border = y < 2 || x < 2 || y >= height - 2 || x >= width - 2;
      scene.pixels.push_back(static_cast<uint8_t>(40 + 80 * id + draw() % 40));
      scene.labels.push_back(static_cast<uint8_t>(border ? kIgnore : id));
    }
  }
  return scene;
}

class SegmentationJobTest : public ::testing::Test {
 protected:
  void WriteScenes() {
    for (int i = 0; i < kTrain + kTest; ++i) {
      const Scene scene = MakeScene(i);
      const std::string split = i < kTrain ? "train" : "val", name = "/s" + std::to_string(1000 + i) + ".png";
      const int height = kHeight * kShrink, width = kWidth * kShrink;
      WriteWithFolders(data_ / ("street/images/" + split + name), EncodePng(height, width, 0, 8, scene.pixels));
      WriteWithFolders(data_ / ("street/labels/" + split + name), EncodePng(height, width, 0, 8, scene.labels));
    }
  }
  bool StartStudent(const std::string& id) { return cluster_.StartStudent(id, {"--data-root", data_.path()}); }
  static std::string Yaml(const std::string& name, int width, const std::string& rest) {
    return "name: " + name + "\nseed: 3\nstudents: 2\nthreads: 1\ndevice: cpu\nbatch_size: 8\n" +
           "student: {arch: fcn_resnet18, width: " + std::to_string(width) +
           ", num_classes: 3, in_channels: 1, image: [24, 32]}\n"
           "data: {format: segmentation_folder, path: street, train_size: 48, ignore_label: 200, shrink: 2, "
           "transforms: {train: [{pad_crop: {padding: 2}}, horizontal_flip]}}\n"
           "optimizer: {lr: 0.05}\ncheckpoint: {every: 6}\nlog_every: 2\n" +
           rest;
  }
  static std::string Distilled() {
    return Yaml(
        "distilled", 4,
        "teacher: street\nstages:\n"
        "  - name: mimic\n    trainable: [conv1, bn1, layer1, layer2]\n    steps: 6\n    losses:\n"
        "      - {type: cwd, student: layer2, teacher: layer2, mask: valid_labels}\n"
        "  - name: whole\n    steps: 24\n    losses:\n      - {type: cross_entropy}\n      - {type: kd, weight: 0.5}\n"
        "      - {type: aux_classifier, weight: 0.4, student: layer3}\n"
        "      - {type: cwd, student: classifier, teacher: classifier, mask: valid_labels}\n");
  }

  TempDir data_;
  Cluster cluster_;
};

TEST_F(SegmentationJobTest, ATeacherIsTrainedServedAndDistilledAndPlainPythonAgrees) {
  WriteScenes();
  ASSERT_TRUE(cluster_.Start(0, 0));
  for (const std::string id : {"s0", "s1"}) ASSERT_TRUE(StartStudent(id));
  const std::string first = cluster_.Submit(Yaml("teacher", 8, "preset: scratch\nbudget: {steps: 60}\n"));
  const auto trained = cluster_.WaitEnd(first);
  ASSERT_EQ(trained.value("state", ""), "JOB_STATE_SUCCEEDED") << trained.value("reason", "");
  const auto& files = trained["artifacts"];
  EXPECT_GT(MetricOf(files, "student_score", "mean_iou"), 0.5);  // always the commonest class would be 0.2
  EXPECT_GT(MetricOf(files, "student_score", "pixel_accuracy"), MetricOf(files, "student_score", "mean_iou"));

  ASSERT_TRUE(cluster_.StartTeacher("t0", {"--model", "street=" + cluster_.StudentFile(first)}));
  const CommandResult taps = cluster_.Ctl({"taps", "street"});
  EXPECT_NE(taps.out.find("classifier"), std::string::npos) << taps.out << taps.err;
  WriteFile(cluster_.dir() / "plan.yaml", Distilled());
  const CommandResult plan = cluster_.Ctl({"submit", "--dry-run", cluster_.dir() / "plan.yaml"});
  EXPECT_NE(plan.out.find("each 2 times smaller, pixels of 200 without label"), std::string::npos)
      << plan.out << plan.err;
  const std::string second = cluster_.Submit(Distilled());
  const auto distilled = cluster_.WaitEnd(second);
  ASSERT_EQ(distilled.value("state", ""), "JOB_STATE_SUCCEEDED") << distilled.value("reason", "");
  // The teacher is measured through the feature stream: the same network on the same pixels.
  EXPECT_NEAR(MetricOf(distilled["artifacts"], "teacher_score", "mean_iou"),
              MetricOf(files, "student_score", "mean_iou"), 2e-3);
  EXPECT_NEAR(MetricOf(distilled["artifacts"], "teacher_score", "pixel_accuracy"),
              MetricOf(files, "student_score", "pixel_accuracy"), 2e-3);
  EXPECT_GT(MetricOf(distilled["artifacts"], "student_score", "mean_iou"), 0.3);
  const CommandResult results = cluster_.Ctl({"results", second});
  EXPECT_NE(results.out.find("mIoU"), std::string::npos) << results.out << results.err;
  EXPECT_NE(cluster_.HttpGet("s0", "/metrics").find("distill_student_score_ratio{metric=\"mean_iou\"} 0."),
            std::string::npos);

  // Killed and resumed, it is the same student, however it is measured.
  const std::string third = cluster_.Submit(Distilled() + "evaluate: {flip: true}\n");
  ASSERT_FALSE(
      cluster_.WaitFor(third, std::chrono::seconds(120), [](const auto& j) { return StageOf(j) >= 1; }).is_null());
  cluster_.Kill("s1", SIGKILL);
  ASSERT_TRUE(StartStudent("s1"));
  const auto resumed = cluster_.WaitEnd(third);
  ASSERT_EQ(resumed.value("state", ""), "JOB_STATE_SUCCEEDED") << resumed.value("reason", "");
  const std::string student = ReadFileOrEmpty(cluster_.StudentFile(second));
  ASSERT_FALSE(student.empty());
  EXPECT_TRUE(student == ReadFileOrEmpty(cluster_.StudentFile(third))) << "the resumed job's student differs";

  // Plain Python on the pictures as the student saw them.
  const std::string python = std::string(DISTILL_SOURCE_DIR) + "/build/venv/bin/python";
  if (!std::filesystem::exists(python))
    GTEST_SKIP() << "no Python with torch in build/venv (scripts/setup.sh makes it)";
  const std::string folder = cluster_.dir() / "seen";
  const CommandResult shrunk = RunCommand({python, "-c",
                                           "import pathlib, sys, numpy as np\nfrom PIL import Image\n"
                                           "source, target = map(pathlib.Path, sys.argv[1:3])\n"
                                           "for file in source.rglob('val/*.png'):\n"
                                           "    a = np.array(Image.open(file))\n"
                                           "    if 'images' in file.parts:\n"
                                           "        a = a.reshape(24, 2, 32, 2).astype(np.int64).sum((1, 3))\n"
                                           "        a = (a + 2) // 4\n"
                                           "    else:\n"
                                           "        a = a[1::2, 1::2]\n"
                                           "    out = target / file.relative_to(source)\n"
                                           "    out.parent.mkdir(parents=True, exist_ok=True)\n"
                                           "    Image.fromarray(a.astype(np.uint8)).save(out)\n",
                                           data_ / "street", folder},
                                          std::chrono::seconds(60));
  ASSERT_EQ(shrunk.exit_code, 0) << shrunk.out << shrunk.err;
  const auto check = [&](const std::string& job, const nlohmann::json& reported, const std::string& score,
                         const std::string& views) {
    const std::string archive = cluster_.dir() / ("work/" + job + "/student.pt");
    const CommandResult result =
        RunCommand({python, std::string(DISTILL_SOURCE_DIR) + "/tests/integration/check_student.py",
                    cluster_.StudentFile(job), archive, folder, std::to_string(kTest),
                    std::to_string(MetricOf(reported["artifacts"], score, "pixel_accuracy")),
                    std::to_string(MetricOf(reported["artifacts"], score, "mean_iou")), std::to_string(kIgnore), views},
                   std::chrono::seconds(120));
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  };
  check(second, distilled, "student_score", "one");
  check(third, resumed, "student_score", "flip");
  check(first, resumed, "teacher_score", "flip");
  for (const std::string score : {"student_score", "teacher_score"}) {
    EXPECT_NE(MetricOf(resumed["artifacts"], score, "pixel_accuracy"),
              MetricOf(distilled["artifacts"], score, "pixel_accuracy"))
        << score << ": the flip changes nothing";
  }
}

TEST_F(SegmentationJobTest, BadLabelsFailTheJobWithFileAndPixel) {
  WriteScenes();
  Scene scene = MakeScene(5);
  scene.labels[7 + 64 * 9] = 3;  // the student has the classes 0 to 2
  WriteFile(data_ / "street/labels/train/s1005.png", EncodePng(48, 64, 0, 8, scene.labels));
  ASSERT_TRUE(cluster_.Start(0, 0));
  for (const std::string id : {"s0", "s1"}) ASSERT_TRUE(StartStudent(id));
  const auto job = cluster_.WaitEnd(cluster_.Submit(Yaml("bad", 4, "preset: scratch\nbudget: {steps: 4}\n")));
  EXPECT_EQ(job.value("state", ""), "JOB_STATE_FAILED");
  for (const std::string part : {"s1005.png", "3", "data.ignore_label"}) {
    EXPECT_NE(job.value("reason", "").find(part), std::string::npos) << job.value("reason", "");
  }
}

}  // namespace
}  // namespace distill::testing
