#include "common/plan/loss_schema.h"

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using Type = KnobSchema::Type;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Table entries. A number's range is [minimum, maximum] unless said otherwise.
constexpr KnobSchema Number(std::string_view name, std::string_view value, double minimum, double maximum,
                            std::string_view help) {
  return {.name = name,
          .type = Type::kNumber,
          .default_value = value,
          .minimum = minimum,
          .maximum = maximum,
          .help = help};
}
constexpr KnobSchema Above(std::string_view name, std::string_view value, double minimum, std::string_view help) {
  return {.name = name,
          .type = Type::kNumber,
          .default_value = value,
          .minimum = minimum,
          .minimum_exclusive = true,
          .help = help};
}
constexpr KnobSchema Below(std::string_view name, std::string_view value, double minimum, double maximum,
                           std::string_view help) {
  return {.name = name,
          .type = Type::kNumber,
          .default_value = value,
          .minimum = minimum,
          .maximum = maximum,
          .maximum_exclusive = true,
          .help = help};
}
constexpr KnobSchema Whole(std::string_view name, std::string_view value, double minimum, double maximum,
                           std::string_view help) {
  return {.name = name,
          .type = Type::kNumber,
          .default_value = value,
          .minimum = minimum,
          .maximum = maximum,
          .whole = true,
          .help = help};
}
constexpr KnobSchema Flag(std::string_view name, std::string_view value, std::string_view help) {
  return {.name = name, .type = Type::kFlag, .default_value = value, .help = help};
}
constexpr KnobSchema Choice(std::string_view name, std::string_view value, std::span<const std::string_view> choices,
                            std::string_view help) {
  return {.name = name, .type = Type::kText, .default_value = value, .choices = choices, .help = help};
}

constexpr std::string_view kAdapters[] = {"none", "conv1x1", "conv1x1_bn", "conv1x1_bn_relu", "conv3x3"};
constexpr std::string_view kDivergences[] = {"kl_t_s", "ce", "kl_s_t", "js", "mse"};
constexpr std::string_view kCwdReductions[] = {"mean", "sum_over_channels", "sum"};
constexpr std::string_view kNormAxes[] = {"spatial", "channel", "channel_mean"};
constexpr std::string_view kReductions[] = {"mean", "sum_over_batch", "sum"};
constexpr std::string_view kMismatches[] = {"error", "pool_larger", "teacher_to_student", "student_to_teacher"};
constexpr std::string_view kRamps[] = {"constant", "linear", "cosine"};
constexpr std::string_view kActivations[] = {"relu", "identity", "gelu"};
constexpr std::string_view kNorms[] = {"none", "batchnorm"};
constexpr std::string_view kSides[] = {"student", "teacher", "both"};
constexpr std::string_view kMasks[] = {"spatial", "channel"};
constexpr std::string_view kCwdMasks[] = {"none", "padding", "valid_labels"};
constexpr std::string_view kOrientations[] = {"teacher_query", "student_query"};
constexpr std::string_view kThetas[] = {"identity", "conv1x1_bn", "conv3x3_bn"};
constexpr std::string_view kEmbeddings[] = {"auto", "identity", "conv1x1_bn", "conv3x3_bn"};
constexpr std::string_view kEmbedBns[] = {"batch", "per_sample", "frozen"};
constexpr std::string_view kTatModes[] = {"auto", "plain", "hierarchical"};
constexpr std::string_view kCwdImpls[] = {"fused", "dense"};
constexpr std::string_view kGroupModes[] = {"stack", "spatial", "batch", "none"};
constexpr std::string_view kTatReductions[] = {"mean_all", "sum_per_image", "l2norm"};
constexpr std::string_view kRemainders[] = {"drop", "mask", "error"};
constexpr std::string_view kTatMismatches[] = {"auto", "none", "pool_larger", "teacher_to_student",
                                               "student_to_teacher"};
constexpr std::string_view kImpls[] = {"tiled", "dense"};
constexpr std::string_view kComputeDtypes[] = {"f32", "bf16"};
constexpr std::string_view kLossDtypes[] = {"f32", "f64"};

constexpr std::string_view kMismatchHelp =
    "When height or width differ: refuse, average the larger map down, or resize one of them bilinearly.";
constexpr KnobSchema kAlignCorners =
    Flag("align_corners", "false", "How bilinear resizing places its samples, as in torch.");
