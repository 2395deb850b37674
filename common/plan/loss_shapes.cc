#include "common/plan/loss_shapes.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr uint64_t kPlainTatPositions = 1024;   // beyond, "auto" is hierarchical: the attention grows with the square
constexpr uint64_t kWideKernelPositions = 256;  // up to here embeddings see their neighbours, as in the released code

Status ResolveAdapter(const LossSchema& schema, const MapShape& student, const MapShape& teacher, LossPlan* loss) {
  if (schema.channels != ChannelRule::kAdapter) {
    if (loss->adapter != "auto" && loss->adapter != "none") {
      return absl::InvalidArgumentError(StrCat("the loss '", loss->type, "' takes no adapter"));
    }
    loss->adapter = "none";
    return OkStatus();
  }
  const bool differ = student.channels != teacher.channels;
  if (loss->adapter == "auto") loss->adapter = differ ? "conv1x1" : "none";
  if (differ && loss->adapter == "none") {
    return absl::InvalidArgumentError(StrCat("the maps differ in channels (", student.channels, " and ",
                                             teacher.channels, "); set adapter: conv1x1 (or auto)"));
  }
  const std::vector<std::string> kinds(AdapterKinds().begin(), AdapterKinds().end());
  if (std::find(kinds.begin(), kinds.end(), loss->adapter) == kinds.end()) {
    return absl::InvalidArgumentError(StrCat("unknown adapter '", loss->adapter, "'", DidYouMean(loss->adapter, kinds),
                                             " (one of auto, ", absl::StrJoin(kinds, ", "), ")"));
  }
  return OkStatus();
}

Status ResolveChannelTransform(LossPlan* loss) {
  if (TextKnob(loss->knobs, "side") != "student" && !FlagKnob(loss->knobs, "allow_collapse")) {
    return absl::InvalidArgumentError(
        StrCat("side ", TextKnob(loss->knobs, "side"),
               " lets the transformation make the teacher's map constant, which teaches nothing; for an ablation set "
               "allow_collapse: true"));
  }
  if (TextKnob(loss->knobs, "side") == "teacher" && loss->student_channels != loss->teacher_channels) {
    return absl::InvalidArgumentError(StrCat("side teacher leaves the student's map as it is, so its ",
                                             loss->student_channels, " channels would have to be the teacher's ",
                                             loss->teacher_channels, "; use side: both or student"));
  }
  if (NumberKnob(loss->knobs, "kernel") == 2) {
    return absl::InvalidArgumentError("kernel is 2, must be 1 or 3");
  }
  return OkStatus();
}

Status ResolveTat(const MapShape& student, const MapShape& teacher, LossPlan* loss,
                  std::vector<std::string>* warnings) {
  Knobs& knobs = loss->knobs;
  if (TextKnob(knobs, "mode") == "auto") {
    knobs["mode"] = teacher.size.positions() <= kPlainTatPositions ? std::string("plain") : std::string("hierarchical");
  }
  const std::string embedding =
      student.size.positions() <= kWideKernelPositions ? std::string("conv3x3_bn") : std::string("conv1x1_bn");
  for (const char* name : {"gamma", "phi"}) {
    if (TextKnob(knobs, name) == "auto") knobs[name] = embedding;
    if (TextKnob(knobs, name) == "identity" && student.channels != teacher.channels) {
      return absl::InvalidArgumentError(StrCat(name, ": identity needs equal channels, but the student's map has ",
                                               student.channels, " and the teacher's ", teacher.channels));
    }
  }
  if (TextKnob(knobs, "spatial_mismatch") == "auto") {
    const bool free = TextKnob(knobs, "mode") == "plain" && TextKnob(knobs, "orientation") == "teacher_query";
    knobs["spatial_mismatch"] = free ? std::string("none") : std::string("teacher_to_student");
  }
  const ResizedMaps sizes = ResizeTo(TextKnob(knobs, "spatial_mismatch"), student.size, teacher.size);
  DISTILL_ASSIGN_OR_RETURN(const TatGeometry geometry, MakeTatGeometry(knobs, sizes.student, sizes.teacher));
  const bool one_position =
      sizes.student.positions() == 1 || (sizes.teacher.positions() == 1 && TextKnob(knobs, "theta") != "identity");
  if (TextKnob(knobs, "embed_bn") == "per_sample" && one_position) {
    return absl::InvalidArgumentError(
        "embed_bn: per_sample has no variance over a map of one position; use batch or frozen");
  }
  if (geometry.hierarchical) {
    if (NumberKnob(knobs, "patch_weight") == 0 && NumberKnob(knobs, "anchor_weight") == 0) {
      return absl::InvalidArgumentError("patch_weight and anchor_weight are both 0, so there is nothing to compare");
    }
    const uint64_t dropped = geometry.teacher.dropped_by_patches;
    if (dropped > 0) {
      warnings->push_back(StrCat("patches leave out ", dropped, " of ", sizes.teacher.positions(), " positions"));
    }
    if (NumberKnob(knobs, "anchor_grid") > 0) {
      warnings->push_back(StrCat("anchor_grid ", NumberKnob(knobs, "anchor_grid"), " becomes ",
                                 sizes.teacher.height / geometry.teacher.anchor.height, "x",
                                 sizes.teacher.width / geometry.teacher.anchor.width, " anchors"));
    }
  }
  if (sizes.student.positions() == 1) {
    warnings->push_back(
        "the student's map has a single position: tat is a squared difference there, and gamma and "
        "theta learn nothing");
  }
  return OkStatus();
}

}  // namespace

