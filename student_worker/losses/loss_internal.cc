#include "student_worker/losses/loss_internal.h"

#include <torch/torch.h>

#include <cmath>
#include <numbers>

#include "common/plan/loss_schema.h"
#include "common/shape_text.h"
#include "common/str_cat.h"
#include "common/wire/copy_count.h"
#include "student_worker/losses/kernel_view.h"

namespace distill::loss_internal {

std::string ShapeText(const torch::Tensor& tensor) {
  if (!tensor.defined()) return "none";
  return distill::ShapeText(tensor.sizes());
}

Status CheckInputs(const LossInputs& inputs, int64_t rank) {
  const torch::Tensor &student = inputs.student, &teacher = inputs.teacher;
  if (!student.defined() || !teacher.defined()) {
    return absl::InvalidArgumentError(StrCat("the loss compares two tensors, but the student's is ", ShapeText(student),
                                             " and the teacher's is ", ShapeText(teacher)));
  }
  if (student.dim() != rank || teacher.dim() != rank || student.size(0) != teacher.size(0)) {
    return absl::InvalidArgumentError(StrCat("student ", ShapeText(student), " and teacher ", ShapeText(teacher),
                                             " must have ", rank, " axes and the same number of samples"));
  }
  if (!student.is_floating_point() || !teacher.is_floating_point()) {
    return absl::InvalidArgumentError("student and teacher tensors must be floating point");
  }
  if (student.device() != teacher.device()) {
    return absl::InvalidArgumentError(
        StrCat("student is on ", student.device().str(), ", teacher on ", teacher.device().str()));
  }
  return OkStatus();
}

Status CheckPair(const LossInputs& inputs, int64_t rank) {
  if (inputs.student.defined() && inputs.teacher.defined() &&
      (inputs.student.dim() != rank || inputs.student.sizes() != inputs.teacher.sizes())) {
    return absl::InvalidArgumentError(StrCat(
        "student ", ShapeText(inputs.student), " and teacher ", ShapeText(inputs.teacher), " must be equal shapes of ",
        rank,
        " axes; choose taps of equal height and width, and set `adapter: conv1x1` where only the channels differ"));
  }
  return CheckInputs(inputs, rank);
}

Status CheckLogits(const LossInputs& inputs, std::string_view labels_of) {
  const torch::Tensor &student = inputs.student, &labels = inputs.labels;
  if (!student.defined() || (student.dim() != 2 && student.dim() != 4) || !student.is_floating_point()) {
    return absl::InvalidArgumentError(
        StrCat("logits are [N, K] or, with an answer for every pixel, [N, K, H, W]; got ", ShapeText(student)));
  }
  if (inputs.teacher.defined()) DISTILL_RETURN_IF_ERROR(CheckPair(inputs, student.dim()));
  if (labels_of.empty()) return OkStatus();
  const bool fits = labels.defined() && labels.scalar_type() == torch::kInt64 && labels.dim() == student.dim() - 1 &&
                    labels.size(0) == student.size(0) &&
                    (student.dim() == 2 || labels.sizes().slice(1) == student.sizes().slice(2));
  if (fits) return OkStatus();
  return absl::InvalidArgumentError(StrCat(labels_of, " needs int64 labels, one for each of its logits ",
                                           ShapeText(student), ": [N] or [N, H, W]; got ", ShapeText(labels)));
}

StatusOr<LogitRows> RowsOfLogits(const LossInputs& inputs, std::string_view labels_of) {
  DISTILL_RETURN_IF_ERROR(CheckLogits(inputs, labels_of));
  const torch::Tensor &student = inputs.student, &labels = inputs.labels;
  const auto rows = [](const torch::Tensor& logits) {
    return logits.dim() == 2 ? logits : logits.permute({0, 2, 3, 1}).flatten(0, 2);
  };
  LogitRows out;
  out.student = rows(ToComputeType(student, student));
  if (inputs.teacher.defined()) {
    out.teacher = ToComputeType(inputs.teacher.detach(), student);
    if (out.teacher.dim() == 4) out.teacher = InLayout(out.teacher, torch::MemoryFormat::ChannelsLast);
    out.teacher = rows(out.teacher);
  }
  if (labels_of.empty()) return out;
  out.labels = labels.flatten();
  if (student.dim() == 2) return out;
  // All pixels, rather than a selection: how many those are only the device knows, and the host would wait for it.
  out.labelled = out.labels.ne(kIgnoredLabel);
  out.labels = out.labels.masked_fill(out.labelled.logical_not(), 0);
  return out;
}

torch::Tensor MeanOverLabelled(const torch::Tensor& values, const LogitRows& rows) {
  if (!rows.labelled.defined()) return values.mean();
  return values.masked_fill(rows.labelled.logical_not(), 0).sum() / rows.labelled.sum().clamp_min(1);
}

double CountLabels(const LossInputs& inputs) {
  if (inputs.labels.dim() == 1) return static_cast<double>(inputs.labels.size(0));
  if (inputs.labelled >= 0) return static_cast<double>(inputs.labelled);
  return static_cast<double>(inputs.labels.ne(kIgnoredLabel).sum().item<int64_t>());
}

torch::Tensor ToComputeType(const torch::Tensor& tensor, const torch::Tensor& student) {
  const torch::ScalarType type = student.scalar_type() == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
  if (tensor.scalar_type() == type) return tensor;
  const torch::Tensor converted = tensor.to(type);
  CountFeatureCopy(converted.nbytes());
  return converted;
}

SpatialMatcher::SpatialMatcher(const Knobs& knobs)
    : mismatch_(TextKnob(knobs, "spatial_mismatch")), align_corners_(FlagKnob(knobs, "align_corners")) {}

torch::Tensor SpatialMatcher::To(const torch::Tensor& map, MapSize size) const {
  if (map.size(2) == size.height && map.size(3) == size.width) return map;
  const std::vector<int64_t> shape = {size.height, size.width};
  if (mismatch_ == "pool_larger") return torch::adaptive_avg_pool2d(map, shape);
  return torch::upsample_bilinear2d(map, shape, align_corners_);
}

StatusOr<MapPair> SpatialMatcher::Resize(const LossInputs& inputs, bool teacher_as_it_is) const {
  DISTILL_RETURN_IF_ERROR(CheckInputs(inputs, 4));
  MapPair maps{ToComputeType(inputs.student, inputs.student), inputs.teacher.detach()};
  const auto size = [](const torch::Tensor& map) {
    return MapSize{static_cast<uint32_t>(map.size(2)), static_cast<uint32_t>(map.size(3))};
  };
  const ResizedMaps sizes = ResizeTo(mismatch_, size(maps.student), size(maps.teacher));
  maps.student = To(maps.student, sizes.student);
  if (!teacher_as_it_is || size(maps.teacher) != sizes.teacher) {
    maps.teacher = To(ToComputeType(maps.teacher, inputs.student), sizes.teacher);
  }
  return maps;
}

StatusOr<MapPair> SpatialMatcher::Match(const LossInputs& inputs, bool teacher_as_it_is) const {
  DISTILL_ASSIGN_OR_RETURN(MapPair maps, Resize(inputs, teacher_as_it_is));
  if (maps.student.size(2) != maps.teacher.size(2) || maps.student.size(3) != maps.teacher.size(3)) {
    return absl::InvalidArgumentError(
        StrCat("student ", ShapeText(inputs.student), " and teacher ", ShapeText(inputs.teacher),
               " differ in height or width; choose taps of the same size, or set spatial_mismatch"));
  }
  return maps;
}

Reduction ParseReduction(std::string_view text) {
  if (text == "sum_over_batch") return Reduction::kSumOverBatch;
  if (text == "sum") return Reduction::kSum;
  return Reduction::kMean;
}

torch::Tensor Reduce(const torch::Tensor& elementwise, Reduction reduction) {
  if (elementwise.numel() == 0) return elementwise.sum();
  switch (reduction) {
    case Reduction::kMean:
      return elementwise.mean();
    case Reduction::kSumOverBatch:
      return elementwise.sum() / static_cast<double>(elementwise.size(0));
    case Reduction::kSum:
      return elementwise.sum();
  }
  return elementwise.sum();
}

TemperatureSchedule::TemperatureSchedule(const Knobs& knobs)
    : start_(NumberKnob(knobs, "temperature")),
      end_(NumberKnob(knobs, "temperature_end")),
      cosine_(TextKnob(knobs, "temperature_schedule") == "cosine") {
  if (TextKnob(knobs, "temperature_schedule") == "constant") end_ = 0;
}

double TemperatureSchedule::At(double progress) const {
  if (end_ == 0) return start_;
  const double done = cosine_ ? (1 - std::cos(std::numbers::pi * progress)) / 2 : progress;
  return start_ + (end_ - start_) * done;
}

}  // namespace distill::loss_internal