constexpr KnobSchema kMismatch = Choice("spatial_mismatch", "error", kMismatches, kMismatchHelp);
constexpr KnobSchema kReduction = Choice("reduction", "mean", kReductions,
                                         "Mean over all elements, sum over each sample's elements and mean over "
                                         "samples, or plain sum.");

constexpr KnobSchema kAtKnobs[] = {
    kAlignCorners,
    Number("power", "2", 1, kInfinity, "Exponent of the absolute value before channels are averaged; dimensionless."),
    kReduction,
    kMismatch,
};
constexpr KnobSchema kAuxClassifierKnobs[] = {
    Flag("align_corners", "false", "How the head's logits are enlarged to the label map's size, as in torch."),
    Below("label_smoothing", "0", 0, 1, "Share of the target probability spread evenly over all classes."),
};
constexpr KnobSchema kChannelTransformKnobs[] = {
    Choice("activation", "relu", kActivations, "Between the convolutions."),
    kAlignCorners,
    Flag("allow_collapse", "false",
         "Required for a transformation on the teacher's side, which can become constant and teach nothing."),
    Flag("bias", "true", "Whether the convolutions have one."),
    Whole("depth", "1", 0, 8, "Hidden layers; 0: a single linear convolution."),
    Above("hidden_ratio", "1", 0, "Width of a hidden layer, as a multiple of the teacher's channels."),
    Whole("hidden_width", "0", 0, 1 << 20, "Width of a hidden layer in channels; 0: by hidden_ratio."),
    Whole("kernel", "1", 1, 3, "Side of the convolutions in positions: 1, or 3 for ablation."),
    Choice("loss_dtype", "f32", kLossDtypes, "Type in which differences are squared and summed."),
    Choice("norm", "none", kNorms, "After each hidden convolution."),
    Choice("reduction", "sum_over_batch", kReductions,
           "Sum over each sample's elements and mean over samples, mean over all elements, or plain sum."),
    Choice("side", "student", kSides, "Whose map is transformed; the last two are for ablation."),
    kMismatch,
};
constexpr KnobSchema kCrossEntropyKnobs[] = {
    Below("label_smoothing", "0", 0, 1, "Share of the target probability spread evenly over all classes."),
};
constexpr KnobSchema kCwdKnobs[] = {
    kAlignCorners,
    Choice("divergence", "kl_t_s", kDivergences,
           "Between the teacher's map p and the student's q: KL(p||q), cross-entropy, KL(q||p), Jensen-Shannon, or "
           "squared difference of p and q."),
    Choice("impl", "fused", kCwdImpls,
           "Fused kernel for kl_t_s and ce, which holds no probabilities, or plain operators (to compare with)."),
    Choice("mask", "none", kCwdMasks,
           "padding: positions in the padding of a random crop leave both softmaxes; valid_labels: so do those whose "
           "pixel has no label (data.ignore_label); both with norm_axis spatial."),
    Choice("norm_axis", "spatial", kNormAxes,
           "Softmax over the positions of each channel, over the channels of each position, or none: mean square of "
           "the channels' means."),
    Choice("reduction", "mean", kCwdReductions,
           "Over the rows (sample, channel): mean over all, sum over channels and mean over samples, or sum over all."),
    Flag("scale_t2", "true", "Multiply by the temperature squared, so that the gradient's size does not depend on it."),
    Choice("spatial_mismatch", "teacher_to_student", kMismatches, kMismatchHelp),
    Above("temperature", "4", 0, "Divides the maps before the softmax; dimensionless."),
    Number("temperature_end", "0", 0, kInfinity, "Temperature at the stage's end; 0: constant."),
    Choice("temperature_schedule", "linear", kRamps, "How the temperature goes to temperature_end."),
};
constexpr KnobSchema kDkdKnobs[] = {
    Number("alpha", "1", 0, kInfinity, "Weight of the part on the target class."),
    Number("beta", "8", 0, kInfinity, "Weight of the part on the other classes."),
    Above("temperature", "4", 0, "Divides both logits before the softmax; the loss is multiplied by its square."),
};
constexpr KnobSchema kKdKnobs[] = {
    Above("temperature", "4", 0,
          "Divides both logits before the softmax; the loss is multiplied by its square; dimensionless."),
    Number("temperature_end", "0", 0, kInfinity, "Temperature at the stage's end; 0: constant."),
    Choice("temperature_schedule", "linear", kRamps, "How the temperature goes to temperature_end."),
};
constexpr KnobSchema kElementwiseKnobs[] = {
    kAlignCorners,
    kReduction,
    kMismatch,
};
constexpr KnobSchema kMgdKnobs[] = {
    kAlignCorners,
    Choice("mask", "spatial", kMasks, "What is hidden at random: positions in all channels, or whole channels."),
    Below("mask_ratio", "0.5", 0, 1, "Share that is hidden from the generator."),
    Choice("reduction", "sum_over_batch", kReductions,
           "Sum over each sample's elements and mean over samples, mean over all elements, or plain sum."),
    kMismatch,
};
constexpr KnobSchema kPixelKdKnobs[] = {
    kAlignCorners,
    kMismatch,
    Above("temperature", "1", 0, "Divides the maps before the softmax over channels; dimensionless."),
};
constexpr KnobSchema kSmoothL1Knobs[] = {
    kAlignCorners,
    Above("beta", "1", 0, "Difference, in the map's unit, at which the square turns into a line."),
    kReduction,
    kMismatch,
};
constexpr KnobSchema kTatKnobs[] = {
    kAlignCorners,
    Whole("anchor_grid", "0", 0, 1 << 16,
          "Rows and columns of anchors asked for instead of anchor_kernel; 0: by kernel."),
    Whole("anchor_kernel", "4", 1, 1 << 16, "Side of the average pooling that makes an anchor, in positions."),
    Number("anchor_weight", "0.4", 0, kInfinity, "Weight of the anchor-point part (zeta); hierarchical only."),
    Number("attn_scale", "1", 0, kInfinity, "Factor on the attention logits; 0: 1 over the root of the width."),
    Choice(
        "compute_dtype", "f32", kComputeDtypes,
        "Type of what goes into the attention; with bf16 embeddings and target are rounded to it, and logits, softmax "
        "and sums stay float32. Half the memory traffic on a GPU; on a CPU no faster."),
    Choice("embed_bn", "batch", kEmbedBns,
           "Batch norm of the embeddings: over the batch, over each sample alone, or fixed at its start."),
    Choice("gamma", "auto", kEmbeddings,
           "Student to similarity space; auto: conv3x3_bn up to 256 positions, else conv1x1_bn."),
    Whole("grid_cols", "16", 1, 1 << 16, "Patches in a row (m); hierarchical only."),
    Whole("grid_rows", "16", 1, 1 << 16, "Patches in a column (n); hierarchical only."),
    Choice(
        "group_mode", "stack", kGroupModes,
        "Runs of neighbouring patches share one attention (the paper's); windows of window_rows x window_cols patches "
        "do; each patch attends alone; the same, summed instead of averaged."),
    Whole("groups", "64", 1, 1 << 20,
          "Groups (g) of neighbouring patches; divides grid_rows * grid_cols; group_mode stack only."),
    Choice("impl", "tiled", kImpls, "Fused kernel without an attention matrix where there is one, or plain operators."),
    Choice("mode", "auto", kTatModes,
           "One attention over the whole map, or patch groups and anchors; auto: plain up to "
           "1024 positions."),
    Choice("orientation", "teacher_query", kOrientations,
           "Softmax over the student's pixels (the paper's definition) or the teacher's (its released code)."),
    Number("patch_weight", "1", 0, kInfinity, "Weight of the patch-group part (delta); hierarchical only."),
    Choice("phi", "auto", kEmbeddings, "Student to value space; auto as for gamma."),
    Choice(
        "reduction", "mean_all", kTatReductions,
        "Mean over all elements, sum over an image's elements and mean over images, or the Euclidean norm per image."),
    Choice("remainder", "drop", kRemainders,
           "Positions that fill no whole patch or anchor: leave out, as the released code; keep, in patches that "
           "differ by "
           "a row or column and smaller last anchors (plain operators); or refuse."),
    Choice("spatial_mismatch", "auto", kTatMismatches,
           "When height or width differ: auto is none for plain teacher_query, which needs no resizing, and "
           "teacher_to_student else."),
    Choice("theta", "identity", kThetas, "Teacher to similarity space."),
    Whole("window_cols", "2", 1, 1 << 16, "Patches in a row of a group's window; group_mode spatial only."),
    Whole("window_rows", "2", 1, 1 << 16, "Patches in a column of a group's window; group_mode spatial only."),
};

