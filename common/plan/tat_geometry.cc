#include "common/plan/tat_geometry.h"

#include <algorithm>
#include <cmath>

#include "common/plan/loss_schema.h"
#include "common/str_cat.h"

namespace distill {
namespace {

uint32_t WholeKnob(const Knobs& knobs, std::string_view name) { return static_cast<uint32_t>(NumberKnob(knobs, name)); }

std::string Text(MapSize size) { return StrCat(size.height, "x", size.width); }

uint64_t Dropped(MapSize map, MapSize cell) {
  const uint64_t rows = map.height / cell.height * cell.height, cols = map.width / cell.width * cell.width;
  return map.positions() - rows * cols;
}

Status CutPatches(std::string_view side, MapSize map, const TatGeometry& geometry, TatSide* out) {
  out->patch = {map.height / geometry.grid_rows, map.width / geometry.grid_cols};
  if (out->patch.height == 0 || out->patch.width == 0) {
    return absl::InvalidArgumentError(
        StrCat("grid_rows ", geometry.grid_rows, " and grid_cols ", geometry.grid_cols, " cut the ", side, "'s ",
               Text(map), " map into patches without a position; ", "lower them, or set mode: plain"));
  }
  if (geometry.masked) {
    const auto largest = [](uint32_t size, uint32_t cells) { return (size + cells - 1) / cells; };
    out->patch = {largest(map.height, geometry.grid_rows), largest(map.width, geometry.grid_cols)};
    return OkStatus();
  }
  const uint64_t used = uint64_t{geometry.grid_rows} * out->patch.height * geometry.grid_cols * out->patch.width;
  out->dropped_by_patches = map.positions() - used;
  return OkStatus();
}

Status CutAnchors(std::string_view side, MapSize map, bool masked, TatSide* out) {
  if (out->anchor.height > map.height || out->anchor.width > map.width) {
    return absl::InvalidArgumentError(
        StrCat("anchor_kernel ", Text(out->anchor), " is larger than the ", side, "'s ", Text(map), " map; lower it"));
  }
  if (!masked) out->dropped_by_anchors = Dropped(map, out->anchor);
  return OkStatus();
}

uint32_t Scaled(uint32_t kernel, uint32_t to, uint32_t from) {
  return std::max<uint32_t>(1, static_cast<uint32_t>(std::lround(static_cast<double>(kernel) * to / from)));
}

}  // namespace

StatusOr<TatGeometry> MakeTatGeometry(const Knobs& knobs, MapSize student, MapSize teacher) {
  if (student.positions() == 0 || teacher.positions() == 0) {
    return absl::InvalidArgumentError("tat needs maps of at least one position");
  }
  TatGeometry geometry;
  if (TextKnob(knobs, "orientation") == "student_query" && student != teacher) {
    return absl::InvalidArgumentError(StrCat("orientation student_query pairs positions, but the student's map is ",
                                             Text(student), " and the teacher's ", Text(teacher),
                                             "; set spatial_mismatch, or orientation: teacher_query"));
  }
  geometry.hierarchical = TextKnob(knobs, "mode") == "hierarchical";
  if (!geometry.hierarchical) return geometry;
  geometry.grid_rows = WholeKnob(knobs, "grid_rows");
  geometry.grid_cols = WholeKnob(knobs, "grid_cols");
  geometry.groups = WholeKnob(knobs, "groups");
  const uint64_t patches = uint64_t{geometry.grid_rows} * geometry.grid_cols;
  geometry.masked = TextKnob(knobs, "remainder") == "mask";
  const std::string& group_mode = TextKnob(knobs, "group_mode");
  if (group_mode == "spatial") {
    geometry.window_rows = WholeKnob(knobs, "window_rows");
    geometry.window_cols = WholeKnob(knobs, "window_cols");
    if (geometry.grid_rows % geometry.window_rows != 0 || geometry.grid_cols % geometry.window_cols != 0) {
      return absl::InvalidArgumentError(StrCat("windows of window_rows ", geometry.window_rows, " and window_cols ",
                                               geometry.window_cols, " do not divide the grid of grid_rows ",
                                               geometry.grid_rows, " and grid_cols ", geometry.grid_cols));
    }
    geometry.groups = static_cast<uint32_t>(patches / geometry.window_rows / geometry.window_cols);
  } else if (group_mode != "stack") {
    geometry.groups = static_cast<uint32_t>(patches);
  }
  if (geometry.groups > patches || patches % geometry.groups != 0) {
    return absl::InvalidArgumentError(StrCat("groups ", geometry.groups, " does not divide the ", patches,
                                             " patches of grid_rows ", geometry.grid_rows, " and grid_cols ",
                                             geometry.grid_cols));
  }
  DISTILL_RETURN_IF_ERROR(CutPatches("student", student, geometry, &geometry.student));
  DISTILL_RETURN_IF_ERROR(CutPatches("teacher", teacher, geometry, &geometry.teacher));
  const uint32_t anchor_grid = WholeKnob(knobs, "anchor_grid");
  if (anchor_grid > 0) {
    if (anchor_grid > teacher.height || anchor_grid > teacher.width) {
      return absl::InvalidArgumentError(StrCat("anchor_grid ", anchor_grid, " is more than the teacher's ",
                                               Text(teacher), " map has rows or columns"));
    }
    geometry.teacher.anchor = {teacher.height / anchor_grid, teacher.width / anchor_grid};
  } else {
    const uint32_t kernel = WholeKnob(knobs, "anchor_kernel");
    geometry.teacher.anchor = {kernel, kernel};
  }
  geometry.student.anchor = {Scaled(geometry.teacher.anchor.height, student.height, teacher.height),
                             Scaled(geometry.teacher.anchor.width, student.width, teacher.width)};
  DISTILL_RETURN_IF_ERROR(CutAnchors("teacher", teacher, geometry.masked, &geometry.teacher));
  DISTILL_RETURN_IF_ERROR(CutAnchors("student", student, geometry.masked, &geometry.student));
  if (TextKnob(knobs, "remainder") == "error") {
    for (const auto& [side, cut, map] :
         {std::tuple{"student", &geometry.student, student}, std::tuple{"teacher", &geometry.teacher, teacher}}) {
      if (cut->dropped_by_patches + cut->dropped_by_anchors == 0) continue;
      return absl::InvalidArgumentError(
          StrCat("remainder: error, but ", cut->dropped_by_patches, " positions of the ", side, "'s ", Text(map),
                 " map are in no patch and ", cut->dropped_by_anchors,
                 " in no anchor; choose a grid that divides the map, or remainder: drop"));
    }
  }
  return geometry;
}

}  // namespace distill
