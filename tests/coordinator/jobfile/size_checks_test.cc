// What does not fit is refused at submit, with the sum.
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kStreets = R"yaml(name: streets
students: 2
batch_size: 16
prefetch: 512MiB
student: {arch: fcn_resnet18, width: 16, num_classes: 19, in_channels: 3, image: [512, 1024]}
teacher: streets
data: {format: segmentation_folder, path: streets}
stages:
  - name: train
    steps: 10
    losses:
      - {type: cross_entropy}
      - {type: cwd, student: layer4, teacher: layer4, spatial_mismatch: error}
)yaml";

FleetView Streets() {
  ModelSpec spec;
  spec.arch = "fcn_resnet34";
  spec.width = 16;
  spec.num_classes = 19;
  spec.in_channels = 3;
  spec.image_height = 512;
  spec.image_width = 1024;
  FleetView fleet;
  fleet.models.push_back({"streets", "d1d1d1d1d1d1d1d1", spec, 1000, 4000, {}});
  return fleet;
}

// layer4 is [128, 64, 128]: 4 MiB an image in float32, 32 MiB for a rank's 8.
TEST(SizeChecksTest, AnswersOfAStepFitThePrefetch) {
  EXPECT_EQ(Refusal(kStreets, Streets()), "accepted");
  const std::string small = With(kStreets, "prefetch: 512MiB", "prefetch: 31MiB\nevaluate: {teacher: false}");
  EXPECT_EQ(
      Refusal(small, Streets()),
      "job.yaml:4:11: stages[0]: the teacher's answers to one step of a rank, 8 images x ('layer4' [128, 64, 128] "
      "x 4 bytes), are 32.0 MiB; prefetch is 31.0 MiB: set prefetch: 32MiB or more, a smaller batch_size, more "
      "students, or wire_dtype: f16");
  EXPECT_EQ(Refusal(With(small, "31MiB", "32MiB"), Streets()), "accepted");
  EXPECT_EQ(Refusal(small, Streets(), {"wire_dtype=bf16"}), "accepted");
  EXPECT_EQ(Refusal(small, Streets(), {"students=4"}), "accepted");
  // A tap that two losses read travels once; logits travel as float32 whatever the maps do.
  const std::string twice =
      With(small, "      - {type: cross_entropy}\n", "      - {type: l2, student: layer4, teacher: layer4}\n");
  EXPECT_EQ(Refusal(With(twice, "31MiB", "32MiB"), Streets(), {"stages.0.trainable=[layer4]"}), "accepted");
  EXPECT_THAT(Refusal(With(small, "type: cross_entropy", "type: kd"), Streets(), {"wire_dtype=f16"}),
              AllOf(HasSubstr("8 images x (output [19, 512, 1024] x 4 bytes + 'layer4' [128, 64, 128] x 2 bytes), are "
                              "320.0 MiB; prefetch is 31.0 MiB: set prefetch: 320MiB or more"),
                    Not(HasSubstr("wire_dtype"))));
  // A loss that is not computed asks for nothing.
  EXPECT_EQ(Refusal(small, Streets(), {"stages.0.losses.1.weight=0"}), "accepted");
}

TEST(SizeChecksTest, EachStageIsLookedAtAndAPresetToo) {
  const std::string preset = With(kPresetJob, "budget: {steps: 402}", "budget: {steps: 402}\nprefetch: 1MiB");
  // layer1 is [16, 28, 28]: 3.1 MiB for a rank's 64.
  EXPECT_THAT(Refusal(preset), HasSubstr("job.yaml:9:11: stage 'mimic-1' of preset sskd: the teacher's answers"));
  EXPECT_EQ(Refusal(preset, Fleet(), {"prefetch=4MiB"}), "accepted");
}

TEST(SizeChecksTest, AnswersFitWhatATeacherSendsAtOnce) {
  const std::string large =
      With(With(kStreets, "prefetch: 512MiB", "prefetch: 4GiB"), "type: cross_entropy", "type: kd");
  // 38 MiB of logits and 4 MiB of maps an image.
  EXPECT_EQ(Refusal(large, Streets(), {"batch_size=48"}), "accepted");
  EXPECT_THAT(Refusal(large, Streets(), {"batch_size=50"}),
              HasSubstr("are 1.0 GiB; a teacher answers with at most 1.0 GiB at once: take smaller taps, a smaller "
                        "batch_size, more students"));
}

TEST(SizeChecksTest, PixelsOfAStepFitAMessage) {
  // 1.5 MiB of pixels an image: 42 of them fit 64 MiB.
  EXPECT_EQ(Refusal(kStreets, Streets(), {"batch_size=84"}), "accepted");
  EXPECT_THAT(Refusal(kStreets, Streets(), {"batch_size=86"}),
              AllOf(HasSubstr("batch_size: the pixels of one step of a rank, 43 images x [3, 512, 1024], are 64.5 MiB"),
                    HasSubstr("one message to the teacher of 64.0 MiB")));
  EXPECT_THAT(Refusal(kPresetJob, Fleet(), {"batch_size=8194", "data.train_size=60000"}),
              HasSubstr("one step of a rank has 4097 images (8194 over students 2), a teacher takes at most 4096"));
  // Without a teacher nothing is sent.
  EXPECT_EQ(Refusal(kPresetJob, Fleet(), {"batch_size=8194", "preset=scratch"}), "accepted");
}