// Sorted by type.
constexpr LossSchema kSchemas[] = {
    {.type = "at",
     .input = LossInput::kFeatures,
     .help = "Attention transfer: difference of the normalised maps of mean |activation|^power (Zagoruyko and "
             "Komodakis 2017, arXiv:1612.03928).",
     .knobs = kAtKnobs,
     .channels = ChannelRule::kAny},
    {.type = "aux_classifier",
     .input = LossInput::kMap,
     .help =
         "Cross-entropy between the labels and the answers of an auxiliary head on an inner map of the student (Zhao "
         "et al. 2017, arXiv:1612.01105).",
     .knobs = kAuxClassifierKnobs,
     .uses_labels = true,
     .batch_norm = true},
    {.type = "channel_transform",
     .input = LossInput::kFeatures,
     .help = "Squared difference after a learnable nonlinear transformation of the student's channels (Liu et al. "
             "2023, arXiv:2303.13212).",
     .knobs = kChannelTransformKnobs,
     .channels = ChannelRule::kOwn},
    {.type = "cross_entropy",
     .input = LossInput::kLabels,
     .help = "Cross-entropy between the student's logits and the labels, mean over the batch (or over its labelled "
             "pixels).",
     .knobs = kCrossEntropyKnobs,
     .uses_labels = true},
    {.type = "cwd",
     .input = LossInput::kFeatures,
     .help = "Channel-wise distillation: KL between softmaxes over the positions of each channel (Shu et al. 2021, "
             "arXiv:2011.13256).",
     .knobs = kCwdKnobs,
     // Softmaxes over positions do; resizing a map keeps a constant what it is.
     .ignores_row_offsets = [](const Knobs& knobs) { return TextKnob(knobs, "norm_axis") == "spatial"; }},
    {.type = "dkd",
     .input = LossInput::kLogits,
     .help = "Decoupled soft targets: alpha times the target class's part plus beta times the other classes' (Zhao et "
             "al. 2022, arXiv:2203.08679).",
     .knobs = kDkdKnobs,
     .uses_labels = true},
    {.type = "kd",
     .input = LossInput::kLogits,
     .help = "Soft targets: T^2 times KL(teacher || student) of the softmaxed logits, mean over the batch (Hinton et "
             "al. 2015, arXiv:1503.02531).",
     .knobs = kKdKnobs},
    {.type = "l1",
     .input = LossInput::kFeatures,
     .help = "Absolute difference of feature maps.",
     .knobs = kElementwiseKnobs},
    {.type = "l2",
     .input = LossInput::kFeatures,
     .help = "Squared difference of feature maps (hints: Romero et al. 2015, arXiv:1412.6550).",
     .knobs = kElementwiseKnobs},
    {.type = "mgd",
     .input = LossInput::kFeatures,
     .help = "Masked generation: the teacher's map is generated from the student's with parts hidden (Yang et al. "
             "2022, arXiv:2205.01529).",
     .knobs = kMgdKnobs},
    {.type = "pixel_kd",
     .input = LossInput::kFeatures,
     .help = "Soft targets per position: T^2 times KL of the softmaxes over channels, mean over positions (Liu et al. "
             "2019, arXiv:1903.04197).",
     .knobs = kPixelKdKnobs},
    {.type = "smooth_l1",
     .input = LossInput::kFeatures,
     .help = "Squared difference of feature maps near zero, absolute difference beyond (Girshick 2015, "
             "arXiv:1504.08083).",
     .knobs = kSmoothL1Knobs},
    {.type = "sp",
     .input = LossInput::kFeatures,
     .help = "Similarity-preserving: difference of the samples' normalised similarity matrices (Tung and Mori 2019, "
             "arXiv:1907.09682).",
     .knobs = {},
     .channels = ChannelRule::kAny},
    {.type = "tat",
     .input = LossInput::kFeatures,
     .help = "Target-aware transformer: each teacher pixel is compared with a mixture of all student pixels (Lin et "
             "al. 2022, arXiv:2205.10793).",
     .knobs = kTatKnobs,
     .channels = ChannelRule::kOwn},
};

