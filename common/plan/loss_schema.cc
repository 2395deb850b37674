#include "common/plan/loss_schema.h"

#include <array>
#include <cmath>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {
namespace {

using Type = KnobSchema::Type;

constexpr std::string_view kDivergences[] = {"kl_t_s", "ce", "kl_s_t", "js", "mse"};
constexpr std::string_view kCwdReductions[] = {"mean", "sum_over_channels", "sum"};
constexpr std::string_view kL2Reductions[] = {"mean", "sum_over_batch"};

constexpr KnobSchema kCrossEntropyKnobs[] = {
    {.name = "label_smoothing",
     .type = Type::kNumber,
     .default_value = "0",
     .minimum = 0,
     .maximum = 1,
     .maximum_exclusive = true,
     .help = "Share of the target probability spread evenly over all classes."},
};
constexpr KnobSchema kCwdKnobs[] = {
    {.name = "divergence",
     .type = Type::kText,
     .default_value = "kl_t_s",
     .choices = kDivergences,
     .help = "Between the teacher's map p and the student's q: KL(p||q), cross-entropy, KL(q||p), Jensen-Shannon, or "
             "squared "
             "difference of p and q."},
    {.name = "reduction",
     .type = Type::kText,
     .default_value = "mean",
     .choices = kCwdReductions,
     .help =
         "Over the rows (sample, channel): mean over all, sum over channels and mean over samples, or sum over all."},
    {.name = "scale_t2",
     .type = Type::kFlag,
     .default_value = "true",
     .help = "Multiply by the temperature squared, so that the gradient's size does not depend on it."},
    {.name = "temperature",
     .type = Type::kNumber,
     .default_value = "4",
     .minimum = 0,
     .minimum_exclusive = true,
     .help = "Divides the maps before the softmax over positions; dimensionless."},
};
constexpr KnobSchema kKdKnobs[] = {
    {.name = "temperature",
     .type = Type::kNumber,
     .default_value = "4",
     .minimum = 0,
     .minimum_exclusive = true,
     .help = "Divides both logits before the softmax; the loss is multiplied by its square; dimensionless."},
};
constexpr KnobSchema kL2Knobs[] = {
    {.name = "reduction",
     .type = Type::kText,
     .default_value = "mean",
     .choices = kL2Reductions,
     .help = "Mean over all elements, or sum over each sample's elements and mean over samples."},
};

// Sorted by type.
constexpr LossSchema kSchemas[] = {
    {.type = "cross_entropy",
     .input = LossInput::kLabels,
     .help = "Cross-entropy between the student's logits and the labels, mean over the batch.",
     .knobs = kCrossEntropyKnobs,
     .adapter_allowed = false},
    {.type = "cwd",
     .input = LossInput::kFeatures,
     .help = "Channel-wise distillation: KL between softmaxes over the positions of each channel (Shu et al. 2021, "
             "arXiv:2011.13256).",
     .knobs = kCwdKnobs,
     .adapter_allowed = true},
    {.type = "kd",
     .input = LossInput::kLogits,
     .help = "Soft targets: T^2 times KL(teacher || student) of the softmaxed logits, mean over the batch (Hinton et "
             "al. 2015, "
             "arXiv:1503.02531).",
     .knobs = kKdKnobs,
     .adapter_allowed = false},
    {.type = "l2",
     .input = LossInput::kFeatures,
     .help = "Squared difference of feature maps (hints: Romero et al. 2015, arXiv:1412.6550).",
     .knobs = kL2Knobs,
     .adapter_allowed = true},
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
      if (std::isfinite(*number) && low && high) return OkStatus();
      std::string range = StrCat("a number ", knob.minimum_exclusive ? "above " : "of at least ", knob.minimum);
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
