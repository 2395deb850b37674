// Whom a pool asks: by trust and load, a second one where the first is late, and those on trial for a copy.
#include <algorithm>
#include <cmath>
#include <utility>

#include "common/log.h"
#include "common/str_cat.h"
#include "student_worker/feature/teacher_pool_core.h"

namespace distill {

// The teacher to be asked next, or null: trusted before late ones, and before those on trial (one request at a time);
// those that could not compute this very request, and those that refuse everything, only when there is nobody else.
// Among equals the one with the least to do.
TeacherPool::Core::Teacher* TeacherPool::Core::ChooseFromLoop(const FeatureRequest& request, Time now,
                                                              bool trusted_only) {
  Teacher* best = nullptr;
  std::pair<int, size_t> least;
  Teacher* trial = nullptr;
  for (const auto& owned : teachers_) {
    Teacher* const teacher = owned.get();
    if (!teacher->open() || teacher->health.Rests(now) || request.Exhausted(teacher->endpoint.address)) continue;
    const bool owes_it = std::any_of(teacher->stream->in_flight.begin(), teacher->stream->in_flight.end(),
                                     [&](const auto& entry) { return entry.second.ticket == request.ticket; });
    if (owes_it) continue;
    const size_t load = teacher->stream->in_flight.size();
    const bool on_trial = teacher->health.on_trial();
    if (on_trial && load > 0) continue;
    int rank = 0;
    if (!teacher->refusal.ok()) rank += 8;
    if (request.said.contains(teacher->endpoint.address)) rank += 4;
    if (teacher->late) rank += 2;
    if (on_trial) rank += 1;
    if (trusted_only && rank > 0) continue;
    if (rank == 1) trial = teacher;
    if (best == nullptr || std::pair(rank, load) < least) {
      best = teacher;
      least = {rank, load};
    }
  }
  // A teacher on trial gets a copy of what another one was asked (TryOutFromLoop). Where the window never has room for
  // a copy, it gets the request itself: should it fail, that costs the time until it is late.
  if (trial != nullptr && best != trial && least.first == 0) {
    const uint64_t cost = CostFromLoop(request.images.n).value_or(window_->bytes());
    if (HasRoomFromLoop(*trial->stream, cost) && window_->free() < 2 * cost) return trial;
  }
  return best;
}

// Teachers on trial get a copy of the oldest request that another one works on.
void TeacherPool::Core::TryOutFromLoop(Time now) {
  if (tap_shapes_.empty()) return;
  for (const auto& teacher : teachers_) {
    if (!teacher->open() || !teacher->health.on_trial() || teacher->health.Rests(now) ||
        !teacher->stream->in_flight.empty()) {
      continue;
    }
    for (auto& [ticket, request] : requests_) {
      if (request.attempts != 1 || request.said.contains(teacher->endpoint.address)) continue;
      const uint64_t cost = *CostFromLoop(request.images.n);
      if (!HasRoomFromLoop(*teacher->stream, cost)) return;
      metrics_.AskedSecond();
      SendFromLoop(teacher->stream, &request, cost, now);
      break;
    }
  }
}

// Looks for late teachers, and asks others for what they owe.
void TeacherPool::Core::AskSecondsFromLoop(Time now) {
  for (const auto& owned : teachers_) {
    Teacher* const teacher = owned.get();
    Stream* const stream = teacher->stream;
    if (!teacher->open() || stream->in_flight.empty()) {
      teacher->late = false;
      continue;
    }
    const Duration owed = now - stream->working_since;
    const Duration late_after =
        teacher->health.LateAfter(stream->in_flight.begin()->second.cost, PoolUsualFromLoop(teacher));
    const bool was_late = std::exchange(teacher->late, owed >= late_after);
    if (!teacher->late || tap_shapes_.empty()) continue;
    for (auto& [wire_id, attempt] : stream->in_flight) {
      FeatureRequest* const request = FindFromLoop(attempt.ticket);
      if (request == nullptr || request->attempts > 1) continue;
      Teacher* const other = ChooseFromLoop(*request, now, /*trusted_only=*/true);
      if (other == nullptr) break;
      if (!was_late || !teacher->told_late) {
        const std::string text = StrCat(teacher->Name(), " owes the ", request->What(), " for ",
                                        std::round(std::chrono::duration<double>(owed).count() * 10) / 10,
                                        " s, much longer than usual; ", other->Name(), " is asked for the same");
        if (std::exchange(teacher->told_late, true)) {
          LogInfo(text);
        } else {
          TellFromLoop(EventLevel::kWarning, text);
        }
      }
      const uint64_t cost = *CostFromLoop(request->images.n);
      if (!HasRoomFromLoop(*other->stream, cost)) {
        // No room for two answers: the late one loses its work, and with it its credit.
        if (owed >= 2 * late_after) {
          DropFromLoop(stream,
                       absl::UnavailableError(StrCat("no complete answer for ", WholeSeconds(owed),
                                                     " s, and the window has no room to ask another teacher too")),
                       Cause::kStalled);
        }
        break;
      }
      metrics_.AskedSecond();
      SendFromLoop(other->stream, request, cost, now);
    }
  }
}

// Mean of the usual times of those that have answered.
std::optional<TeacherPool::Core::Duration> TeacherPool::Core::PoolUsualFromLoop(const Teacher* except) const {
  Duration sum{};
  int count = 0;
  for (const auto& teacher : teachers_) {
    if (teacher.get() == except || !teacher->health.usual().has_value()) continue;
    sum += *teacher->health.usual();
    ++count;
  }
  return count == 0 ? std::nullopt : std::optional(sum / count);
}

}  // namespace distill
