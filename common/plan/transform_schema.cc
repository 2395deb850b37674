#include "common/plan/transform_schema.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {
namespace {

constexpr double kMaxSide = 16384;

constexpr TransformKnob Size(std::string_view help) {
  return {.name = "size",
          .default_value = "",
          .max_count = 2,
          .minimum = 1,
          .maximum = kMaxSide,
          .whole = true,
          .help = help};
}
constexpr TransformKnob Number(std::string_view name, std::string_view value, double minimum, double maximum,
                               std::string_view help) {
  return {.name = name, .default_value = value, .minimum = minimum, .maximum = maximum, .help = help};
}
constexpr TransformKnob Whole(std::string_view name, std::string_view value, double minimum, double maximum,
                              std::string_view help) {
  return {.name = name, .default_value = value, .minimum = minimum, .maximum = maximum, .whole = true, .help = help};
}
constexpr TransformKnob Range(std::string_view name, std::string_view value, double minimum, double maximum,
                              std::string_view help) {
  return {.name = name,
          .default_value = value,
          .min_count = 2,
          .max_count = 2,
          .minimum = minimum,
          .maximum = maximum,
          .rising = true,
          .help = help};
}
constexpr TransformKnob Fill() {
  return Whole("fill", "0", 0, 255, "Value of the pixels beside the picture; they have no label.");
}
constexpr TransformKnob Chance(std::string_view value) {
  return Number("p", value, 0, 1, "Share of the pictures that it is done to.");
}

constexpr TransformKnob kCenterCrop[] = {
    Size("[height, width] of the middle that is cut out, or one number for both; smaller pictures are padded."),
    Fill()};
constexpr TransformKnob kColorJitter[] = {
    Number("brightness", "0", 0, 10, "x: the values are multiplied by a factor from [max(0, 1 - x), 1 + x]."),
    Number("contrast", "0", 0, 10, "The same for the distance to the mean grey value."),
    Number("saturation", "0", 0, 10, "The same for the distance to the grey picture."),
    Number("hue", "0", 0, 0.5, "The hue is turned by a share from [-x, x] of the circle."), Chance("1")};
constexpr TransformKnob kGaussianBlur[] = {
    {.name = "kernel",
     .default_value = "23",
     .minimum = 1,
     .maximum = 255,
     .whole = true,
     .odd = true,
     .help = "Width of the kernel in pixels, odd; smaller pictures have a smaller one."},
    Range("sigma", "[0.1, 2]", 1e-3, 100, "Range of the standard deviation in pixels."),
    Chance("0.5")};
constexpr TransformKnob kGray[] = {Chance("0.1")};
constexpr TransformKnob kFlip[] = {Chance("0.5")};
constexpr TransformKnob kRandAugment[] = {
    Whole("num_ops", "2", 0, 16, "Operations that are done to a picture, each drawn from fourteen."),
    Whole("magnitude", "9", 0, 1000, "Their strength, below num_magnitude_bins."),
    Whole("num_magnitude_bins", "31", 2, 1001, "Steps of the strength, from none to the strongest."), Chance("1"),
    Fill()};
constexpr TransformKnob kPadCrop[] = {
    Whole("padding", "", 1, 1024, "Pixels on each side, before a random crop back to the picture's size."), Fill()};
constexpr TransformKnob kRandomCrop[] = {Size("[height, width], or one number for both; smaller pictures are padded."),
                                         Fill()};
constexpr TransformKnob kErasing[] = {
    Chance("0.5"), Range("scale", "[0.02, 0.33]", 0, 1, "Range of the rectangle's share of the area."),
    Range("ratio", "[0.3, 3.3]", 0.01, 100, "Range of its height over its width."),
    Whole("fill", "127", 0, 255, "Value of its pixels; labels stay.")};
constexpr TransformKnob kResizedCrop[] = {
    Size("[height, width] of the result, or one number for both."),
    Range("scale", "[0.08, 1]", 1e-6, 1, "Range of the crop's share of the area."),
    Range("ratio", "[0.75, 1.3333333333333333]", 0.01, 100, "Range of the crop's width over its height.")};
constexpr TransformKnob kRandomScale[] = {Range("scale", "[0.5, 2]", 0.01, 16, "Range of the factor of both sides.")};
constexpr TransformKnob kResize[] = {
    Size("[height, width] of the result; one number: of the short side, and the other keeps its ratio."),
    Whole("fit", "0", 0, 1, "1, with [height, width]: the ratio is kept, and the rest padded on both sides."), Fill()};

constexpr TransformSchema kSchemas[] = {
    {"center_crop", SizeRule::kSets, false, "Cuts out the middle. `CenterCrop`.", kCenterCrop},
    {"color_jitter", SizeRule::kKeeps, true,
     "Brightness, contrast, saturation and hue, in random order. `ColorJitter`. Grey pictures have the first two.",
     kColorJitter},
    {"gaussian_blur", SizeRule::kKeeps, true, "`GaussianBlur`.", kGaussianBlur},
    {"gray", SizeRule::kKeeps, true, "Colour becomes grey in three equal channels. `RandomGrayscale`.", kGray},
    {"horizontal_flip", SizeRule::kKeeps, true, "Mirrors. `RandomHorizontalFlip`.", kFlip},
    {"pad_crop", SizeRule::kKeeps, true, "`RandomCrop` with `padding`, to the size the picture has.", kPadCrop},
    {"rand_augment", SizeRule::kKeeps, true,
     "A few of fourteen operations: shears, shifts, turns, colours, contrast. For one label an image. `RandAugment`.",
     kRandAugment},
    {"random_crop", SizeRule::kSets, true, "`RandomCrop` with `pad_if_needed`.", kRandomCrop},
    {"random_erasing", SizeRule::kKeeps, true, "Paints over a rectangle. `RandomErasing`.", kErasing},
    {"random_resized_crop", SizeRule::kSets, true,
     "A random part, brought to one size. `RandomResizedCrop`, bilinear with `antialias`.", kResizedCrop},
    {"random_scale", SizeRule::kChanges, true,
     "Makes the picture larger or smaller; `random_crop` or another that sets the size must follow. `RandomResize` "
     "with a "
     "factor.",
     kRandomScale},
    {"resize", SizeRule::kSets, false, "`Resize`, bilinear with `antialias`.", kResize},
};

std::string Numbers(const std::vector<double>& values) {
  const std::string text = absl::StrJoin(values, ", ");
  return values.size() == 1 ? text : StrCat("[", text, "]");
}

std::vector<double> DefaultOf(const TransformKnob& knob) {
  const std::string text(knob.default_value);
  std::vector<double> values;
  for (const std::string& part :
       std::vector<std::string>(absl::StrSplit(text, absl::ByAnyChar("[], "), absl::SkipEmpty()))) {
    double value = 0;
    if (absl::SimpleAtod(part, &value)) values.push_back(value);
  }
  return values;
}

std::string RangeText(const TransformKnob& knob) {
  std::string text = knob.max_count == 1 ? "one number" : knob.min_count == 2 ? "[from, to]" : "one number or two";
  StrAppend(&text, knob.odd ? ", odd," : knob.whole ? ", whole," : "", " in [", knob.minimum, ", ", knob.maximum, "]");
  return text;
}

bool Fits(const TransformKnob& knob, const std::vector<double>& values) {
  if (values.size() < knob.min_count || values.size() > knob.max_count) return false;
  for (const double value : values) {
    if (!(value >= knob.minimum && value <= knob.maximum)) return false;
    if (knob.whole && value != std::floor(value)) return false;
    if (knob.odd && std::fmod(value, 2) != 1) return false;
  }
  return !knob.rising || values[0] <= values[1];
}

}  // namespace

