// Which transforms of pictures exist and which knobs they have: one table for the coordinator (which validates job
// files against it), the student (which applies them) and the documentation (a test checks docs/job.md against it).
//
// Immutable after start-up; any thread.
#ifndef DISTILL_COMMON_PLAN_TRANSFORM_SCHEMA_H_
#define DISTILL_COMMON_PLAN_TRANSFORM_SCHEMA_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// One knob: a number, or a list of two.
struct TransformKnob {
  std::string_view name;
  std::string_view default_value;  // as written in YAML; empty: must be given
  size_t min_count = 1;            // numbers
  size_t max_count = 1;
  double minimum = 0;  // of each number, inclusive
  double maximum = 0;
  bool whole = false;     // whole numbers alone
  bool odd = false;       // and of these the odd ones
  bool rising = false;    // two numbers of which the second is not smaller
  std::string_view help;  // one sentence, with unit
};

// What a transform makes of a picture's size.
enum class SizeRule {
  kKeeps,    // stays
  kSets,     // becomes [size], whatever it was
  kChanges,  // depends on the picture and on chance
};

struct TransformSchema {
  std::string_view type;
  SizeRule size;
  bool random = false;    // for training alone
  std::string_view help;  // one sentence, with its counterpart in torchvision
  std::span<const TransformKnob> knobs;
};

// Sorted by type.
std::span<const TransformSchema> TransformSchemas();
// Null when unknown.
const TransformSchema* FindTransformSchema(std::string_view type);
// Checks names, counts and ranges of what is given and fills in the others, so that every knob of the schema is there.
// kInvalidArgument names the knob, the value and what is allowed.
StatusOr<TransformPlan> CompleteTransform(const TransformPlan& given);

// The size rule of this transform: that of its schema, except that resize with a single number (the short side) does
// not say the other side. REQUIRES: completed.
SizeRule SizeRuleOf(const TransformPlan& transform);

// What a list of completed transforms makes of pictures.
struct TransformedSize {
  bool any = false;  // pictures of all sizes become [height, width]; else they keep the size that they have
  uint32_t height = 0, width = 0;
};
// kInvalidArgument: the list ends without a size that all pictures share.
StatusOr<TransformedSize> SizeAfter(std::span<const TransformPlan> transforms);

}  // namespace distill

#endif  // DISTILL_COMMON_PLAN_TRANSFORM_SCHEMA_H_
