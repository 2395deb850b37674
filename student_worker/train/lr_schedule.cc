#include "student_worker/train/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/nearest_name.h"
#include "common/str_cat.h"

namespace distill {

StatusOr<LrSchedule> LrSchedule::Create(const SchedulePlan& plan, uint64_t steps) {
  const std::vector<std::string> types = {"constant", "cosine", "one_cycle", "poly", "step"};
  if (std::find(types.begin(), types.end(), plan.type) == types.end()) {
    return absl::InvalidArgumentError(StrCat("unknown schedule type '", plan.type, "'", DidYouMean(plan.type, types),
                                             "; this student knows constant, cosine, one_cycle, poly and step"));
  }
  if (!(plan.warmup >= 0 && plan.warmup < 1)) {
    return absl::InvalidArgumentError(StrCat("schedule warmup is ", plan.warmup, "; it must be in [0, 1)"));
  }
  if (plan.type == "step") {
    double previous = 0;
    for (double milestone : plan.milestones) {
      if (!(milestone > previous && milestone < 1)) {
        return absl::InvalidArgumentError(
            StrCat("schedule milestone ", milestone, " after ", previous, "; milestones must ascend inside (0, 1)"));
      }
      previous = milestone;
    }
    if (!(plan.gamma > 0))
      return absl::InvalidArgumentError(StrCat("schedule gamma is ", plan.gamma, "; it must be > 0"));
  }
  if (plan.type == "poly" && !(plan.power > 0))
    return absl::InvalidArgumentError(StrCat("schedule power is ", plan.power, "; it must be > 0"));
  if (!(plan.min_factor >= 0 && plan.min_factor < 1)) {
    return absl::InvalidArgumentError(StrCat("schedule min_factor is ", plan.min_factor, "; it must be in [0, 1)"));
  }
  if (plan.type == "one_cycle") {
    if (!(plan.pct_start > 0 && plan.pct_start < 1)) {
      return absl::InvalidArgumentError(StrCat("schedule pct_start is ", plan.pct_start, "; it must be in (0, 1)"));
    }
    for (const auto& [name, value] :
         {std::pair{"div_factor", plan.div_factor}, {"final_div_factor", plan.final_div_factor}}) {
      if (!(value >= 1))
        return absl::InvalidArgumentError(StrCat("schedule ", name, " is ", value, "; it must be >= 1"));
    }
    if (plan.warmup > 0) {
      return absl::InvalidArgumentError("schedule one_cycle rises by itself and takes no warmup");
    }
  }
  if (!(plan.begin >= 0 && plan.begin < plan.end && plan.end <= 1) && steps > 0) {
    return absl::InvalidArgumentError(
        StrCat("schedule begin ", plan.begin, " and end ", plan.end, "; they must ascend inside [0, 1]"));
  }
  return LrSchedule(plan, steps);
}

LrSchedule::LrSchedule(SchedulePlan plan, uint64_t steps)
    : plan_(std::move(plan)),
      stage_steps_(std::max<uint64_t>(steps, 1)),
      steps_(std::max<uint64_t>(stage_steps_, std::llround(static_cast<double>(steps) / (plan_.end - plan_.begin)))),
      offset_(std::min<uint64_t>(std::llround(plan_.begin * static_cast<double>(steps_)), steps_ - stage_steps_)),
      warmup_steps_(std::min<uint64_t>(std::llround(plan_.warmup * static_cast<double>(steps_)), steps_ - 1)) {}

double LrSchedule::OneCycleFactor(uint64_t step) const {
  const auto cosine = [](double from, double to, double share) {
    return to + (from - to) / 2 * (1 + std::cos(std::numbers::pi * share));
  };
  const double first = 1 / plan_.div_factor, last = first / plan_.final_div_factor;
  const double top = plan_.pct_start * static_cast<double>(steps_) - 1;  // the step at which the rate is highest
  const double end = static_cast<double>(steps_) - 1;
  const auto now = static_cast<double>(step);
  if (now <= top && top > 0) return cosine(first, 1, now / top);
  const double start = std::max(top, 0.0);
  return now <= start ? 1 : cosine(1, last, (now - start) / (end - start));
}

double LrSchedule::Factor(uint64_t step) const {
  step = offset_ + std::min(step, stage_steps_ - 1);
  if (plan_.type == "one_cycle") return OneCycleFactor(step);
  double factor = 1;
  if (step < warmup_steps_) {
    factor = static_cast<double>(step + 1) / static_cast<double>(warmup_steps_ + 1);
  } else if (plan_.type == "cosine" || plan_.type == "poly") {
    const double done = static_cast<double>(step - warmup_steps_) / static_cast<double>(steps_ - warmup_steps_);
    factor = plan_.type == "cosine" ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : std::pow(1 - done, plan_.power);
    factor = plan_.min_factor + (1 - plan_.min_factor) * factor;
  }
  if (plan_.type == "step") {
    for (double milestone : plan_.milestones) {
      if (static_cast<double>(step) >= milestone * static_cast<double>(steps_)) factor *= plan_.gamma;
    }
  }
  return factor;
}

}  // namespace distill