ResizedMaps ResizeTo(const std::string& spatial_mismatch, MapSize student, MapSize teacher) {
  if (spatial_mismatch == "teacher_to_student") return {student, student};
  if (spatial_mismatch == "student_to_teacher") return {teacher, teacher};
  if (spatial_mismatch == "pool_larger") {
    const MapSize smaller{std::min(student.height, teacher.height), std::min(student.width, teacher.width)};
    return {smaller, smaller};
  }
  return {student, teacher};
}

Status ResolveLoss(const MapShape& student, const MapShape& teacher, LossPlan* loss,
                   std::vector<std::string>* warnings) {
  const LossSchema& schema = *FindLossSchema(loss->type);
  loss->student_channels = student.channels;
  loss->teacher_channels = teacher.channels;
  loss->student_height = student.size.height;
  loss->student_width = student.size.width;
  loss->teacher_height = teacher.size.height;
  loss->teacher_width = teacher.size.width;
  DISTILL_RETURN_IF_ERROR(ResolveAdapter(schema, student, teacher, loss));
  if (loss->type == "tat") return ResolveTat(student, teacher, loss, warnings);
  if (loss->type == "channel_transform") DISTILL_RETURN_IF_ERROR(ResolveChannelTransform(loss));
  if (loss->type == "cwd" && TextKnob(loss->knobs, "mask") != "none" &&
      TextKnob(loss->knobs, "norm_axis") != "spatial") {
    return absl::InvalidArgumentError(StrCat("mask: ", TextKnob(loss->knobs, "mask"), " needs norm_axis: spatial, not ",
                                             TextKnob(loss->knobs, "norm_axis")));
  }
  if (!loss->knobs.contains("spatial_mismatch")) return OkStatus();  // positions are summed away
  const ResizedMaps sizes = ResizeTo(TextKnob(loss->knobs, "spatial_mismatch"), student.size, teacher.size);
  if (sizes.student != sizes.teacher) {
    return absl::InvalidArgumentError(
        StrCat("the maps differ in height or width (", student.size.height, "x", student.size.width, " and ",
               teacher.size.height, "x", teacher.size.width,
               "); choose taps of the same size, or set spatial_mismatch to pool_larger, teacher_to_student or "
               "student_to_teacher"));
  }
  if (loss->type == "cwd" && sizes.student.positions() == 1 && TextKnob(loss->knobs, "norm_axis") == "spatial") {
    warnings->push_back("the map has a single position, over which cwd is always 0");
  }
  return OkStatus();
}

void WarnOfLogits(const LossPlan& loss, std::vector<std::string>* warnings) {
  if (loss.type != "dkd" || loss.student_channels != 2 || NumberKnob(loss.knobs, "beta") == 0) return;
  warnings->push_back(
      StrCat("of two classes one is the target and one is left, so the part on the other classes is always 0 and beta ",
             NumberKnob(loss.knobs, "beta"), " has no effect; only alpha teaches"));
}

}  // namespace distill
