// How the target-aware transformer loss (tat) cuts two maps into patches, groups and anchors. Plain arithmetic, shared
// by the coordinator, which refuses impossible cuts when a job is submitted, and the student, which makes them.
//
// Source: Lin et al., "Knowledge Distillation via the Target-aware Transformer", CVPR 2022, arXiv:2205.10793, and its
// released code, which leaves out the rows and columns that fill no whole patch.
#ifndef DISTILL_COMMON_PLAN_TAT_GEOMETRY_H_
#define DISTILL_COMMON_PLAN_TAT_GEOMETRY_H_

#include <cstdint>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

struct MapSize {
  uint32_t height = 0;
  uint32_t width = 0;
  uint64_t positions() const { return uint64_t{height} * width; }
  bool operator==(const MapSize&) const = default;
};

// One side's cut.
struct TatSide {
  MapSize patch;                    // positions of a patch
  MapSize anchor;                   // kernel = stride of the average pooling, in positions
  uint64_t dropped_by_patches = 0;  // positions in no patch
  uint64_t dropped_by_anchors = 0;  // positions in no anchor
};

struct TatGeometry {
  bool hierarchical = false;  // false: plain, the rest is not read
  uint32_t grid_rows = 0;     // patches in a column
  uint32_t grid_cols = 0;     // patches in a row
  uint32_t groups = 0;        // of grid_rows * grid_cols / groups patches
  // A group's patches: neighbours in row-major order, or, where window_rows is not 0, a window of the grid; windows too
  // are numbered row by row.
  uint32_t window_rows = 0, window_cols = 0;
  // Nothing is dropped: patches differ by a row or a column (patch i has rows [i H / grid_rows, (i + 1) H /
  // grid_rows)), `patch` is the largest, and what a smaller one lacks of it is masked; the last anchors are what is
  // left.
  bool masked = false;
  TatSide student;
  TatSide teacher;
};

// `knobs`: completed for the loss "tat", mode resolved ("plain" or "hierarchical"); sizes as the loss sees them, after
// any resizing. The anchor kernel is the teacher's; the student's is scaled with its size. kInvalidArgument names knob,
// value and map: student_query with unequal sizes, more patches than positions, groups that do not divide the patches,
// windows that do not divide the grid, an anchor larger than the map; with remainder "mask", patches that would lie
// wholly outside; and, with "error", positions that would be dropped.
StatusOr<TatGeometry> MakeTatGeometry(const Knobs& knobs, MapSize student, MapSize teacher);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_TAT_GEOMETRY_H_
