#include "student_worker/losses/loss.h"

#include "absl/strings/str_join.h"
#include "common/nearest_name.h"
#include "common/plan/loss_schema.h"
#include "common/str_cat.h"
#include "student_worker/losses/loss_internal.h"

namespace distill {

double Loss::Count(const LossInputs& inputs) const { return static_cast<double>(inputs.student.size(0)); }

StatusOr<std::unique_ptr<Loss>> MakeLoss(const LossPlan& plan, uint64_t seed) {
  const LossSchema* schema = FindLossSchema(plan.type);
  using Maker = loss_internal::LossOrStatus (*)(const LossPlan&, uint64_t);
  static constexpr std::pair<std::string_view, Maker> kMakers[] = {
      {"at", loss_internal::MakeAt},
      {"aux_classifier", loss_internal::MakeAuxClassifier},
      {"channel_transform", loss_internal::MakeChannelTransform},
      {"cross_entropy", loss_internal::MakeCrossEntropy},
      {"cwd", loss_internal::MakeCwd},
      {"dkd", loss_internal::MakeDkd},
      {"kd", loss_internal::MakeKd},
      {"l1", loss_internal::MakeL1},
      {"l2", loss_internal::MakeL2},
      {"mgd", loss_internal::MakeMgd},
      {"pixel_kd", loss_internal::MakePixelKd},
      {"smooth_l1", loss_internal::MakeSmoothL1},
      {"sp", loss_internal::MakeSp},
      {"tat", loss_internal::MakeTat},
  };
  std::vector<std::string> names;
  for (const auto& [type, maker] : kMakers) {
    names.emplace_back(type);
    if (schema == nullptr || type != plan.type) continue;
    auto knobs = CompleteKnobs(*schema, plan.knobs);
    if (!knobs.ok()) return Annotate(knobs.status(), StrCat("loss '", plan.name, "'"));
    LossPlan completed = plan;
    completed.knobs = *std::move(knobs);
    auto loss = maker(completed, seed);
    if (!loss.ok()) return Annotate(loss.status(), StrCat("loss '", plan.name, "'"));
    return loss;
  }
  return absl::InvalidArgumentError(StrCat("loss '", plan.name, "' has the unknown type '", plan.type, "'",
                                           DidYouMean(plan.type, names), "; this student knows ",
                                           absl::StrJoin(names, ", ")));
}

}  // namespace distill
