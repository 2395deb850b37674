#include "common/plan/teacher_requests.h"

#include <algorithm>

#include "common/plan/loss_needs.h"

namespace distill {

TeacherRequests TeacherRequestsOf(const StagePlan& stage, WireDtype maps) {
  constexpr TapEncoding kExact{WireDtype::kF32, false};
  const auto encoding_for = [&](const LossPlan& loss) {
    const LossNeeds needs = NeedsOf(loss);
    return needs.exact ? kExact : TapEncoding{maps, maps != WireDtype::kF32 && !needs.row_offsets};
  };
  TeacherRequests requests;
  const auto reads = [](const LossPlan& loss) { return loss.needs_teacher && loss.weight != 0; };
  // Known only after the last reader, but a tap's place is that of the first.
  std::vector<std::string> exact;
  for (const LossPlan& loss : stage.losses) {
    if (reads(loss) && encoding_for(loss) == kExact) exact.push_back(loss.teacher_tap);
  }
  const auto ask = [&](const std::string& tap, TapEncoding encoding) {
    if (std::find(exact.begin(), exact.end(), tap) != exact.end()) encoding = kExact;
    const TapRequest wanted{tap, encoding};
    const auto known = std::find(requests.taps.begin(), requests.taps.end(), wanted);
    const size_t index = known - requests.taps.begin();
    if (known == requests.taps.end()) requests.taps.push_back(wanted);
    return index;
  };
  for (const LossPlan& loss : stage.losses) {
    requests.of_loss.emplace_back();
    if (reads(loss)) requests.of_loss.back() = ask(loss.teacher_tap, encoding_for(loss));
  }
  if (!stage.teacher_input.empty()) requests.input = ask(stage.teacher_input, {maps, false});
  return requests;
}

}  // namespace distill
