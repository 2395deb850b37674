#include "student_worker/data/transforms.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "student_worker/data/colour.h"
#include "student_worker/data/rand_augment.h"

namespace distill {
namespace {

constexpr int kAttempts = 10;
constexpr uint64_t kMaxSide = 16384;  // as of pictures that are read: what has a side of one pixel stays within memory

double Between(CounterRng* rng, double from, double to) { return from + (to - from) * rng->Uniform(); }

// The logarithm is uniform, so that a ratio and its inverse are equally likely.
double DrawRatio(CounterRng* rng, const std::vector<double>& range) {
  return std::exp(Between(rng, std::log(range[0]), std::log(range[1])));
}

// A picture on its way, and where it shows what its file holds.
struct View {
  Picture* picture;
  Picture* scratch;
  VisibleRect visible;

  void TakeScratch() { std::swap(*picture, *scratch); }

  void Resize(const CropRect& crop, uint32_t height, uint32_t width) {
    if (crop == CropRect{0, 0, height, width} && height == picture->height && width == picture->width) return;
    ResizeCrop(*picture, crop, height, width, scratch);
    TakeScratch();
    // Pixels that padding has a part in do not count as the picture's.
    const auto scaled = [](uint32_t at, uint32_t first, uint32_t length, uint32_t to, bool up) {
      const uint64_t inside = std::clamp(at, first, first + length) - first;
      return static_cast<uint32_t>((inside * to + (up ? length - 1 : 0)) / length);
    };
    visible = {scaled(visible.top, crop.top, crop.height, height, true),
               scaled(visible.left, crop.left, crop.width, width, true),
               scaled(visible.bottom, crop.top, crop.height, height, false),
               scaled(visible.right, crop.left, crop.width, width, false)};
    if (visible.top >= visible.bottom || visible.left >= visible.right) visible = {};
  }

  void Resize(uint32_t height, uint32_t width) {
    if (height == picture->height && width == picture->width) return;
    Resize({0, 0, picture->height, picture->width}, height, width);
  }

  // The part from (top, left) on.
  void Crop(int64_t top, int64_t left, uint32_t height, uint32_t width, uint8_t fill) {
    if (top == 0 && left == 0 && height == picture->height && width == picture->width) return;
    CropOrPad(*picture, top, left, height, width, fill, scratch);
    TakeScratch();
    const auto moved = [](uint32_t at, int64_t by, uint32_t most) {
      return static_cast<uint32_t>(std::clamp<int64_t>(int64_t{at} - by, 0, most));
    };
    visible = {moved(visible.top, top, height), moved(visible.left, left, width), moved(visible.bottom, top, height),
               moved(visible.right, left, width)};
    if (visible.top >= visible.bottom || visible.left >= visible.right) visible = {};
  }

  void Flip() {
    const uint32_t width = picture->width;
    for (std::vector<uint8_t>* bytes : {&picture->pixels, &picture->label_map}) {
      for (auto row = bytes->begin(); row != bytes->end(); row += width) std::reverse(row, row + width);
    }
    if (visible.left < visible.right)
      visible = {visible.top, width - visible.right, visible.bottom, width - visible.left};
  }
};

struct TransformValues {
  const TransformPlan& plan;
  const std::vector<double>& List(const char* name) const { return plan.values.at(name); }
  double Number(const char* name) const { return List(name)[0]; }
  uint32_t Height() const { return static_cast<uint32_t>(List("size").front()); }
  uint32_t Width() const { return static_cast<uint32_t>(List("size").back()); }
  uint8_t Fill() const { return static_cast<uint8_t>(Number("fill")); }
};

void Jitter(const TransformValues& knobs, CounterRng* rng, Picture* picture) {
  const auto factor = [&](const char* name) {
    const double reach = knobs.Number(name);
    return Between(rng, std::max(0.0, 1 - reach), 1 + reach);
  };
  const double brightness = factor("brightness"), contrast = factor("contrast"), saturation = factor("saturation");
  const double hue = Between(rng, -knobs.Number("hue"), knobs.Number("hue"));
  std::array<int, 4> order = {0, 1, 2, 3};
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng->Below(i)]);
  for (const int what : order) {
    if (what == 0 && knobs.Number("brightness") > 0) AdjustBrightness(brightness, picture);
    if (what == 1 && knobs.Number("contrast") > 0) AdjustContrast(contrast, picture);
    if (what == 2 && knobs.Number("saturation") > 0) AdjustSaturation(saturation, picture);
    if (what == 3 && knobs.Number("hue") > 0) AdjustHue(hue, picture);
  }
}