std::string_view TypeName(const KnobValue& value) {
  return value.index() == 0 ? "a number" : value.index() == 1 ? "true or false" : "a text";
}
std::string_view TypeName(Type type) {
  return type == Type::kNumber ? "a number" : type == Type::kFlag ? "true or false" : "a text";
}
std::string Print(const KnobValue& value) {
  if (const double* number = std::get_if<double>(&value)) return StrCat(*number);
  if (const bool* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  return StrCat("'", std::get<std::string>(value), "'");
}

Status CheckKnob(const LossSchema& loss, const KnobSchema& knob, const KnobValue& value) {
  const auto refuse = [&](std::string_view allowed) {
    return absl::InvalidArgumentError(
        StrCat("loss ", loss.type, ": ", knob.name, " is ", Print(value), ", must be ", allowed));
  };
  switch (knob.type) {
    case Type::kNumber: {
      const double* number = std::get_if<double>(&value);
      if (number == nullptr) break;
      const bool low = knob.minimum_exclusive ? *number > knob.minimum : *number >= knob.minimum;
      const bool high = knob.maximum_exclusive ? *number < knob.maximum : *number <= knob.maximum;
      const bool whole = !knob.whole || *number == std::floor(*number);
      if (std::isfinite(*number) && low && high && whole) return OkStatus();
      std::string range = StrCat(knob.whole ? "a whole number " : "a number ",
                                 knob.minimum_exclusive ? "above " : "of at least ", knob.minimum);
      if (std::isfinite(knob.maximum)) {
        StrAppend(&range, knob.maximum_exclusive ? " and below " : " and at most ", knob.maximum);
      }
      return refuse(range);
    }
    case Type::kFlag:
      if (std::holds_alternative<bool>(value)) return OkStatus();
      break;
    case Type::kText: {
      const std::string* text = std::get_if<std::string>(&value);
      if (text == nullptr) break;
      for (std::string_view choice : knob.choices) {
        if (*text == choice) return OkStatus();
      }
      const std::vector<std::string> choices(knob.choices.begin(), knob.choices.end());
      return refuse(StrCat("one of ", absl::StrJoin(choices, ", "), DidYouMean(*text, choices)));
    }
  }
  return absl::InvalidArgumentError(StrCat("loss ", loss.type, ": ", knob.name, " is ", TypeName(value), " (",
                                           Print(value), "), must be ", TypeName(knob.type)));
}

KnobValue DefaultValue(const KnobSchema& knob) {
  switch (knob.type) {
    case Type::kNumber: {
      double number = 0;
      (void)absl::SimpleAtod(ToAbsl(knob.default_value), &number);  // the table above is checked by a test
      return number;
    }
    case Type::kFlag:
      return knob.default_value == "true";
    case Type::kText:
      break;
  }
  return std::string(knob.default_value);
}

}  // namespace

