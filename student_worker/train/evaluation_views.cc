#include "student_worker/train/evaluation_views.h"

#include <torch/torch.h>

#include <algorithm>
#include <cmath>

#include "common/str_cat.h"

namespace distill {
namespace {

// Where windows begin along one side of `length` pixels, at least one window long.
std::vector<int64_t> Starts(int64_t length, int64_t window, int64_t stride) {
  std::vector<int64_t> starts;
  for (int64_t start = 0; start + window < length; start += stride) starts.push_back(start);
  starts.push_back(length - window);
  return starts;
}

constexpr size_t kMostViews = 100000;

}  // namespace

StatusOr<EvaluationViews> EvaluationViews::Create(const JobPlan& plan, uint32_t height, uint32_t width) {
  const std::vector<double> scales = plan.evaluate_scales.empty() ? std::vector<double>{1} : plan.evaluate_scales;
  const std::vector<uint32_t>&window = plan.evaluate_window, &stride = plan.evaluate_stride;
  const bool slides = !window.empty();
  const auto sides = [](const std::vector<uint32_t>& pair) { return pair.size() == 2 && pair[0] > 0 && pair[1] > 0; };
  if (slides && (!sides(window) || !sides(stride) || stride[0] > window[0] || stride[1] > window[1])) {
    return absl::InvalidArgumentError(
        "evaluate: window and stride are two sides in pixels each, the stride's no longer "
        "than the window's");
  }
  EvaluationViews views;
  views.size_ = {height, width};
  for (uint32_t c = 0; c < plan.student.in_channels; ++c) {
    const double mean = c < plan.student.mean.size() ? plan.student.mean[c] : 0;
    views.around_.push_back(static_cast<uint8_t>(std::clamp(std::lround(255 * mean), 0L, 255L)));
  }
  for (const double factor : scales) {
    if (!(std::isfinite(factor) && factor > 0)) {
      return absl::InvalidArgumentError(StrCat("evaluate: a scale is ", factor, "; it must be a number above 0"));
    }
    Scale scale;
    std::array<std::vector<int64_t>, 2> starts;
    std::array<int64_t, 2> shown{};
    for (size_t side = 0; side < 2; ++side) {
      scale.size[side] = std::max<int64_t>(1, std::llround(factor * static_cast<double>(views.size_[side])));
      shown[side] = slides ? window[side] : scale.size[side];
      scale.canvas[side] = std::max(scale.size[side], shown[side]);
      scale.corner[side] = (scale.canvas[side] - scale.size[side]) / 2;
      starts[side] = Starts(scale.canvas[side], shown[side], slides ? stride[side] : 1);
    }
    if (views.views_.size() + starts[0].size() * starts[1].size() > kMostViews) {
      return absl::InvalidArgumentError(StrCat("evaluate: a picture of [", height, ", ", width, "] has more than ",
                                               kMostViews, " windows; take larger ones, or a longer stride"));
    }
    scale.count = torch::zeros({scale.canvas[0], scale.canvas[1]});
    for (const int64_t top : starts[0]) {
      for (const int64_t left : starts[1]) {
        for (const bool mirrored : {false, true}) {
          if (mirrored && !plan.evaluate_flip) continue;
          views.views_.push_back({views.scales_.size(), shown, {top, left}, mirrored, false});
          scale.count.narrow(0, top, shown[0]).narrow(1, left, shown[1]).add_(1);
        }
      }
    }
    views.views_.back().ends_scale = true;
    views.scales_.push_back(std::move(scale));
  }
  views.plain_ = views.views_.size() == 1 && views.views_[0].size == views.size_;
  return views;
}

uint64_t EvaluationViews::most_pixels() const {
  int64_t most = 0;
  for (const View& view : views_) most = std::max(most, view.size[0] * view.size[1]);
  return static_cast<uint64_t>(most);
}

torch::Tensor ShownPictures::At(size_t index) {
  const EvaluationViews::View& view = views_.views_[index];
  if (views_.plain()) return pictures_;
  if (scale_ != view.scale) {
    const EvaluationViews::Scale& scale = views_.scales_[view.scale];
    canvas_ = pictures_;
    if (scale.size != views_.size_) {
      canvas_ = torch::upsample_bilinear2d(pictures_.to(torch::kFloat32), {scale.size[0], scale.size[1]},
                                           /*align_corners=*/false)
                    .round_()
                    .to(torch::kUInt8);
    }
    if (scale.canvas != scale.size) {
      const torch::Tensor around = torch::tensor(at::ArrayRef<uint8_t>(views_.around_), pictures_.options());
      torch::Tensor padded = around.view({1, -1, 1, 1})
                                 .expand({pictures_.size(0), pictures_.size(1), scale.canvas[0], scale.canvas[1]})
                                 .clone(torch::MemoryFormat::Contiguous);
      padded.narrow(2, scale.corner[0], scale.size[0]).narrow(3, scale.corner[1], scale.size[1]).copy_(canvas_);
      canvas_ = padded;
    }
    scale_ = view.scale;
  }
  const torch::Tensor window = canvas_.narrow(2, view.corner[0], view.size[0]).narrow(3, view.corner[1], view.size[1]);
  return view.mirrored ? window.flip({3}) : window;
}

void ViewAnswers::Add(size_t index, const torch::Tensor& logits) {
  if (views_.plain()) {
    scores_ = logits;
    return;
  }
  const EvaluationViews::View& view = views_.views_[index];
  const EvaluationViews::Scale& scale = views_.scales_[view.scale];
  torch::Tensor probabilities = logits.softmax(1);
  const bool dense = probabilities.dim() == 4;
  if (dense && view.mirrored) probabilities = probabilities.flip({3});
  if (!canvas_.defined()) {
    canvas_ = !dense ? torch::zeros_like(probabilities)
                     : torch::zeros({probabilities.size(0), probabilities.size(1), scale.canvas[0], scale.canvas[1]},
                                    probabilities.options());
  }
  torch::Tensor place = canvas_;
  if (dense) place = canvas_.narrow(2, view.corner[0], view.size[0]).narrow(3, view.corner[1], view.size[1]);
  place.add_(probabilities);
  if (!view.ends_scale) return;
  if (dense) {
    canvas_.div_(scale.count.to(canvas_.options()));
    canvas_ = canvas_.narrow(2, scale.corner[0], scale.size[0]).narrow(3, scale.corner[1], scale.size[1]);
    if (scale.size != views_.size_) {
      canvas_ = torch::upsample_bilinear2d(canvas_, {views_.size_[0], views_.size_[1]}, /*align_corners=*/false);
    }
  }
  scores_ = scores_.defined() ? scores_ + canvas_ : canvas_;
  canvas_ = torch::Tensor();
}

}  // namespace distill
