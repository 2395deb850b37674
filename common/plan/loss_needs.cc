#include "common/plan/loss_needs.h"

#include "common/plan/loss_schema.h"

namespace distill {

LossNeeds NeedsOf(const LossPlan& loss) {
  const LossSchema* const schema = FindLossSchema(loss.type);
  if (schema == nullptr) return {};
  LossNeeds needs{.exact = schema->input == LossInput::kLogits};
  if (schema->ignores_row_offsets != nullptr) {
    const StatusOr<Knobs> knobs = CompleteKnobs(*schema, loss.knobs);
    needs.row_offsets = !knobs.ok() || !schema->ignores_row_offsets(*knobs);
  }
  return needs;
}

}  // namespace distill
