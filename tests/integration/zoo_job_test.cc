// The zoo's families through the real programs: one for each task is trained and served as a teacher, and the others
// are distilled from it.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/harness/cluster.h"
#include "tests/student_worker/data/image_files.h"

namespace distill::testing {
namespace {

constexpr int kTrain = 24, kTest = 8, kSide = 32;

class ZooJobTest : public ::testing::Test {
 protected:
  // Grey pictures whose upper or lower half is brighter, by class; as labels of a segmentation the brighter pixels.
  void WriteData() {
    for (int i = 0; i < kTrain + kTest; ++i) {
      std::vector<uint8_t> pixels, labels;
      uint32_t state = 2654435761u * static_cast<uint32_t>(i + 1);
      for (int y = 0; y < kSide; ++y) {
        for (int x = 0; x < kSide; ++x) {
          state = state * 1664525u + 1013904223u;
          const bool bright = (y < kSide / 2) == (i % 2 == 0);
          pixels.push_back(static_cast<uint8_t>((bright ? 120 : 20) + (state >> 24) % 80));
          labels.push_back(bright ? 1 : 0);
        }
      }
      const std::string split = i < kTrain ? "train" : "test", name = "/p" + std::to_string(100 + i) + ".png";
      const std::string png = EncodePng(kSide, kSide, 0, 8, pixels);
      WriteWithFolders(data_ / ("halves/" + split + (i % 2 == 0 ? "/upper" : "/lower") + name), png);
      WriteWithFolders(data_ / ("maps/images/" + split + name), png);
      WriteWithFolders(data_ / ("maps/labels/" + split + name), EncodePng(kSide, kSide, 0, 8, labels));
    }
  }
  bool Start() {
    WriteData();
    return cluster_.Start(0, 0) && cluster_.StartStudent("s0", {"--data-root", data_.path()});
  }
  static std::string Yaml(const std::string& arch, int width, const std::string& data, const std::string& rest) {
    std::string name = arch;
    std::replace(name.begin(), name.end(), '_', '-');
    return "name: " + name + "\nseed: 3\nstudents: 1\nthreads: 1\ndevice: cpu\nbatch_size: 8\nstudent: {arch: " + arch +
           ", width: " + std::to_string(width) +
           ", num_classes: 2, in_channels: 1, image: [32, 32]}\ndata: {format: " + data +
           ", train_size: 24}\noptimizer: {lr: 0.02}\nlog_every: 1\n" + rest;
  }
  // Runs the job and returns the student's file; "" if it failed.
  std::string Run(const std::string& yaml) {
    const std::string id = cluster_.Submit(yaml);
    const auto job = cluster_.WaitEnd(id);
    EXPECT_EQ(job.value("state", ""), "JOB_STATE_SUCCEEDED") << job.value("reason", "") << "\n" << yaml;
    return job.value("state", "") == "JOB_STATE_SUCCEEDED" ? cluster_.StudentFile(id) : "";
  }

  TempDir data_;
  Cluster cluster_;
};

TEST_F(ZooJobTest, ClassifiersAreTrainedServedAndDistilled) {
  ASSERT_TRUE(Start());
  const std::string data = "image_folder, path: halves";
  const std::string teacher = Run(Yaml("cifar_wrn_16_2", 4, data, "preset: scratch\nbudget: {steps: 3}\n"));
  ASSERT_FALSE(teacher.empty());
  ASSERT_TRUE(cluster_.StartTeacher("t0", {"--model", "wide=" + teacher}));
  struct Student {
    const char* arch;
    int width;
  };
  for (const Student& student : {Student{"cifar_resnet8x4", 4},
                                 {"cifar_wrn_16_1", 4},
                                 {"cifar_vgg8_bn", 4},
                                 {"cifar_mobilenet_v2", 4},
                                 {"cifar_shufflenet_v2", 4},
                                 {"vgg11_bn", 1},
                                 {"mobilenet_v1", 8},
                                 {"mobilenet_v2", 8},
                                 {"shufflenet_v2_x0_5", 4}}) {
    EXPECT_NE(Run(Yaml(student.arch, student.width, data,
                       "teacher: wide\nstages:\n  - name: whole\n    steps: 2\n    losses:\n"
                       "      - {type: cross_entropy}\n      - {type: kd}\n")),
              "");
  }
  // Stage by stage: the maps are those of the stages' ends.
  EXPECT_NE(Run(Yaml("cifar_wrn_16_1", 8, data, "teacher: wide\npreset: sskd\nbudget: {steps: 8}\n")), "");
  const CommandResult model = cluster_.Ctl({"model", "wide"});
  EXPECT_NE(model.out.find("block3"), std::string::npos) << model.out << model.err;
  EXPECT_NE(model.out.find("multiply-adds"), std::string::npos) << model.out << model.err;
}

TEST_F(ZooJobTest, SegmentersAreTrainedServedAndDistilled) {
  ASSERT_TRUE(Start());
  const std::string data = "segmentation_folder, path: maps";
  const std::string teacher = Run(Yaml("pspnet_resnet18", 4, data, "preset: scratch\nbudget: {steps: 3}\n"));
  ASSERT_FALSE(teacher.empty());
  ASSERT_TRUE(cluster_.StartTeacher("t0", {"--model", "psp=" + teacher}));
  struct Student {
    const char* arch;
    int width;
  };
  for (const Student& student :
       {Student{"deeplabv3_resnet18", 4}, {"deeplabv3_mobilenet_v2_os16", 8}, {"deeplabv3plus_mobilenet_v2", 8}}) {
    EXPECT_NE(Run(Yaml(student.arch, student.width, data,
                       "teacher: psp\nstages:\n  - name: whole\n    steps: 2\n    losses:\n"
                       "      - {type: cross_entropy}\n      - {type: cwd, student: upsample, teacher: upsample}\n")),
              "");
  }
}

}  // namespace
}  // namespace distill::testing
