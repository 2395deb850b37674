#include "teacher_server/stream_open.h"

#include <string_view>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "teacher_server/stream_limits.h"

namespace distill {
namespace {

Status CheckName(std::string_view what, const std::string& text) {
  if (text.size() <= kMaxNameBytes) return OkStatus();
  return absl::InvalidArgumentError(
      StrCat("`open`: ", what, " has ", text.size(), " bytes; at most ", kMaxNameBytes, " are allowed"));
}

// Without the batch axis.
StatusOr<std::vector<uint32_t>> ShapeOf(const TeacherModel& model, const std::string& path) {
  if (path.empty() && !model.output_shape.empty()) return model.output_shape;
  std::vector<std::string> paths;
  for (const ServedTap& tap : model.taps) {
    if (tap.path == path) return tap.shape;
    paths.push_back(tap.path);
  }
  return absl::InvalidArgumentError(StrCat("model '", model.served.name, "' has no tap '", path, "'",
                                           DidYouMean(path, paths), "; `distillctl taps ", model.served.name,
                                           "` lists them"));
}

Status CheckTap(const StreamOpen::Tap& tap, const std::vector<uint32_t>& shape) {
  if (tap.dtype != static_cast<int>(WireDtype::kF32) && tap.dtype != static_cast<int>(WireDtype::kF16) &&
      tap.dtype != static_cast<int>(WireDtype::kBf16)) {
    return absl::InvalidArgumentError(
        StrCat("tap '", tap.path, "': dtype ", tap.dtype, " cannot be asked for; use WIRE_DTYPE_F32, _F16 or _BF16"));
  }
  if (tap.less_row_max && shape.size() != 3) {
    return absl::InvalidArgumentError(StrCat(
        "tap '", tap.path, "': less_row_max needs a feature map [C, H, W], this tap has shape ", ShapeText(shape)));
  }
  return OkStatus();
}

}  // namespace

StatusOr<OpenedModel> FindModel(const StreamOpen& open, const std::vector<TeacherModel>& models) {
  for (const auto& [what, text] :
       {std::pair("model", &open.model), std::pair("digest", &open.digest), std::pair("client", &open.client)}) {
    DISTILL_RETURN_IF_ERROR(CheckName(what, *text));
  }
  OpenedModel opened;
  while (opened.model < models.size() && models[opened.model].served.name != open.model) ++opened.model;
  if (opened.model == models.size()) {
    std::vector<std::string> names;
    for (const TeacherModel& model : models) names.push_back(model.served.name);
    return absl::NotFoundError(StrCat("this teacher does not serve model '", open.model, "'",
                                      DidYouMean(open.model, names), " (served: ", absl::StrJoin(names, ", "), ")"));
  }
  const TeacherModel& model = models[opened.model];
  if (!open.digest.empty() && open.digest != model.served.digest) {
    return absl::FailedPreconditionError(
        StrCat("model '", open.model, "' here has digest ", model.served.digest, ", the client expects ", open.digest,
               ": the weights or the architecture differ; submit the job again to use them"));
  }
  if (open.taps.empty())
    return absl::InvalidArgumentError("`open` names no taps; use one with an empty path for the output");
  if (open.taps.size() > kMaxTaps) {
    return absl::InvalidArgumentError(
        StrCat("`open` names ", open.taps.size(), " taps; at most ", kMaxTaps, " are allowed"));
  }
  auto taps = std::make_shared<std::vector<TapRequest>>();
  for (const StreamOpen::Tap& asked : open.taps) {
    DISTILL_RETURN_IF_ERROR(CheckName("tap", asked.path));
    DISTILL_ASSIGN_OR_RETURN(const std::vector<uint32_t> shape, ShapeOf(model, asked.path));
    DISTILL_RETURN_IF_ERROR(CheckTap(asked, shape));
    taps->push_back({asked.path, {static_cast<WireDtype>(asked.dtype), asked.less_row_max}});
    opened.image_answer_bytes += LayoutOf(shape, taps->back().encoding).bytes;
  }
  opened.taps = std::move(taps);
  return opened;
}

}  // namespace distill