void Erase(const TransformValues& knobs, CounterRng* rng, Picture* picture) {
  const double area = static_cast<double>(picture->plane());
  for (int i = 0; i < kAttempts; ++i) {
    const double part = area * Between(rng, knobs.List("scale")[0], knobs.List("scale")[1]);
    const double ratio = DrawRatio(rng, knobs.List("ratio"));
    const auto height = static_cast<uint64_t>(std::nearbyint(std::sqrt(part * ratio)));
    const auto width = static_cast<uint64_t>(std::nearbyint(std::sqrt(part / ratio)));
    if (height >= picture->height || width >= picture->width) continue;
    const uint64_t top = rng->Below(picture->height - height + 1), left = rng->Below(picture->width - width + 1);
    for (uint32_t c = 0; c < picture->channels; ++c) {
      for (uint64_t y = top; y < top + height; ++y) {
        std::memset(picture->pixels.data() + (c * picture->height + y) * picture->width + left, knobs.Fill(), width);
      }
    }
    return;
  }
}

void Fit(const TransformValues& knobs, View* view) {
  const double factor = std::min(static_cast<double>(knobs.Height()) / view->picture->height,
                                 static_cast<double>(knobs.Width()) / view->picture->width);
  const auto side = [factor](uint32_t from, uint32_t most) {
    return std::clamp<uint32_t>(static_cast<uint32_t>(std::nearbyint(from * factor)), 1, most);
  };
  const uint32_t height = side(view->picture->height, knobs.Height()),
                 width = side(view->picture->width, knobs.Width());
  view->Resize(height, width);
  view->Crop(-static_cast<int64_t>((knobs.Height() - height) / 2), -static_cast<int64_t>((knobs.Width() - width) / 2),
             knobs.Height(), knobs.Width(), knobs.Fill());
}

// What random_resized_crop, or resize without fit, takes of a picture of [height, width].
WantedPart TakePart(const TransformValues& knobs, CounterRng* rng, uint64_t height, uint64_t width) {
  if (knobs.plan.type == "random_resized_crop") {
    const CropRect crop = DrawResizedCrop(rng, static_cast<uint32_t>(height), static_cast<uint32_t>(width),
                                          knobs.List("scale"), knobs.List("ratio"));
    return {crop, knobs.Height(), knobs.Width()};
  }
  WantedPart part{{0, 0, static_cast<uint32_t>(height), static_cast<uint32_t>(width)}, knobs.Height(), knobs.Width()};
  if (knobs.List("size").size() == 2) return part;
  const uint64_t side = knobs.Height();  // the short one
  if (height <= width) {
    part.width = static_cast<uint32_t>(std::min(kMaxSide, side * width / height));
  } else {
    part.height = static_cast<uint32_t>(std::min(kMaxSide, side * height / width));
  }
  return part;
}

bool TakesPart(const TransformPlan& plan) {
  return plan.type == "random_resized_crop" || (plan.type == "resize" && plan.values.at("fit")[0] == 0);
}

// Where the middle part of `size` begins; negative: in the padding. Halves go to the even number, as in Python.
int64_t Middle(uint32_t has, uint32_t size) {
  if (has >= size) return static_cast<int64_t>(std::nearbyint((has - size) / 2.0));
  return -static_cast<int64_t>((size - has) / 2);
}

// Any place of a part of `size` in, or, where it is larger, around what is there.
int64_t AnyPlace(CounterRng* rng, uint32_t has, uint32_t size) {
  if (has >= size) return static_cast<int64_t>(rng->Below(uint64_t{has} - size + 1));
  return -static_cast<int64_t>(rng->Below(uint64_t{size} - has + 1));
}

void ApplyOne(const TransformPlan& plan, CounterRng rng, View* view) {
  const TransformValues knobs{plan};
  const std::string& type = plan.type;
  const Picture& picture = *view->picture;
  if (plan.values.contains("p") && rng.Uniform() >= knobs.Number("p")) return;
  if (TakesPart(plan)) {
    const WantedPart part = TakePart(knobs, &rng, picture.height, picture.width);
    view->Resize(part.crop, part.height, part.width);
  } else if (type == "horizontal_flip") {
    view->Flip();
  } else if (type == "pad_crop") {
    const auto padding = static_cast<int64_t>(knobs.Number("padding"));
    const int64_t dy = static_cast<int64_t>(rng.Below(2 * padding + 1)) - padding;
    const int64_t dx = static_cast<int64_t>(rng.Below(2 * padding + 1)) - padding;
    view->Crop(dy, dx, picture.height, picture.width, knobs.Fill());
  } else if (type == "random_crop") {
    const int64_t top = AnyPlace(&rng, picture.height, knobs.Height());
    const int64_t left = AnyPlace(&rng, picture.width, knobs.Width());
    view->Crop(top, left, knobs.Height(), knobs.Width(), knobs.Fill());
  } else if (type == "random_scale") {
    const double factor = Between(&rng, knobs.List("scale")[0], knobs.List("scale")[1]);
    const auto side = [factor](uint32_t from) {
      return static_cast<uint32_t>(std::clamp<double>(from * factor, 1, kMaxSide));
    };
    view->Resize(side(picture.height), side(picture.width));
  } else if (type == "resize") {
    Fit(knobs, view);
  } else if (type == "center_crop") {
    view->Crop(Middle(picture.height, knobs.Height()), Middle(picture.width, knobs.Width()), knobs.Height(),
               knobs.Width(), knobs.Fill());
  } else if (type == "color_jitter") {
    Jitter(knobs, &rng, view->picture);
  } else if (type == "gray") {
    MakeGray(view->picture);
  } else if (type == "gaussian_blur") {
    const double sigma = Between(&rng, knobs.List("sigma")[0], knobs.List("sigma")[1]);
    GaussianBlur(static_cast<uint32_t>(knobs.Number("kernel")), sigma, view->picture);
  } else if (type == "random_erasing") {
    Erase(knobs, &rng, view->picture);
  } else if (type == "rand_augment") {
    RandAugment(static_cast<uint32_t>(knobs.Number("num_ops")), static_cast<uint32_t>(knobs.Number("magnitude")),
                static_cast<uint32_t>(knobs.Number("num_magnitude_bins")), knobs.Fill(), &rng, view->picture,
                view->scratch);
  }
}

}  // namespace

