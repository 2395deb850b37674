// Which losses exist, what they read and which knobs they have: one table for the coordinator (which validates job
// files against it), the student (which builds the losses from it) and the documentation (docs/job.md is checked
// against it by a test).
//
// Immutable after start-up; any thread.
#ifndef DISTILL_COMMON_PLAN_LOSS_SCHEMA_H_
#define DISTILL_COMMON_PLAN_LOSS_SCHEMA_H_

#include <limits>
#include <span>
#include <string>
#include <string_view>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

enum class LossInput {
  kLabels,    // student logits and labels
  kLogits,    // student and teacher logits [N, K], or [N, K, H, W] of networks that answer for every pixel
  kFeatures,  // student and teacher maps [N, C, H, W]
  kMap,       // a student map [N, C, H, W] and a label for every pixel
};

// Whether there is a teacher's tensor among them.
constexpr bool ReadsTeacher(LossInput input) { return input == LossInput::kLogits || input == LossInput::kFeatures; }

// How a feature loss deals with channel counts that differ.
enum class ChannelRule {
  kAdapter,  // compares channel by channel: an adapter lifts the student's to the teacher's
  kOwn,      // brings its own layers from the student's channels to the teacher's
  kAny,      // channels are summed away
};

struct KnobSchema {
  std::string_view name;
  enum class Type { kNumber, kFlag, kText } type;
  std::string_view default_value;                            // as written in YAML
  double minimum = 0;                                        // numbers: lower bound
  bool minimum_exclusive = false;                            // true: value > minimum, false: value >= minimum
  double maximum = std::numeric_limits<double>::infinity();  // numbers: upper bound
  bool maximum_exclusive = false;                            // true: value < maximum, false: value <= maximum
  bool whole = false;                                        // numbers: only whole ones
  std::span<const std::string_view> choices = {};            // texts: allowed values
  std::string_view help;                                     // one sentence, with unit
};

struct LossSchema {
  std::string_view type;  // "cwd"
  LossInput input;
  std::string_view help;  // one sentence, with the paper
  std::span<const KnobSchema> knobs;
  bool uses_labels = false;                      // whatever its knobs say
  ChannelRule channels = ChannelRule::kAdapter;  // read for kFeatures only
  bool batch_norm = false;                       // brings one over the batch, whatever its knobs say
  // Whether the loss with these completed knobs says that a constant added to all positions of a channel of a sample's
  // map, in the teacher's alone, changes neither the term nor its gradient. Null: it never is so.
  bool (*ignores_row_offsets)(const Knobs& knobs) = nullptr;
};

// All known losses, sorted by type.
std::span<const LossSchema> LossSchemas();
// Null when unknown.
const LossSchema* FindLossSchema(std::string_view type);
// Checks names, types, ranges of `given` (NaN and infinity are out of range) and fills in defaults, so that the result
// has every knob of the schema. kInvalidArgument names the knob, the value and what is allowed, or the nearest valid
// knob.
StatusOr<Knobs> CompleteKnobs(const LossSchema& schema, const Knobs& given);

// The adapters of losses with ChannelRule::kAdapter: "none" and the kinds of layer.
std::span<const std::string_view> AdapterKinds();

// Whether the loss, with its knobs, reads labels, and whether it needs one for every pixel. REQUIRES: a known type with
// completed knobs.
bool ReadsLabels(const LossPlan& loss);
bool ReadsLabelMaps(const LossPlan& loss);

// Readers for completed knobs. REQUIRES: the name exists with that type (CompleteKnobs guarantees it).
double NumberKnob(const Knobs& knobs, std::string_view name);
bool FlagKnob(const Knobs& knobs, std::string_view name);
const std::string& TextKnob(const Knobs& knobs, std::string_view name);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_LOSS_SCHEMA_H_
