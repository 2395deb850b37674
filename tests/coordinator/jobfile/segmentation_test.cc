// Job files for semantic segmentation: a label and an answer for every pixel.
#include "common/plan/loss_schema.h"
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr const char* kStreets = R"yaml(name: streets
students: 2
batch_size: 16
student: {arch: fcn_resnet18, width: 16, num_classes: 11, in_channels: 3, image: [88, 120]}
teacher: streets
data: {format: segmentation_folder, path: camvid, train_size: 367, ignore_label: 11, shrink: 4}
stages:
  - name: train
    epochs: 2
    losses:
      - {type: cross_entropy}
      - {type: kd}
      - {type: cwd, student: classifier, teacher: classifier, mask: valid_labels}
)yaml";

ModelSpec StreetsTeacher() {
  ModelSpec spec;
  spec.arch = "fcn_resnet34";
  spec.width = 16;
  spec.num_classes = 11;
  spec.in_channels = 3;
  spec.image_height = 88;
  spec.image_width = 120;
  return spec;
}

FleetView Streets(const ModelSpec& spec = StreetsTeacher(), std::vector<ServedTap> taps = {}) {
  FleetView fleet;
  fleet.models.push_back({"streets", "d1d1d1d1d1d1d1d1", spec, 1000, 4000, std::move(taps)});
  return fleet;
}

TEST(SegmentationJobTest, IsExpanded) {
  const StatusOr<ExpandedJob> job = Expand(kStreets, Streets());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->warnings, IsEmpty());
  EXPECT_EQ(job->plan.data.format, "segmentation_folder");
  EXPECT_EQ(job->plan.data.ignore_label, 11u);
  EXPECT_EQ(job->plan.data.shrink, 4u);
  EXPECT_TRUE(job->plan.evaluate_teacher);
  const StagePlan& stage = job->plan.stages[0];
  EXPECT_EQ(stage.steps, 44u);                     // 2 * floor(367 / 16)
  EXPECT_EQ(stage.losses[2].student_height, 11u);  // an eighth of the image
  EXPECT_EQ(stage.losses[2].student_width, 15u);
}

TEST(SegmentationJobTest, ALossMaskedByLabelsReadsThem) {
  const std::string masked = With(With(kStreets, "      - {type: cross_entropy}\n", ""), "      - {type: kd}\n", "");
  EXPECT_TRUE(Expand(masked, Streets())->plan.stages[0].uses_labels);
  EXPECT_FALSE(Expand(With(masked, ", mask: valid_labels", ""), Streets())->plan.stages[0].uses_labels);
  const std::string more = With(With(masked, "shrink: 4", "shrink: 4, unlabelled: more, unlabelled_size: 100"),
                                "epochs: 2", "epochs: 2\n    unlabelled_ok: true");
  EXPECT_THAT(Refusal(more, Streets()), HasSubstr("unlabelled_ok"));
  EXPECT_EQ(Refusal(With(more, ", mask: valid_labels", ""), Streets()), "accepted");
}

TEST(SegmentationJobTest, AnswersAndLabelsAreForTheSameThings) {
  EXPECT_THAT(Refusal(With(kStreets, "fcn_resnet18", "resnet18"), Streets()),
              AllOf(HasSubstr("job.yaml:6:16: data.format: segmentation_folder has a label for every pixel, but "
                              "'resnet18' answers once per image"),
                    HasSubstr("fcn_resnet18")));
  EXPECT_THAT(Refusal(With(With(kStreets, "segmentation_folder", "image_folder"), ", ignore_label: 11", ""), Streets()),
              AllOf(HasSubstr("student: 'fcn_resnet18' answers for every pixel, but data.format image_folder has one "
                              "label per image"),
                    HasSubstr("mask: valid_labels needs a label for every pixel")));
}

TEST(SegmentationJobTest, MetricsToSelectByAreThoseOfPixels) {
  const auto with = [](const std::string& metric) {
    return With(With(kStreets, "shrink: 4", "shrink: 4, holdout: 64"), "epochs: 2",
                "epochs: 2\n    select: best\n    select_by: " + metric);
  };
  for (const std::string metric : {"mean_iou", "pixel_accuracy", "objective"}) {
    const StatusOr<ExpandedJob> job = Expand(with(metric), Streets());
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->plan.stages[0].select_by, metric);
  }
  EXPECT_THAT(Refusal(with("top1"), Streets()),
              HasSubstr("'top1' is for images, and the student answers for pixels: take mean_iou or objective"));
}