std::span<const TransformSchema> TransformSchemas() { return kSchemas; }

const TransformSchema* FindTransformSchema(std::string_view type) {
  for (const TransformSchema& schema : kSchemas) {
    if (schema.type == type) return &schema;
  }
  return nullptr;
}

StatusOr<TransformPlan> CompleteTransform(const TransformPlan& given) {
  const TransformSchema* const schema = FindTransformSchema(given.type);
  if (schema == nullptr) {
    std::vector<std::string> types;
    for (const TransformSchema& known : kSchemas) types.emplace_back(known.type);
    return absl::InvalidArgumentError(StrCat("unknown transform '", given.type, "'", DidYouMean(given.type, types),
                                             " (one of ", absl::StrJoin(types, ", "), ")"));
  }
  TransformPlan plan{.type = given.type};
  std::vector<std::string> names;
  for (const TransformKnob& knob : schema->knobs) {
    names.emplace_back(knob.name);
    const auto found = given.values.find(names.back());
    if (found == given.values.end()) {
      if (knob.default_value.empty()) {
        return absl::InvalidArgumentError(StrCat(given.type, " needs '", knob.name, "': ", RangeText(knob)));
      }
      plan.values[names.back()] = DefaultOf(knob);
      continue;
    }
    if (!Fits(knob, found->second)) {
      return absl::InvalidArgumentError(
          StrCat(given.type, ".", knob.name, " is ", Numbers(found->second), "; it must be ", RangeText(knob)));
    }
    plan.values[names.back()] = found->second;
  }
  for (const auto& [name, values] : given.values) {
    if (plan.values.contains(name)) continue;
    return absl::InvalidArgumentError(StrCat(given.type, " has no '", name, "'", DidYouMean(name, names), " (it has ",
                                             absl::StrJoin(names, ", "), ")"));
  }
  if (plan.type == "resize" && plan.values["fit"][0] == 1 && plan.values["size"].size() == 1) {
    return absl::InvalidArgumentError("resize.fit needs both sides: size: [height, width]");
  }
  if (plan.type == "rand_augment" && plan.values["magnitude"][0] >= plan.values["num_magnitude_bins"][0]) {
    return absl::InvalidArgumentError(StrCat("rand_augment.magnitude is ", plan.values["magnitude"][0],
                                             "; it must be below num_magnitude_bins, which is ",
                                             plan.values["num_magnitude_bins"][0]));
  }
  return plan;
}

SizeRule SizeRuleOf(const TransformPlan& transform) {
  if (transform.type == "resize" && transform.values.at("size").size() == 1) return SizeRule::kChanges;
  return FindTransformSchema(transform.type)->size;
}

StatusOr<TransformedSize> SizeAfter(std::span<const TransformPlan> transforms) {
  TransformedSize size;
  const TransformPlan* open = nullptr;  // changed the size, which nothing has set since
  for (const TransformPlan& transform : transforms) {
    const SizeRule rule = SizeRuleOf(transform);
    if (rule == SizeRule::kChanges) open = &transform;
    if (rule != SizeRule::kSets) continue;
    open = nullptr;
    const std::vector<double>& sides = transform.values.at("size");
    size = {true, static_cast<uint32_t>(sides.front()), static_cast<uint32_t>(sides.back())};
  }
  if (open != nullptr) {
    return absl::InvalidArgumentError(StrCat(open->type, " leaves pictures of many sizes; let ",
                                             FindTransformSchema(open->type)->random ? "random_crop" : "center_crop",
                                             " follow, or another that sets the size"));
  }
  return size;
}

}  // namespace distill