CropRect DrawResizedCrop(CounterRng* rng, uint32_t height, uint32_t width, const std::vector<double>& scale,
                         const std::vector<double>& ratio) {
  const double area = static_cast<double>(height) * width;
  for (int i = 0; i < kAttempts; ++i) {
    const double part = area * Between(rng, scale[0], scale[1]);
    const double drawn = DrawRatio(rng, ratio);
    const double w = std::nearbyint(std::sqrt(part * drawn)), h = std::nearbyint(std::sqrt(part / drawn));
    if (w < 1 || h < 1 || w > width || h > height) continue;
    CropRect crop{0, 0, static_cast<uint32_t>(h), static_cast<uint32_t>(w)};
    crop.top = static_cast<uint32_t>(rng->Below(height - crop.height + 1));
    crop.left = static_cast<uint32_t>(rng->Below(width - crop.width + 1));
    return crop;
  }
  CropRect crop{0, 0, height, width};
  const double own = static_cast<double>(width) / height;
  if (own < ratio[0]) crop.height = static_cast<uint32_t>(std::nearbyint(width / ratio[0]));
  if (own > ratio[1]) crop.width = static_cast<uint32_t>(std::nearbyint(height * ratio[1]));
  crop.height = std::clamp<uint32_t>(crop.height, 1, height);
  crop.width = std::clamp<uint32_t>(crop.width, 1, width);
  crop.top = (height - crop.height) / 2;
  crop.left = (width - crop.width) / 2;
  return crop;
}

StatusOr<Transforms> Transforms::Create(const std::vector<TransformPlan>& plans, uint64_t seed) {
  Transforms transforms;
  transforms.seed_ = seed;
  for (const TransformPlan& plan : plans) {
    DISTILL_ASSIGN_OR_RETURN(TransformPlan completed, CompleteTransform(plan));
    transforms.plans_.push_back(std::move(completed));
  }
  DISTILL_ASSIGN_OR_RETURN(transforms.size_, SizeAfter(transforms.plans_));
  transforms.takes_part_ = !transforms.plans_.empty() && TakesPart(transforms.plans_.front());
  return transforms;
}

CounterRng Transforms::RngOf(size_t place, uint64_t epoch, uint64_t id) const {
  return CounterRng(CounterRng::Mix(seed_ + (place + 1) * CounterRng::kGamma), RngPurpose::kTransform, epoch, id);
}

VisibleRect Transforms::Apply(uint64_t epoch, uint64_t id, Picture* picture, Picture* scratch) const {
  View view{picture, scratch, {0, 0, picture->height, picture->width}};
  for (size_t i = 0; i < plans_.size(); ++i) ApplyOne(plans_[i], RngOf(i, epoch, id), &view);
  return view.visible;
}

WantedPart Transforms::PartOf(uint64_t epoch, uint64_t id, uint32_t height, uint32_t width) const {
  CounterRng rng = RngOf(0, epoch, id);
  return TakePart(TransformValues{plans_.front()}, &rng, height, width);
}

VisibleRect Transforms::ApplyToPart(uint64_t epoch, uint64_t id, const WantedPart& wanted, const PictureBox& box,
                                    Picture* picture, Picture* scratch) const {
  ResizeBox(*picture, box, wanted.height, wanted.width, scratch);
  View view{picture, scratch, {0, 0, wanted.height, wanted.width}};
  view.TakeScratch();
  for (size_t i = 1; i < plans_.size(); ++i) ApplyOne(plans_[i], RngOf(i, epoch, id), &view);
  return view.visible;
}

}  // namespace distill
