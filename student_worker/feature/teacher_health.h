// What a pool has learnt about one teacher, and what follows from it: when it is called again, how long it may take,
// when its work is given to another one too. Decisions only: time is an argument, nothing is sent from here.
//
// A teacher is
//   trusted    -> gets work by its load
//   away       -> cannot be reached; called again after 100 ms, doubling to 2 s (a restart takes seconds)
//   set aside  -> fell silent, or answered wrongly; gets nothing for 1 s, doubling with each further time to 5 minutes
//   on trial   -> after that: one request at a time, of which another teacher has a copy where there is one, until it
//                 has answered rightly; then trusted
// Its bad record fades: after `forgiven_after` right answers in a row it halves.
//
// Slow is not dead. How long a teacher may owe an answer grows with the time that its answers took (4 times the slowest
// of late), doubles with each silence, and grows with the size of the answer: one that is alive and computes for
// minutes is dropped a few times, and then waited for. Well before that, after 4 times its usual time, it counts as
// late, and another teacher is asked for the same.
//
// Thread-compatible; the pool's thread owns it.
#ifndef DISTILL_STUDENT_WORKER_FEATURE_TEACHER_HEALTH_H_
#define DISTILL_STUDENT_WORKER_FEATURE_TEACHER_HEALTH_H_

#include <chrono>
#include <cstdint>
#include <optional>

namespace distill {

class TeacherHealth {
 public:
  using Time = std::chrono::steady_clock::time_point;
  using Duration = std::chrono::steady_clock::duration;

  struct Options {
    // Calling again a teacher that cannot be reached.
    std::chrono::milliseconds min_backoff{100}, max_backoff{2000};
    // Rest of a teacher that fell silent or answered wrongly.
    std::chrono::milliseconds min_set_aside{1000}, max_set_aside{300000};
    // Time for one answer of a teacher that nothing is known of, and the most that one may ever take.
    std::chrono::milliseconds stall_timeout{30000}, max_stall_timeout{600000};
    // An answer is late after 4 times the usual, and never before this.
    std::chrono::milliseconds min_late{1000};
    // Added to both times for each byte of the answer: the slowest connection that is no fault.
    uint64_t min_bytes_per_second = 1 << 20;
    int forgiven_after = 32;
  };
  explicit TeacherHealth(const Options& options) : options_(options) {}

  // --- What happened ---
  // Not reached, or it ended the stream (restart, drain).
  void OnAway(Time now);
  // It owed an answer for longer than StallTimeout().
  void OnStall(Time now);
  // It answered with an error, with numbers that are none, or against the protocol.
  void OnWrong(Time now);
  // A right answer, `took` after it could begin with it. True when this ends a trial.
  bool OnAnswer(Duration took);
  // A sign that it worked on something for `took`, though the answer was not wanted any more.
  void OnAlive(Duration took);

  // --- What follows ---
  // Not to be called, nor given work, before this.
  Time resting_until() const { return resting_until_; }
  bool Rests(Time now) const { return now < resting_until_; }
  bool on_trial() const { return on_trial_; }
  // Usual time of an answer; nothing before the first one.
  std::optional<Duration> usual() const { return usual_; }
  // How long it may owe an answer of `bytes` before it is dropped.
  Duration StallTimeout(uint64_t bytes) const;
  // ... and before another one is asked too. `pool_usual`: of the others, for a teacher that has not answered yet.
  Duration LateAfter(uint64_t bytes, std::optional<Duration> pool_usual) const;
  // How long the last OnStall() or OnWrong() set it aside.
  Duration last_rest() const { return last_rest_; }

 private:
  void SetAside(Time now);
  Duration TransferTime(uint64_t bytes) const;

  Options options_;
  std::chrono::milliseconds backoff_{0};  // next one; 0: the first
  Time resting_until_{};
  Duration last_rest_{};
  bool on_trial_ = false;
  int strikes_ = 0;
  int right_in_a_row_ = 0;
  int stalls_ = 0;  // since the last answer
  std::optional<Duration> usual_;
  Duration slowest_{};  // of late
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_FEATURE_TEACHER_HEALTH_H_
