#include "common/plan/tat_geometry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/plan/loss_schema.h"

namespace distill {
namespace {

using ::testing::HasSubstr;

Knobs Hierarchical(double rows, double cols, double groups, Knobs changes = {}) {
  Knobs given = {{"mode", std::string("hierarchical")}, {"grid_rows", rows}, {"grid_cols", cols}, {"groups", groups}};
  for (const auto& [name, value] : changes) given[name] = value;
  return *CompleteKnobs(*FindLossSchema("tat"), given);
}

TatGeometry Cut(const Knobs& knobs, MapSize student, MapSize teacher) {
  const StatusOr<TatGeometry> geometry = MakeTatGeometry(knobs, student, teacher);
  EXPECT_TRUE(geometry.ok()) << geometry.status();
  return geometry.ok() ? *geometry : TatGeometry{};
}

std::string Refusal(const Knobs& knobs, MapSize student, MapSize teacher) {
  const StatusOr<TatGeometry> geometry = MakeTatGeometry(knobs, student, teacher);
  EXPECT_EQ(geometry.status().code(), StatusCode::kInvalidArgument);
  return std::string(geometry.status().message());
}

TEST(TatGeometryTest, PlainCutsNothing) {
  const Knobs plain = *CompleteKnobs(*FindLossSchema("tat"), {{"mode", std::string("plain")}});
  // The default grid of 16 x 16 would not fit.
  EXPECT_FALSE(Cut(plain, {7, 7}, {7, 7}).hierarchical);
  EXPECT_FALSE(Cut(plain, {1, 1}, {5, 3}).hierarchical);
}

TEST(TatGeometryTest, TheReleasedCutDropsOneRowAndOneColumn) {
  const TatGeometry geometry = Cut(Hierarchical(16, 16, 64), {129, 129}, {129, 129});
  EXPECT_TRUE(geometry.hierarchical);
  EXPECT_EQ(geometry.grid_rows, 16u);
  EXPECT_EQ(geometry.grid_cols, 16u);
  EXPECT_EQ(geometry.groups, 64u);
  for (const TatSide& side : {geometry.student, geometry.teacher}) {
    EXPECT_EQ(side.patch, (MapSize{8, 8}));
    EXPECT_EQ(side.dropped_by_patches, 257u);
    EXPECT_EQ(side.anchor, (MapSize{4, 4}));
    EXPECT_EQ(side.dropped_by_anchors, 257u);
  }
}

TEST(TatGeometryTest, AnAnchorGridBecomesAKernel) {
  // 129 / 50 = 2, so there are 64 x 64 anchors, more than were asked for.
  const TatGeometry geometry = Cut(Hierarchical(16, 16, 64, {{"anchor_grid", 50.0}}), {129, 129}, {129, 129});
  EXPECT_EQ(geometry.teacher.anchor, (MapSize{2, 2}));
  EXPECT_EQ(129 / geometry.teacher.anchor.height, 64u);
  EXPECT_EQ(geometry.teacher.dropped_by_anchors, 257u);
  const TatGeometry whole = Cut(Hierarchical(1, 1, 1, {{"anchor_grid", 1.0}}), {6, 9}, {6, 9});
  EXPECT_EQ(whole.teacher.anchor, (MapSize{6, 9}));
  EXPECT_EQ(whole.teacher.dropped_by_anchors, 0u);
}

TEST(TatGeometryTest, SidesOfUnequalSizeHavePatchesAndAnchorsOfTheirOwn) {
  const TatGeometry geometry = Cut(Hierarchical(4, 2, 4), {8, 8}, {16, 20});
  EXPECT_EQ(geometry.student.patch, (MapSize{2, 4}));
  EXPECT_EQ(geometry.teacher.patch, (MapSize{4, 10}));
  EXPECT_EQ(geometry.teacher.anchor, (MapSize{4, 4}));
  EXPECT_EQ(geometry.student.anchor, (MapSize{2, 2}));  // 4 * 8 / 16, and 4 * 8 / 20 = 1.6
  // Never less than one position.
  EXPECT_EQ(Cut(Hierarchical(2, 2, 1), {2, 2}, {32, 32}).student.anchor, (MapSize{1, 1}));
}

TEST(TatGeometryTest, GroupModesOtherThanStackMakeEveryPatchAGroup) {
  for (const char* mode : {"batch", "none"}) {
    EXPECT_EQ(Cut(Hierarchical(4, 4, 3, {{"group_mode", std::string(mode)}}), {8, 8}, {8, 8}).groups, 16u) << mode;
  }
}

TEST(TatGeometryTest, RefusalsNameKnobValueAndMap) {
  EXPECT_THAT(Refusal(Hierarchical(16, 16, 64), {8, 129}, {129, 129}),
              AllOf(HasSubstr("grid_rows 16"), HasSubstr("student's 8x129"), HasSubstr("lower them")));
  EXPECT_THAT(Refusal(Hierarchical(4, 16, 64), {16, 16}, {16, 8}), HasSubstr("teacher's 16x8"));
  // 3 divides 4 * 4 * C for C = 3 but would split a patch's channels.
  EXPECT_THAT(Refusal(Hierarchical(4, 4, 3), {8, 8}, {8, 8}), HasSubstr("groups 3 does not divide the 16 patches"));
  EXPECT_THAT(Refusal(Hierarchical(2, 2, 8), {8, 8}, {8, 8}), HasSubstr("groups 8 does not divide the 4 patches"));
  EXPECT_THAT(Refusal(Hierarchical(1, 1, 1, {{"anchor_kernel", 9.0}}), {8, 8}, {8, 8}),
              AllOf(HasSubstr("anchor_kernel 9x9"), HasSubstr("teacher's 8x8"), HasSubstr("lower it")));
  EXPECT_THAT(Refusal(Hierarchical(1, 1, 1, {{"anchor_grid", 9.0}}), {8, 8}, {8, 16}), HasSubstr("anchor_grid 9"));
  EXPECT_THAT(Refusal(Hierarchical(1, 1, 1), {0, 8}, {8, 8}), HasSubstr("at least one position"));
  const Knobs code = Hierarchical(2, 2, 1, {{"orientation", std::string("student_query")}});
  EXPECT_THAT(Refusal(code, {8, 8}, {8, 16}),
              AllOf(HasSubstr("8x8"), HasSubstr("8x16"), HasSubstr("spatial_mismatch")));
  EXPECT_TRUE(Cut(code, {8, 8}, {8, 8}).hierarchical);
}

TEST(TatGeometryTest, RemaindersAreRefusedWhenAskedTo) {
  const Knobs strict = Hierarchical(16, 16, 64, {{"remainder", std::string("error")}});
  EXPECT_THAT(Refusal(strict, {129, 129}, {129, 129}),
              AllOf(HasSubstr("257 positions of the student's 129x129"), HasSubstr("257 in no anchor"),
                    HasSubstr("remainder: drop")));
  EXPECT_THAT(Refusal(strict, {128, 128}, {128, 130}), HasSubstr("teacher's 128x130"));
  EXPECT_EQ(Cut(strict, {128, 128}, {128, 128}).teacher.dropped_by_patches, 0u);
}

TEST(TatGeometryTest, MaskedRemaindersDropNothing) {
  const TatGeometry geometry =
      Cut(Hierarchical(16, 16, 64, {{"remainder", std::string("mask")}}), {129, 129}, {129, 64});
  EXPECT_TRUE(geometry.masked);
  EXPECT_EQ(geometry.student.patch, (MapSize{9, 9}));
  EXPECT_EQ(geometry.teacher.patch, (MapSize{9, 4}));
  for (const TatSide& side : {geometry.student, geometry.teacher}) {
    EXPECT_EQ(side.dropped_by_patches, 0u);
    EXPECT_EQ(side.dropped_by_anchors, 0u);
  }
  EXPECT_THAT(Refusal(Hierarchical(4, 16, 64, {{"remainder", std::string("mask")}}), {16, 16}, {16, 8}),
              HasSubstr("teacher's 16x8"));
}

TEST(TatGeometryTest, WindowsMakeGroups) {
  const Knobs windows = {{"group_mode", std::string("spatial")}, {"window_rows", 2.0}, {"window_cols", 4.0}};
  const TatGeometry geometry = Cut(Hierarchical(4, 8, 3, windows), {8, 8}, {8, 8});
  EXPECT_EQ(geometry.groups, 4u);
  EXPECT_EQ(geometry.window_rows, 2u);
  EXPECT_EQ(geometry.window_cols, 4u);
  EXPECT_EQ(Cut(Hierarchical(4, 8, 4), {8, 8}, {8, 8}).window_rows, 0u);
  EXPECT_THAT(Refusal(Hierarchical(4, 6, 3, windows), {8, 8}, {8, 8}),
              AllOf(HasSubstr("window_rows 2"), HasSubstr("window_cols 4"), HasSubstr("grid_cols 6")));
  EXPECT_THAT(Refusal(Hierarchical(5, 8, 4, windows), {8, 8}, {8, 8}), HasSubstr("grid_rows 5"));
}

TEST(TatGeometryTest, LargeMapsDoNotOverflow) {
  const TatGeometry geometry = Cut(Hierarchical(1, 1, 1), {70001, 70001}, {70001, 70001});
  EXPECT_EQ(geometry.teacher.dropped_by_anchors, 140001u);
}

}  // namespace
}  // namespace distill
