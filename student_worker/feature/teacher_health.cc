#include "student_worker/feature/teacher_health.h"

#include <algorithm>
#include <utility>

namespace distill {
namespace {

constexpr int kPatience = 4;        // times the usual, or the slowest of late
constexpr int kMostDoublings = 20;  // beyond every limit, and far from an overflow

// first * 2^times, at most `most`.
TeacherHealth::Duration Doubled(TeacherHealth::Duration first, int times, TeacherHealth::Duration most) {
  for (int i = 0; i < std::min(times, kMostDoublings) && first < most; ++i) first *= 2;
  return std::min(first, most);
}

}  // namespace

void TeacherHealth::OnAway(Time now) {
  if (backoff_.count() == 0) backoff_ = options_.min_backoff;
  // Never sooner than a rest that is running.
  resting_until_ = std::max(resting_until_, now + backoff_);
  backoff_ = std::min(backoff_ * 2, options_.max_backoff);
}

void TeacherHealth::OnStall(Time now) {
  ++stalls_;
  SetAside(now);
}

void TeacherHealth::OnWrong(Time now) { SetAside(now); }

void TeacherHealth::SetAside(Time now) {
  last_rest_ = Doubled(options_.min_set_aside, strikes_, options_.max_set_aside);
  resting_until_ = std::max(resting_until_, now + last_rest_);
  strikes_ = std::min(strikes_ + 1, kMostDoublings);
  right_in_a_row_ = 0;
  on_trial_ = true;
}

bool TeacherHealth::OnAnswer(Duration took) {
  OnAlive(took);
  stalls_ = 0;
  backoff_ = std::chrono::milliseconds(0);
  if (++right_in_a_row_ >= options_.forgiven_after) {
    right_in_a_row_ = 0;
    strikes_ /= 2;
  }
  return std::exchange(on_trial_, false);
}

void TeacherHealth::OnAlive(Duration took) {
  // A moving mean over some eight answers, and a maximum that fades over some twenty.
  usual_ = usual_.has_value() ? *usual_ + (took - *usual_) / 8 : took;
  slowest_ = std::max(took, slowest_ - slowest_ / 20);
}

TeacherHealth::Duration TeacherHealth::StallTimeout(uint64_t bytes) const {
  const Duration doubled = Doubled(options_.stall_timeout, stalls_, options_.max_stall_timeout);
  return std::min<Duration>(std::max(doubled, slowest_ * kPatience), options_.max_stall_timeout) + TransferTime(bytes);
}

TeacherHealth::Duration TeacherHealth::LateAfter(uint64_t bytes, std::optional<Duration> pool_usual) const {
  const std::optional<Duration> usual = usual_.has_value() ? usual_ : pool_usual;
  // Nobody has answered yet: networks warm up, and there is no measure.
  if (!usual.has_value()) return StallTimeout(bytes) / 3;
  return std::min(std::max<Duration>(*usual * kPatience, options_.min_late) + TransferTime(bytes), StallTimeout(bytes));
}

TeacherHealth::Duration TeacherHealth::TransferTime(uint64_t bytes) const {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(options_.min_bytes_per_second)));
}

}  // namespace distill