TEST(SegmentationJobTest, AnAuxiliaryHeadIsALossOnAMapOfTheStudent) {
  const auto with = [](const std::string& loss) {
    return With(kStreets, "      - {type: kd}\n", "      - {type: kd}\n      - " + loss + "\n");
  };
  const StatusOr<ExpandedJob> job = Expand(with("{type: aux_classifier, student: layer3, weight: 0.4}"), Streets());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->warnings, IsEmpty());
  const LossPlan& loss = job->plan.stages[0].losses[2];
  EXPECT_EQ(loss.name, "aux_classifier-layer3");
  EXPECT_FALSE(loss.needs_teacher);
  EXPECT_EQ(loss.student_tap, "layer3");
  EXPECT_EQ(loss.student_channels, 64u);
  EXPECT_EQ(loss.teacher_channels, 11u);
  EXPECT_EQ(loss.student_height, 11u);
  EXPECT_EQ(loss.adapter, "none");
  // Alone it needs no teacher, and labels all the same.
  const std::string alone =
      With(With(With(with("{type: aux_classifier, student: layer3}"), "      - {type: kd}\n", ""),
                "      - {type: cwd, student: classifier, teacher: classifier, mask: valid_labels}\n", ""),
           "      - {type: cross_entropy}\n", "");
  const StatusOr<ExpandedJob> only =
      Expand(With(alone, "  - name: train\n", "  - name: train\n    trainable: [layer3]\n"), Streets());
  ASSERT_TRUE(only.ok()) << only.status();
  EXPECT_TRUE(only->plan.stages[0].uses_labels);
  EXPECT_FALSE(only->plan.stages[0].needs_teacher);

  EXPECT_THAT(Refusal(with("{type: aux_classifier}"), Streets()), HasSubstr("student"));
  EXPECT_THAT(Refusal(with("{type: aux_classifier, student: layer9}"), Streets()),
              HasSubstr("the student has no tap 'layer9'"));
  EXPECT_THAT(Refusal(with("{type: aux_classifier, student: layer3, teacher: layer3}"), Streets()),
              HasSubstr("the loss 'aux_classifier' reads no teacher"));
  EXPECT_THAT(Refusal(with("{type: aux_classifier, student: layer3, adapter: conv1x1}"), Streets()),
              HasSubstr("the loss 'aux_classifier' takes no adapter"));
  EXPECT_THAT(Refusal(with("{type: aux_classifier, student: layer3, label_smoothing: 1}"), Streets()),
              HasSubstr("label_smoothing"));
  EXPECT_THAT(Refusal(With(kExplicitJob, "{type: cwd, weight: 2, temperature: 1, student: layer3, teacher: layer3}",
                           "{type: aux_classifier, student: layer3}")),
              HasSubstr("'aux_classifier' compares with a label for every pixel, and cifar_resnet8 answers for every "
                        "image"));
}

TEST(SegmentationJobTest, MirrorImagesMayCountToo) {
  EXPECT_FALSE(Expand(kStreets, Streets())->plan.evaluate_flip);
  EXPECT_TRUE(Expand(With(kStreets, "stages:", "evaluate: {flip: true}\nstages:"), Streets())->plan.evaluate_flip);
  EXPECT_THAT(Refusal(With(kStreets, "stages:", "evaluate: {flip: 2}\nstages:"), Streets()),
              HasSubstr("evaluate.flip"));
}

