#include "common/plan/loss_shapes.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/plan/loss_schema.h"

namespace distill {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

LossPlan Loss(const std::string& type, const Knobs& knobs = {}, const std::string& adapter = "auto") {
  LossPlan loss;
  loss.name = type;
  loss.type = type;
  loss.adapter = adapter;
  loss.knobs = *CompleteKnobs(*FindLossSchema(type), knobs);
  return loss;
}

struct Resolved {
  LossPlan loss;
  std::vector<std::string> warnings;
  const std::string& text(const std::string& knob) const { return TextKnob(loss.knobs, knob); }
};

Resolved Resolve(LossPlan loss, const MapShape& student, const MapShape& teacher) {
  Resolved resolved{std::move(loss), {}};
  const Status status = ResolveLoss(student, teacher, &resolved.loss, &resolved.warnings);
  EXPECT_TRUE(status.ok()) << status;
  return resolved;
}

std::string Refusal(LossPlan loss, const MapShape& student, const MapShape& teacher) {
  std::vector<std::string> warnings;
  const Status status = ResolveLoss(student, teacher, &loss, &warnings);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << loss.type;
  return std::string(status.message());
}

TEST(ResizeToTest, EveryValueOfTheKnob) {
  const MapSize student{8, 4}, teacher{4, 16};
  for (const char* keep : {"none", "auto", "error"}) {
    EXPECT_EQ(ResizeTo(keep, student, teacher).student, student) << keep;
    EXPECT_EQ(ResizeTo(keep, student, teacher).teacher, teacher) << keep;
  }
  EXPECT_EQ(ResizeTo("teacher_to_student", student, teacher).teacher, student);
  EXPECT_EQ(ResizeTo("student_to_teacher", student, teacher).student, teacher);
  const ResizedMaps pooled = ResizeTo("pool_larger", student, teacher);
  EXPECT_EQ(pooled.student, (MapSize{4, 4}));
  EXPECT_EQ(pooled.teacher, (MapSize{4, 4}));
}

TEST(ResolveLossTest, FillsInChannelsAndSizes) {
  const Resolved cwd = Resolve(Loss("cwd"), {16, {8, 9}}, {32, {8, 9}});
  EXPECT_EQ(cwd.loss.student_channels, 16u);
  EXPECT_EQ(cwd.loss.teacher_channels, 32u);
  EXPECT_EQ(cwd.loss.student_height, 8u);
  EXPECT_EQ(cwd.loss.student_width, 9u);
  EXPECT_EQ(cwd.loss.teacher_height, 8u);
  EXPECT_EQ(cwd.loss.teacher_width, 9u);
  EXPECT_THAT(cwd.warnings, IsEmpty());
}

TEST(ResolveLossTest, AutoAdaptsOnlyWhereChannelsDiffer) {
  for (const char* type : {"cwd", "l1", "l2", "smooth_l1", "mgd", "pixel_kd"}) {
    EXPECT_EQ(Resolve(Loss(type), {16, {8, 8}}, {32, {8, 8}}).loss.adapter, "conv1x1") << type;
    EXPECT_EQ(Resolve(Loss(type), {32, {8, 8}}, {32, {8, 8}}).loss.adapter, "none") << type;
    EXPECT_EQ(Resolve(Loss(type, {}, "conv3x3"), {32, {8, 8}}, {32, {8, 8}}).loss.adapter, "conv3x3") << type;
    EXPECT_THAT(Refusal(Loss(type, {}, "none"), {16, {8, 8}}, {32, {8, 8}}),
                AllOf(HasSubstr("16"), HasSubstr("32"), HasSubstr("adapter: conv1x1")));
    EXPECT_THAT(Refusal(Loss(type, {}, "conv1x2"), {16, {8, 8}}, {32, {8, 8}}), HasSubstr("did you mean 'conv1x1'"));
  }
  for (const char* type : {"at", "sp", "channel_transform", "tat"}) {
    EXPECT_EQ(Resolve(Loss(type), {16, {8, 8}}, {32, {8, 8}}).loss.adapter, "none") << type;
    EXPECT_EQ(Resolve(Loss(type, {}, "none"), {16, {8, 8}}, {32, {8, 8}}).loss.adapter, "none") << type;
    EXPECT_THAT(Refusal(Loss(type, {}, "conv1x1"), {16, {8, 8}}, {32, {8, 8}}), HasSubstr("takes no adapter")) << type;
  }
}

TEST(ResolveLossTest, SizesThatDifferNeedAWayToMeet) {
  for (const char* type : {"at", "channel_transform", "l1", "l2", "smooth_l1", "mgd", "pixel_kd"}) {
    EXPECT_THAT(Refusal(Loss(type), {16, {8, 8}}, {16, {4, 4}}),
                AllOf(HasSubstr("8x8"), HasSubstr("4x4"), HasSubstr("pool_larger")))
        << type;
    for (const char* way : {"pool_larger", "teacher_to_student", "student_to_teacher"}) {
      Resolve(Loss(type, {{"spatial_mismatch", std::string(way)}}), {16, {8, 8}}, {16, {4, 4}});
    }
  }
  Resolve(Loss("cwd"), {16, {8, 8}}, {16, {4, 4}});  // cwd resizes the teacher's by default
  EXPECT_THAT(Refusal(Loss("cwd", {{"spatial_mismatch", std::string("error")}}), {16, {8, 8}}, {16, {4, 4}}),
              HasSubstr("8x8"));
  Resolve(Loss("sp"), {16, {8, 8}}, {16, {4, 4}});  // positions are summed away
}

TEST(ResolveLossTest, CwdOverOnePositionIsUselessAndSaysSo) {
  EXPECT_THAT(Resolve(Loss("cwd"), {16, {1, 1}}, {16, {1, 1}}).warnings, ElementsAre(HasSubstr("always 0")));
  EXPECT_THAT(Resolve(Loss("cwd", {{"norm_axis", std::string("channel")}}), {16, {1, 1}}, {16, {1, 1}}).warnings,
              IsEmpty());
}

TEST(ResolveLossTest, ChannelTransformOnTheTeachersSideAndEvenKernelsAreRefused) {
  for (const char* side : {"teacher", "both"}) {
    EXPECT_THAT(Refusal(Loss("channel_transform", {{"side", std::string(side)}}), {8, {4, 4}}, {8, {4, 4}}),
                AllOf(HasSubstr(side), HasSubstr("allow_collapse: true")));
    Resolve(Loss("channel_transform", {{"side", std::string(side)}, {"allow_collapse", true}}), {8, {4, 4}},
            {8, {4, 4}});
  }
  EXPECT_THAT(Refusal(Loss("channel_transform", {{"kernel", 2.0}}), {8, {4, 4}}, {8, {4, 4}}),
              HasSubstr("must be 1 or 3"));
}

TEST(ResolveLossTest, ATransformOfTheTeacherAloneNeedsEqualChannels) {
  const LossPlan teacher_side = Loss("channel_transform", {{"side", std::string("teacher")}, {"allow_collapse", true}});
  EXPECT_THAT(Refusal(teacher_side, {8, {4, 4}}, {16, {4, 4}}), AllOf(HasSubstr("8"), HasSubstr("16")));
  Resolve(teacher_side, {8, {4, 4}}, {8, {4, 4}});
}

TEST(ResolveLossTest, TatChoosesModeEmbeddingsAndResizing) {
  const Resolved small = Resolve(Loss("tat"), {16, {7, 7}}, {32, {7, 7}});
  EXPECT_EQ(small.text("mode"), "plain");
  EXPECT_EQ(small.text("gamma"), "conv3x3_bn");
  EXPECT_EQ(small.text("phi"), "conv3x3_bn");
  EXPECT_EQ(small.text("spatial_mismatch"), "none");
  EXPECT_THAT(small.warnings, IsEmpty());

  const Resolved middle = Resolve(Loss("tat"), {16, {32, 32}}, {32, {32, 32}});  // 1024 positions
  EXPECT_EQ(middle.text("mode"), "plain");
  EXPECT_EQ(middle.text("gamma"), "conv1x1_bn");
  EXPECT_EQ(Resolve(Loss("tat"), {16, {16, 16}}, {32, {16, 16}}).text("gamma"), "conv3x3_bn");  // 256

  const Resolved large = Resolve(Loss("tat"), {16, {129, 129}}, {32, {129, 129}});
  EXPECT_EQ(large.text("mode"), "hierarchical");
  EXPECT_EQ(large.text("gamma"), "conv1x1_bn");
  EXPECT_EQ(large.text("spatial_mismatch"), "teacher_to_student");
  EXPECT_THAT(large.warnings, ElementsAre(HasSubstr("leave out 257 of 16641 positions")));

  const Resolved code =
      Resolve(Loss("tat", {{"orientation", std::string("student_query")}}), {16, {7, 7}}, {32, {9, 9}});
  EXPECT_EQ(code.text("spatial_mismatch"), "teacher_to_student");
  // The definition needs no resizing.
  EXPECT_EQ(Resolve(Loss("tat"), {16, {7, 7}}, {32, {9, 9}}).text("spatial_mismatch"), "none");
}

TEST(ResolveLossTest, TatReportsTheAnchorsItReallyMakes) {
  const Resolved resolved = Resolve(Loss("tat", {{"anchor_grid", 50.0}}), {16, {129, 129}}, {32, {129, 129}});
  EXPECT_THAT(resolved.warnings,
              ElementsAre(HasSubstr("leave out 257"), HasSubstr("anchor_grid 50 becomes 64x64 anchors")));
}

TEST(ResolveLossTest, TatWarnsOfWhatTeachesLittle) {
  EXPECT_THAT(Resolve(Loss("tat"), {16, {1, 1}}, {32, {1, 1}}).warnings, ElementsAre(HasSubstr("single position")));
}

TEST(ResolveLossTest, TatRefusesWhatItCannotCompute) {
  EXPECT_THAT(Refusal(Loss("tat", {{"gamma", std::string("identity")}}), {16, {7, 7}}, {32, {7, 7}}),
              AllOf(HasSubstr("gamma"), HasSubstr("16"), HasSubstr("32")));
  EXPECT_THAT(Refusal(Loss("tat", {{"phi", std::string("identity")}}), {16, {7, 7}}, {32, {7, 7}}), HasSubstr("phi"));
  Resolve(Loss("tat", {{"phi", std::string("identity")}}), {32, {7, 7}}, {32, {7, 7}});
  // Batch norm of one sample over one position.
  const Knobs per_sample = {{"embed_bn", std::string("per_sample")}};
  EXPECT_THAT(Refusal(Loss("tat", per_sample), {16, {1, 1}}, {32, {7, 7}}), HasSubstr("use batch or frozen"));
  Knobs theta = per_sample;
  theta["theta"] = std::string("conv1x1_bn");
  EXPECT_THAT(Refusal(Loss("tat", theta), {16, {7, 7}}, {32, {1, 1}}), HasSubstr("use batch or frozen"));
  Resolve(Loss("tat", per_sample), {16, {7, 7}}, {32, {1, 1}});
  const Knobs nothing = {{"mode", std::string("hierarchical")}, {"patch_weight", 0.0}, {"anchor_weight", 0.0}};
  EXPECT_THAT(Refusal(Loss("tat", nothing), {16, {32, 32}}, {32, {32, 32}}), HasSubstr("both 0"));
  EXPECT_THAT(Refusal(Loss("tat", {{"mode", std::string("hierarchical")}}), {16, {8, 8}}, {32, {8, 8}}),
              HasSubstr("grid_rows 16"));
  EXPECT_THAT(
      Refusal(Loss("tat", {{"orientation", std::string("student_query")}, {"spatial_mismatch", std::string("none")}}),
              {16, {7, 7}}, {32, {9, 9}}),
      HasSubstr("7x7"));
}

}  // namespace
}  // namespace distill