std::span<const LossSchema> LossSchemas() { return kSchemas; }

std::span<const std::string_view> AdapterKinds() { return kAdapters; }

bool ReadsLabelMaps(const LossPlan& loss) {
  return loss.type == "cwd" && TextKnob(loss.knobs, "mask") == "valid_labels";
}

bool ReadsLabels(const LossPlan& loss) { return FindLossSchema(loss.type)->uses_labels || ReadsLabelMaps(loss); }

const LossSchema* FindLossSchema(std::string_view type) {
  for (const LossSchema& schema : kSchemas) {
    if (schema.type == type) return &schema;
  }
  return nullptr;
}

StatusOr<Knobs> CompleteKnobs(const LossSchema& schema, const Knobs& given) {
  Knobs completed;
  for (const KnobSchema& knob : schema.knobs) {
    const auto it = given.find(std::string(knob.name));
    const KnobValue value = it == given.end() ? DefaultValue(knob) : it->second;
    DISTILL_RETURN_IF_ERROR(CheckKnob(schema, knob, value));
    completed.emplace(knob.name, value);
  }
  for (const auto& [name, value] : given) {
    if (completed.contains(name)) continue;
    std::vector<std::string> names;
    for (const KnobSchema& knob : schema.knobs) names.emplace_back(knob.name);
    return absl::InvalidArgumentError(StrCat("loss ", schema.type, " has no knob '", name, "'", DidYouMean(name, names),
                                             " (it has ", absl::StrJoin(names, ", "), ")"));
  }
  return completed;
}

double NumberKnob(const Knobs& knobs, std::string_view name) { return std::get<double>(knobs.at(std::string(name))); }
bool FlagKnob(const Knobs& knobs, std::string_view name) { return std::get<bool>(knobs.at(std::string(name))); }
const std::string& TextKnob(const Knobs& knobs, std::string_view name) {
  return std::get<std::string>(knobs.at(std::string(name)));
}

}  // namespace distill