TEST(SegmentationJobTest, PicturesAreMeasuredInWindowsAndAtScales) {
  const auto with = [](const std::string& evaluate) {
    return With(kStreets, "stages:", "evaluate: {" + evaluate + "}\nstages:");
  };
  const StatusOr<ExpandedJob> job = Expand(with("scales: [0.75, 1], window: [88, 120], stride: [44, 60]"), Streets());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(job->warnings, IsEmpty());
  EXPECT_EQ(job->plan.evaluate_scales, (std::vector<double>{0.75, 1}));
  EXPECT_EQ(job->plan.evaluate_window, (std::vector<uint32_t>{88, 120}));
  EXPECT_EQ(job->plan.evaluate_stride, (std::vector<uint32_t>{44, 60}));
  EXPECT_TRUE(job->plan.evaluate_teacher);
  EXPECT_EQ(Expand(with("window: [88, 120]"), Streets())->plan.evaluate_stride, (std::vector<uint32_t>{59, 80}));
  EXPECT_THAT(Expand(kStreets, Streets())->plan.evaluate_scales, IsEmpty());

  // A teacher sees pictures of its own size.
  const StatusOr<ExpandedJob> scaled = Expand(with("scales: [0.5]"), Streets());
  ASSERT_TRUE(scaled.ok()) << scaled.status();
  EXPECT_FALSE(scaled->plan.evaluate_teacher);
  ASSERT_EQ(scaled->warnings.size(), 1u);
  EXPECT_THAT(scaled->warnings[0].text,
              HasSubstr("evaluate.scales: the teacher's accuracy is not measured, since it takes pictures of [88, 120] "
                        "only and would be shown [44, 60]; show it windows of its own size: evaluate: {window: [88, "
                        "120]}"));
  EXPECT_THAT(Refusal(with("scales: [0.5], teacher: true"), Streets()),
              HasSubstr("evaluate.teacher: the teacher takes"));
  EXPECT_EQ(Refusal(with("scales: [0.5], teacher: false"), Streets()), "accepted");
  EXPECT_EQ(Refusal(with("window: [96, 96], teacher: false"), Streets()), "accepted");

  // Pictures that are measured may be larger than those to train on.
  const std::string larger =
      With(with("window: [88, 120]"), "shrink: 4", "shrink: 4, transforms: {test: [{resize: {size: [180, 240]}}]}");
  EXPECT_EQ(Refusal(larger, Streets()), "accepted");
  EXPECT_THAT(Refusal(With(larger, "window: [88, 120]", "flip: true"), Streets()),
              HasSubstr("data.transforms.test: makes pictures of [180, 240]"));
  const std::string held_out =
      With(With(larger, "shrink: 4,", "shrink: 4, holdout: 64,"), "epochs: 2", "epochs: 2\n    select: best");
  EXPECT_THAT(Refusal(held_out, Streets()), HasSubstr("held-out pictures become [180, 240], on which stage 'train' "
                                                      "cannot compute its objective for [88, 120]; take select_by: "
                                                      "mean_iou"));
  EXPECT_EQ(Refusal(With(held_out, "select: best", "select: best\n    select_by: mean_iou"), Streets()), "accepted");
}

TEST(SegmentationJobTest, ViewsThatMakeNoSenseAreRefused) {
  const auto refusal = [](const std::string& evaluate) {
    return Refusal(With(kStreets, "stages:", "evaluate: {" + evaluate + "}\nstages:"), Streets());
  };
  EXPECT_THAT(refusal("scales: []"), HasSubstr("evaluate.scales"));
  EXPECT_THAT(refusal("scales: [1, 9]"), HasSubstr("evaluate.scales"));
  EXPECT_THAT(refusal("scales: 1.5"), HasSubstr("evaluate.scales"));
  EXPECT_THAT(refusal("window: [88]"), HasSubstr("evaluate.window: expected [height, width] in whole pixels"));
  EXPECT_THAT(refusal("window: [88.5, 20]"), HasSubstr("evaluate.window: expected [height, width] in whole pixels"));
  EXPECT_THAT(refusal("window: [4, 120], teacher: false"), HasSubstr("fewer than 8 a side"));
  EXPECT_THAT(refusal("stride: [44, 60]"), HasSubstr("evaluate.stride: is the way from one window to the next"));
  EXPECT_THAT(refusal("window: [88, 120], stride: [44, 121]"),
              HasSubstr("pixels between windows would have no answer"));
  EXPECT_THAT(refusal("window: [88, 120], stride: [5, 60]"), HasSubstr("less than a sixteenth of the window"));
  for (const std::string views : {"window: [28, 28]", "scales: [1, 2]"}) {
    EXPECT_THAT(Refusal(With(kExplicitJob, "stages:", "evaluate: {" + views + "}\nstages:")),
                HasSubstr("'cifar_resnet8' answers for every image; leave it out"));
  }
}

