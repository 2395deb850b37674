// Jobs whose student is an archive of the students' model folders.
#include "tests/coordinator/jobfile/job_file_fixture.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// stem -> layer1 -> layer2 -> fc, as a worker describes it; `aux` hangs beside layer1.
ServedModelInfo Own(const std::string& digest = "a1a1a1a1a1a1a1a1") {
  ServedModelInfo model;
  model.name = "mine";
  model.digest = digest;
  model.spec = {.arch = "torchscript", .in_channels = 1, .image_height = 28, .image_width = 28, .mean = {0.5f}};
  model.parameters = 100;
  const auto parameter = [&](const std::string& name) { model.state.push_back({.name = name, .shape = {4}}); };
  for (const char* name :
       {"token", "stem.weight", "layer1.a.weight", "layer1.b.weight", "aux.weight", "layer2.weight", "fc.weight"}) {
    parameter(name);
  }
  model.state.push_back({.name = "stem.mean", .shape = {4}, .is_buffer = true});
  const auto tap = [&](const std::string& path, std::vector<uint32_t> shape, bool stage_end,
                       std::vector<uint32_t> needs, bool is_cut) {
    model.taps.push_back({.path = path,
                          .type = "TorchScript",
                          .shape = shape,
                          .stage_end = stage_end,
                          .needs = needs,
                          .is_cut = is_cut});
  };
  tap("layer1", {16, 28, 28}, true, {0, 1, 2, 3}, true);
  tap("aux", {16, 28, 28}, false, {0, 1, 2, 4}, false);
  tap("layer2", {32, 14, 14}, true, {0, 1, 2, 3, 5}, true);
  tap("", {10}, false, {0, 1, 2, 3, 5, 6}, false);
  return model;
}

FleetView FleetWithOwn() {
  FleetView fleet = Fleet();
  fleet.archives = {Own(), Own()};
  return fleet;
}

const std::string kJob =
    With(kExplicitJob,
         "student: {arch: cifar_resnet8, width: 8, num_classes: 10, in_channels: 1, image: [28, 28], "
         "mean: [0.286], std: [0.353]}",
         "student: {archive: mine}");
std::string Job(const std::string& stages) {
  const std::string head = kJob.substr(0, kJob.find("stages:"));
  return head + "stages:\n" + stages;
}

TEST(ArchiveStudentTest, IsExpandedFromWhatTheStudentsRegistered) {
  const auto job = Expand(Job("  - name: mimic\n    trainable: [token, stem, \"layer1.*\"]\n    steps: 5\n    losses:\n"
                              "      - {type: l2, student: layer1, teacher: layer1}\n"
                              "  - name: all\n    trainable: [token, stem, layer1, layer2, fc]\n    steps: 5\n    "
                              "losses: [{type: kd}, {type: cross_entropy}]\n"),
                          FleetWithOwn());
  ASSERT_TRUE(job.ok()) << job.status();
  const ModelSpec& student = job->plan.student;
  EXPECT_EQ(student.arch, "mine@sha256:a1a1a1a1a1a1a1a1");
  EXPECT_EQ(student.num_classes, 10u);
  EXPECT_EQ(student.image_width, 28u);
  EXPECT_THAT(student.mean, ElementsAre(0.5f));
  EXPECT_THAT(job->plan.stages[0].trainable, ElementsAre("token", "stem", "layer1.a", "layer1.b"));
  EXPECT_EQ(job->plan.stages[0].student_until, "layer1");
}

TEST(ArchiveStudentTest, PresetsPairItsStages) {
  const std::string preset =
      With(kPresetJob, "student: {arch: cifar_resnet8, width: 16, num_classes: 10, in_channels: 1, image: [28, 28]}",
           "student: {archive: mine}");
  const auto job = Expand(preset, FleetWithOwn());
  ASSERT_TRUE(job.ok()) << job.status();
  ASSERT_EQ(job->plan.stages.size(), 3u);
  EXPECT_THAT(job->plan.stages[0].trainable, ElementsAre("token", "stem", "layer1"));
  EXPECT_THAT(job->plan.stages[1].trainable, ElementsAre("layer2"));
  EXPECT_THAT(job->plan.stages[2].trainable, ElementsAre("fc"));  // the output does not depend on aux
}

TEST(ArchiveStudentTest, WhatNoLossReachesIsRefusedByTheGraph) {
  const std::string text = Refusal(
      Job("  - name: one\n    trainable: [aux]\n    steps: 5\n    losses: [{type: cross_entropy}]\n"), FleetWithOwn());
  EXPECT_THAT(text, HasSubstr("'aux' trains, but no loss depends on it"));
}

TEST(ArchiveStudentTest, BlockwiseStagesStartAtCutsOnly) {
  const auto job =
      Expand(Job("  - name: one\n    trainable: [layer2]\n    steps: 5\n    teacher_input: layer1\n"
                 "    student_input: layer1\n    losses: [{type: l2, student: layer2, teacher: layer2}]\n"),
             FleetWithOwn());
  EXPECT_TRUE(job.ok()) << job.status();
  EXPECT_THAT(Refusal(Job("  - name: one\n    trainable: [layer2]\n    steps: 5\n    teacher_input: layer1\n"
                          "    student_input: aux\n    losses: [{type: l2, student: layer2, teacher: layer2}]\n"),
                      FleetWithOwn()),
              HasSubstr("student_input 'aux' lies inside a block"));
}

TEST(ArchiveStudentTest, AFleetWithoutItIsNamedWithTheRemedy) {
  EXPECT_THAT(Refusal(kJob), HasSubstr("no live student has the archive 'mine' (there now: nothing); put mine.pt and "
                                       "mine.pt.yaml into its folder: distill-student --models FOLDER"));
  EXPECT_EQ(Expand(kJob).status().code(), StatusCode::kFailedPrecondition);
  FleetView fleet = FleetWithOwn();
  fleet.archives[1].digest = "b2";
  EXPECT_THAT(Refusal(kJob, fleet), HasSubstr("live students hold different archives under the name 'mine'"));
  fleet = FleetWithOwn();
  fleet.archives[0].taps[0].needs = {99};
  EXPECT_THAT(Refusal(kJob, fleet),
              HasSubstr("'mine' describes itself wrongly: archive: tap 'layer1' depends on a parameter "
                        "that does not exist"));
  EXPECT_THAT(Refusal(With(kJob, "archive: mine", "archive: mien"), FleetWithOwn()), HasSubstr("did you mean 'mine'?"));
}

TEST(ArchiveStudentTest, ItsBatchNormsSeeTheImagesOfOneRank) {
  EXPECT_THAT(Refusal(With(kJob, "optimizer: {lr: 0.05}", "sync_batch_norm: true"), FleetWithOwn()),
              HasSubstr("job.yaml:8:18: sync_batch_norm: an archive's batch norms are parts of its own program"));
}

TEST(ArchiveStudentTest, WhatTheArchiveSaysItselfIsNotSaidAgain) {
  EXPECT_THAT(Refusal(With(kJob, "archive: mine", "archive: mine, num_classes: 10"), FleetWithOwn()),
              HasSubstr("student.num_classes: an archive says this itself"));
  EXPECT_THAT(Refusal(With(kJob, "archive: mine", "archive: mine.pt/../x"), FleetWithOwn()),
              HasSubstr("is no name of an archive"));
}

}  // namespace
}  // namespace distill
