// PlanTat: what fits what, and which pixels become which tokens.
#include <cmath>
#include <string>

#include "common/kernels/tat_attention.h"
#include "common/str_cat.h"

namespace distill {
namespace {

Status CheckMap(const FeatureMap& map, const char* name) {
  if (map.data == nullptr) return absl::InvalidArgumentError(StrCat("tat: the ", name, " map is null"));
  if (map.channels < 1 || map.height < 1 || map.width < 1) {
    return absl::InvalidArgumentError(StrCat("tat: the ", name, " map has ", map.channels, " channels of ", map.height,
                                             "x", map.width, "; all must be at least 1"));
  }
  return OkStatus();
}

std::string Size(const FeatureMap& map) { return StrCat(map.height, "x", map.width); }

// Tokens of one side.
StatusOr<TatTokens> PlanSide(const FeatureMap& map, const TatOptions& options, TatWindow window, const char* side) {
  TatTokens tokens;
  tokens.map_height = map.height;
  tokens.map_width = map.width;
  int64_t rows = 1, columns = 1;
  if (options.mode == TatMode::kPatchGroup) {
    rows = options.grid_rows;
    columns = options.grid_columns;
    if (rows > map.height || columns > map.width) {
      return absl::InvalidArgumentError(StrCat("tat: the ", side, " map of ", Size(map), " cannot be cut into ", rows,
                                               "x", columns, " patches; use a grid of at most its size"));
    }
  } else if (options.mode == TatMode::kAnchor) {
    tokens.window = window;
    if (window.height < 1 || window.width < 1 || window.height > map.height || window.width > map.width) {
      return absl::InvalidArgumentError(StrCat("tat: anchor window ", window.height, "x", window.width,
                                               " does not fit the ", side, " map of ", Size(map)));
    }
  }
  tokens.patch_columns = columns;
  tokens.height = map.height / rows / tokens.window.height;
  tokens.width = map.width / columns / tokens.window.width;
  return tokens;
}

}  // namespace

StatusOr<TatTokenPlan> PlanTat(const TatMaps& maps, const TatOptions& options) {
  if (maps.n < 0) return absl::InvalidArgumentError(StrCat("tat: batch of ", maps.n));
  if (maps.n > 0) {
    DISTILL_RETURN_IF_ERROR(CheckMap(maps.gamma, "gamma"));
    DISTILL_RETURN_IF_ERROR(CheckMap(maps.phi, "phi"));
    DISTILL_RETURN_IF_ERROR(CheckMap(maps.theta, "theta"));
    DISTILL_RETURN_IF_ERROR(CheckMap(maps.target, "target"));
  }
  if (maps.gamma.channels != maps.theta.channels) {
    return absl::InvalidArgumentError(StrCat("tat: gamma has ", maps.gamma.channels, " channels, theta ",
                                             maps.theta.channels, "; their inner product needs equal widths"));
  }
  if (maps.phi.channels != maps.target.channels) {
    return absl::InvalidArgumentError(StrCat("tat: phi has ", maps.phi.channels, " channels, the target ",
                                             maps.target.channels, "; phi must put out the teacher's width"));
  }
  if (maps.gamma.height != maps.phi.height || maps.gamma.width != maps.phi.width) {
    return absl::InvalidArgumentError(
        StrCat("tat: gamma is ", Size(maps.gamma), ", phi ", Size(maps.phi), "; both embed the student's map"));
  }
  if (maps.theta.height != maps.target.height || maps.theta.width != maps.target.width) {
    return absl::InvalidArgumentError(
        StrCat("tat: theta is ", Size(maps.theta), ", the target ", Size(maps.target), "; both are the teacher's map"));
  }
  if (!std::isfinite(options.attention_scale) || !std::isfinite(options.weight)) {
    return absl::InvalidArgumentError(
        StrCat("tat: attention scale ", options.attention_scale, " and weight ", options.weight, " must be finite"));
  }
  TatTokenPlan plan;
  if (options.mode == TatMode::kPatchGroup) {
    if (options.grid_rows < 1 || options.grid_columns < 1 || options.groups < 1 ||
        options.grid_rows * options.grid_columns % options.groups != 0) {
      return absl::InvalidArgumentError(StrCat("tat: ", options.groups, " groups do not divide the ", options.grid_rows,
                                               "x", options.grid_columns, " patches"));
    }
    plan.groups = options.groups;
    plan.patches = options.grid_rows * options.grid_columns / options.groups;
  }
  if (maps.n > 0) {
    DISTILL_ASSIGN_OR_RETURN(plan.teacher, PlanSide(maps.target, options, options.teacher_window, "teacher's"));
    DISTILL_ASSIGN_OR_RETURN(plan.student, PlanSide(maps.phi, options, options.student_window, "student's"));
  }
  if (options.orientation == TatOrientation::kStudentQuery &&
      (plan.teacher.height != plan.student.height || plan.teacher.width != plan.student.width)) {
    return absl::InvalidArgumentError(StrCat(
        "tat: student_query needs equal tokens, but the teacher has ", plan.teacher.height, "x", plan.teacher.width,
        " and the student ", plan.student.height, "x", plan.student.width, "; resize one map or use teacher_query"));
  }
  return plan;
}

}  // namespace distill