TEST(SegmentationJobTest, KeysThatDoNotApplyAreRefused) {
  EXPECT_THAT(Refusal(With(kStreets, "segmentation_folder", "image_folder"), Streets()),
              HasSubstr("ignore_label: stands for pixels without a label"));
  EXPECT_THAT(Refusal(With(kExplicitJob, "train_size: 60000", "train_size: 60000, shrink: 2")),
              HasSubstr("shrink: IDX images are taken as they are"));
  EXPECT_THAT(Refusal(With(kStreets, "shrink: 4", "shrink: 0"), Streets()), HasSubstr("shrink"));
  EXPECT_THAT(Refusal(With(kStreets, "ignore_label: 11", "ignore_label: 256"), Streets()), HasSubstr("ignore_label"));
  EXPECT_THAT(Refusal(With(kStreets, "num_classes: 11", "num_classes: 256"), Streets()), HasSubstr("255"));
}

TEST(SegmentationJobTest, LogitsOfDifferentShapesAreNotCompared) {
  ModelSpec opaque = StreetsTeacher();
  opaque.arch = "torchscript";
  const auto fleet = [&](std::vector<uint32_t> output) {
    return Streets(opaque, {{"classifier", "TorchScript", {11, 11, 15}, false}, {"", "TorchScript", output, false}});
  };
  EXPECT_EQ(Refusal(kStreets, fleet({11, 88, 120})), "accepted");
  EXPECT_THAT(Refusal(kStreets, fleet({11, 11, 15})),
              HasSubstr("the student's output is [11, 88, 120], the teacher's [11, 11, 15]"));
  EXPECT_THAT(Refusal(kStreets, fleet({11})), HasSubstr("the teacher's [11]"));
  // Without a loss on logits such a teacher is good enough, but its accuracy cannot be measured.
  const StatusOr<ExpandedJob> job = Expand(With(kStreets, "      - {type: kd}\n", ""), fleet({11, 11, 15}));
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->plan.evaluate_teacher);
  EXPECT_THAT(Texts(job->warnings), testing::ElementsAre(HasSubstr("accuracy is not measured")));
}

TEST(SegmentationJobTest, ATeacherWithoutOutputHasNoLogitsAndIsNotMeasured) {
  ModelSpec archive = StreetsTeacher();
  archive.arch = "torchscript";
  archive.num_classes = 0;
  const FleetView fleet = Streets(archive, {{"classifier", "TorchScript", {11, 11, 15}, false}});
  EXPECT_THAT(Refusal(kStreets, fleet),
              HasSubstr("'kd' compares logits, but the teacher's archive returns inner maps only"));
  const StatusOr<ExpandedJob> job = Expand(With(kStreets, "      - {type: kd}\n", ""), fleet);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_FALSE(job->plan.evaluate_teacher);
  EXPECT_THAT(Texts(job->warnings), testing::ElementsAre(HasSubstr("its output is not served")));
}

TEST(SegmentationJobTest, PresetsWork) {
  for (const std::string preset : {"scratch", "kd", "cwd", "channel_transform", "tat", "sskd"}) {
    std::string yaml = kStreets;
    yaml = yaml.substr(0, yaml.find("stages:")) + "preset: " + preset + "\nbudget: {epochs: 8}\n";
    const StatusOr<ExpandedJob> job = Expand(yaml, Streets());
    ASSERT_TRUE(job.ok()) << preset << ": " << job.status();
    if (preset == "cwd") {  // the stages of one size too
      std::vector<std::string> taps;
      for (const LossPlan& loss : job->plan.stages[0].losses) {
        if (loss.type == "cwd") taps.push_back(loss.student_tap + " " + loss.teacher_tap);
      }
      EXPECT_THAT(taps, testing::ElementsAre("layer1 layer1", "layer2 layer2", "layer3 layer3", "layer4 layer4"));
    }
    if (preset == "sskd") {
      EXPECT_EQ(job->plan.stages.size(), 5u);
      EXPECT_THAT(job->plan.stages.back().trainable, testing::ElementsAre("classifier"));
    }
  }
}

}  // namespace
}  // namespace distill