TEST(SizeChecksTest, TheTeachersAnswerToOneImageFits) {
  const std::string small = With(kStreets, "prefetch: 512MiB", "prefetch: 37MiB");
  EXPECT_EQ(Refusal(small, Streets()),
            "job.yaml:1:1: evaluate.teacher: the teacher's answer to one image, output [19, 512, 1024] x 4 bytes, is "
            "38.0 MiB, more than prefetch 37.0 MiB; set prefetch: 38MiB or more, or evaluate: {teacher: false}");
  EXPECT_EQ(Refusal(small, Streets(), {"evaluate={teacher: false}"}), "accepted");
  // One image fits; how many go at once is the student's affair.
  EXPECT_EQ(Refusal(small, Streets(), {"prefetch=38MiB"}), "accepted");
}

// The variance of one value does not exist; torch refuses it at the first step.
TEST(SizeChecksTest, ABatchNormTrainsWithTwoValuesAChannel) {
  const std::string cifar = With(With(kPresetJob, "preset: sskd", "preset: scratch"), "teacher: fashion\n", "");
  const std::string one = With(With(With(cifar, "cifar_resnet8", "resnet18"), "image: [28, 28]", "image: [32, 32]"),
                               "batch_size: 128", "batch_size: 2");
  EXPECT_THAT(Refusal(one),
              AllOf(StartsWith("job.yaml:3:13: stage 'train' of preset scratch: the batch norm 'layer4.0.bn1' trains "
                               "with one value a channel (1 image a rank, map [1, 1])"),
                    HasSubstr("give each rank two images or more (batch_size: 4)")));
  EXPECT_EQ(Refusal(one, Fleet(), {"batch_size=4"}), "accepted");
  EXPECT_EQ(Refusal(one, Fleet(), {"sync_batch_norm=true"}), "accepted") << "one value of each of two ranks";
  EXPECT_THAT(Refusal(one, Fleet(), {"sync_batch_norm=true", "students=1", "batch_size=1"}), HasSubstr("one value"));
  EXPECT_EQ(Refusal(one, Fleet(), {"student.image=[64, 64]"}), "accepted");
  EXPECT_THAT(Refusal(one, Fleet(), {"students=1", "batch_size=1"}), HasSubstr("(batch_size: 2)"));
  const std::string stages = With(one, "preset: scratch\nbudget: {steps: 402}\n",
                                  "stages: [{name: a, steps: 5, trainable: [fc], losses: [{type: cross_entropy}]}]\n");
  EXPECT_EQ(Refusal(stages), "accepted") << "frozen batch norms use their statistics";
  EXPECT_THAT(Refusal(stages, Fleet(), {"stages.0.frozen_bn=train"}), HasSubstr("'layer4.0.bn1'"));
  EXPECT_THAT(Refusal(stages, Fleet(), {"stages.0.trainable=[layer4.1.bn2, fc]"}), HasSubstr("'layer4.1.bn2'"));
  EXPECT_EQ(Refusal(stages, Fleet(), {"stages.0.trainable=[fc, layer4.1.conv2]"}), "accepted");
  EXPECT_EQ(Refusal(stages, Fleet(), {"stages.0.trainable=['**']", "stages.0.steps=0"}), "accepted");
  // A segmentation network keeps an eighth of the image: one position of 8 x 8.
  const std::string dense =
      With(With(kStreets, "image: [512, 1024]", "image: [8, 8]"),
           "      - {type: cwd, student: layer4, teacher: layer4, spatial_mismatch: error}\n", "");
  EXPECT_THAT(Refusal(With(dense, "teacher: streets\n", ""), FleetView{}, {"batch_size=2"}),
              HasSubstr("the batch norm 'layer2.0.bn1'"));
  EXPECT_EQ(Refusal(With(dense, "teacher: streets\n", ""), FleetView{}, {"batch_size=2", "student.image=[16, 16]"}),
            "accepted");
}

// There torch says nothing: the layer's output is its bias, whatever the student does.
TEST(SizeChecksTest, ABatchNormOfALossDoesToo) {
  const std::string text =
      With(kExplicitJob, "{type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3}",
           "{type: l2, student: avgpool, teacher: avgpool, adapter: conv1x1_bn}");
  EXPECT_EQ(Refusal(text), "accepted");
  EXPECT_THAT(Refusal(text, Fleet(), {"batch_size=2"}),
              HasSubstr("stages[1]: the batch norm in the own layers of loss 'l2-avgpool' trains with one value a "
                        "channel"));
  EXPECT_EQ(Refusal(text, Fleet(), {"batch_size=2", "stages.1.losses.2.adapter=conv1x1"}), "accepted");
  for (const char* loss : {"{type: channel_transform, student: avgpool, teacher: avgpool, norm: batchnorm}",
                           "{type: tat, student: avgpool, teacher: avgpool}"}) {
    EXPECT_THAT(Refusal(text, Fleet(), {"batch_size=2", std::string("stages.1.losses.2=") + loss}),
                HasSubstr("trains with one value a channel"));
    EXPECT_EQ(Refusal(text, Fleet(), {std::string("stages.1.losses.2=") + loss}), "accepted");
  }
}

}  // namespace
}  // namespace distill
