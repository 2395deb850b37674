#include "coordinator/core/decide.h"

#include <algorithm>
#include <cmath>

#include "common/str_cat.h"
#include "coordinator/core/rank_picker.h"
#include "coordinator/core/teachers.h"

namespace distill {
namespace {

std::string Seconds(double seconds) { return StrCat(std::round(seconds * 10) / 10, " s"); }
std::string Count(size_t n, std::string_view noun) { return StrCat(n, " ", noun, n == 1 ? "" : "s"); }

class Decider {
 public:
  Decider(double now, const ClusterState& state, const DecideOptions& options)
      : now_(now), state_(state), options_(options) {}

  std::vector<JobDecision> Run() {
    std::vector<JobDecision> decisions;
    for (const ActiveJob& job : state_.jobs) {
      JobDecision decision{job.id, job.status, job.lost_at};
      if (job.status.state == JobState::kRunning) DecideRunning(job, &decision);
      NoteMismatches(job, &decision);
      decisions.push_back(std::move(decision));
    }
    for (const JobDecision& decision : decisions) {
      if (decision.status.state != JobState::kRunning) continue;
      for (const RankMember& member : decision.status.ranks) taken_.insert(member.worker_id);
    }
    for (size_t i = 0; i < decisions.size(); ++i) {
      if (decisions[i].status.state == JobState::kQueued) DecideQueued(state_.jobs[i], &decisions[i]);
    }
    return decisions;
  }

 private:
  bool Grace() const { return now_ - state_.started <= options_.lease; }
  bool Alive(const Worker& worker) const { return IsAlive(now_, worker, options_); }
  const Worker* Find(const std::string& id) const {
    const auto found = state_.workers.find(id);
    return found == state_.workers.end() ? nullptr : &found->second;
  }

  static void End(JobState state, std::string reason, EventLevel level, JobDecision* decision) {
    decision->status.state = state;
    decision->status.reason = std::move(reason);
    decision->status.wait = JobWait::kNothing;
    decision->events.push_back({level, EventType::kEnded, decision->status.reason});
  }

  // Why the member does not hold its rank any more; "" while it does.
  std::string Lost(const RankMember& member, const ActiveJob& job) const {
    const Worker* worker = Find(member.worker_id);
    if (worker == nullptr) {
      return Grace() ? ""
                     : StrCat(member.worker_id, " did not return within ", Seconds(options_.lease),
                              " of the coordinator's restart");
    }
    if (worker->incarnation != member.incarnation) return StrCat(member.worker_id, " was restarted");
    if (!Alive(*worker)) {
      return StrCat(member.worker_id, " has been silent for ", Seconds(now_ - worker->last_seen), " (lease ",
                    Seconds(options_.lease), ")");
    }
    if (worker->draining) return StrCat(member.worker_id, " is shutting down");
    const double elsewhere = now_ - std::max(worker->job_since, job.assigned_at);
    if (worker->job_id != job.id && elsewhere > options_.idle_limit) {
      return StrCat(member.worker_id, " has been ",
                    worker->job_id.empty() ? "idle" : StrCat("busy with job ", worker->job_id), " for ",
                    Seconds(elsewhere), " instead of taking its rank");
    }
    return "";
  }

  void DecideRunning(const ActiveJob& job, JobDecision* decision) const {
    if (job.status.cancel_requested) return DecideCancelling(job, decision);
    if (job.failure && job.failure->kind == FailureKind::kJob) {
      return End(JobState::kFailed, StrCat(job.failure->worker_id, ": ", job.failure->message), EventLevel::kError,
                 decision);
    }
    std::string lost;
    for (const RankMember& member : job.status.ranks) {
      const std::string why = Lost(member, job);
      if (!why.empty()) StrAppend(&lost, lost.empty() ? "" : "; ", why);
    }
    if (job.failure) StrAppend(&lost, lost.empty() ? "" : "; ", job.failure->worker_id, ": ", job.failure->message);
    if (!lost.empty()) return LoseGroup(lost, decision);
    DescribeRunning(job, decision);
  }

  void DecideCancelling(const ActiveJob& job, JobDecision* decision) const {
    std::string working;
    for (const RankMember& member : job.status.ranks) {
      const Worker* worker = Find(member.worker_id);
      const bool may_return = worker == nullptr && Grace();
      const bool works =
          worker != nullptr && worker->incarnation == member.incarnation && Alive(*worker) && worker->job_id == job.id;
      if (may_return || works) StrAppend(&working, working.empty() ? "" : ", ", member.worker_id);
    }
    if (working.empty()) return End(JobState::kCancelled, CancelReason(job), EventLevel::kInfo, decision);
    decision->status.reason = StrCat("cancelling: ", working, " still to write a checkpoint and stop");
  }

  static std::string CancelReason(const ActiveJob& job) {
    return job.status.cancel_reason.empty() ? "cancelled by a user"
                                            : StrCat("cancelled by a user: ", job.status.cancel_reason);
  }

  void LoseGroup(const std::string& why, JobDecision* decision) const {
    JobStatus& status = decision->status;
    ++status.restarts;
    if (status.restarts > options_.max_restarts) {
      return End(JobState::kFailed,
                 StrCat("gave up after re-forming the group ", options_.max_restarts, " times; last: ", why),
                 EventLevel::kError, decision);
    }
    const uint64_t lost = status.generation++;
    status.state = JobState::kQueued;
    status.reason = why;
    status.wait = JobWait::kStudents;
    decision->lost_at = now_;
    decision->events.push_back({EventLevel::kWarning, EventType::kGroupLost,
                                StrCat("group lost: ", why, "; re-forming as generation ", status.generation,
                                       " (restart ", status.restarts, " of at most ", options_.max_restarts, ")"),
                                lost});
  }

  // Where a running job is: "stage 2 of 3 ('head')".
  static std::string Position(const ActiveJob& job) {
    const size_t stage = job.current_stage(), stages = job.plan->stages.size();
    if (stage >= stages) return "all stages are committed; rank 0 exports the student";
    return StrCat("stage ", stage + 1, " of ", stages, " ('", job.plan->stages[stage].name, "')");
  }

  // The job waits for a teacher; says so once.
  void WaitForTeacher(const ActiveJob& job, const TeacherMatch& match, JobDecision* decision) const {
    JobStatus& status = decision->status;
    status.reason = DescribeMissingTeacher(job, match);
    status.wait = JobWait::kTeacher;
    if (status.reason == job.status.reason) return;
    decision->events.push_back({EventLevel::kWarning, EventType::kTeacherMissing, status.reason});
  }

  void DescribeRunning(const ActiveJob& job, JobDecision* decision) const {
    JobStatus& status = decision->status;
    if (NeedOf(job).now) {
      const TeacherMatch match = MatchTeachers(now_, options_.lease, state_, job);
      if (match.usable.empty()) {
        // Right after a restart teachers have not called yet: what was true before stays.
        if (!Grace()) WaitForTeacher(job, match, decision);
        return;
      }
      if (status.wait == JobWait::kTeacher) {
        decision->events.push_back({EventLevel::kInfo, EventType::kTeacherFound,
                                    StrCat("teacher ", match.usable.front()->id, " is there; the job goes on")});
      }
    }
    status.wait = JobWait::kNothing;
    status.reason = Position(job);
  }

  void NoteMismatches(const ActiveJob& job, JobDecision* decision) const {
    const TeacherNeed need = NeedOf(job);
    if (!need.now && !need.later) return;
    for (const Worker* teacher : MatchTeachers(now_, options_.lease, state_, job).mismatched) {
      std::string text = DescribeMismatch(job, *teacher);
      if (job.noted.contains(text)) continue;
      decision->events.push_back({EventLevel::kWarning, EventType::kTeacherMismatch, text});
      decision->noted.push_back(std::move(text));
    }
  }

  // Students the job could be given now.
  std::vector<const Worker*> FreeStudents(const ActiveJob& job, const JobDecision& decision) const {
    std::vector<const Worker*> free;
    for (const auto& [id, worker] : state_.workers) {
      if (worker.kind != WorkerKind::kStudent || worker.draining || !Alive(worker) || taken_.contains(id)) continue;
      // Who has not called since the group broke may be the very one that died: its lease says nothing yet.
      if (decision.lost_at && worker.last_seen <= *decision.lost_at) continue;
      // A student that still unwinds another job is not there yet; one that unwinds this very job takes the new
      // generation as it comes.
      if (worker.job_id.empty() || worker.job_id == job.id) free.push_back(&worker);
    }
    return free;
  }

  size_t LiveStudents() const {
    size_t live = 0;
    for (const auto& [id, worker] : state_.workers) {
      live += worker.kind == WorkerKind::kStudent && !worker.draining && Alive(worker);
    }
    return live;
  }

  void DecideQueued(const ActiveJob& job, JobDecision* decision) {
    JobStatus& status = decision->status;
    if (status.cancel_requested) return End(JobState::kCancelled, CancelReason(job), EventLevel::kInfo, decision);
    if (!line_head_.empty()) {
      status.reason = StrCat("waiting behind job ", line_head_, ", which was submitted earlier");
      status.wait = JobWait::kLine;
      return;
    }
    if (NeedOf(job).now) {
      const TeacherMatch match = MatchTeachers(now_, options_.lease, state_, job);
      if (match.usable.empty()) {
        WaitForTeacher(job, match, decision);
        KeepStudents(*decision);
        return;
      }
    }
    const size_t needed = job.plan->students;
    const std::vector<const Worker*> free = FreeStudents(job, *decision);
    if (free.size() < needed) {
      const size_t live = LiveStudents();
      status.wait = JobWait::kStudents;
      status.reason = StrCat("waiting for ", Count(needed, "student"), ": ", free.size(), " free, ", live, " alive");
      if (live < needed) {
        StrAppend(&status.reason, "; start ", needed - live, " more: distill-student --coordinator ADDRESS");
      }
      if (live >= needed) line_head_ = job.id;
      KeepStudents(*decision);
      return;
    }
    status.ranks = PickRanks(status.ranks, free, needed);
    status.state = JobState::kRunning;
    std::string names;
    for (const RankMember& member : status.ranks) {
      taken_.insert(member.worker_id);
      StrAppend(&names, names.empty() ? "" : ", ", member.worker_id);
    }
    status.reason = Position(job);
    status.wait = JobWait::kNothing;
    decision->assigned = true;
    decision->events.push_back({EventLevel::kInfo, EventType::kGroupFormed,
                                StrCat("generation ", status.generation, ": ", names), status.generation});
  }

  // A job that lost its group a moment ago keeps its old students for itself: a process that restarts is back in
  // seconds, while a later job could hold them for hours. Jobs behind it may use others.
  void KeepStudents(const JobDecision& decision) {
    if (!decision.lost_at || now_ >= *decision.lost_at + options_.hold) return;
    for (const RankMember& member : decision.status.ranks) taken_.insert(member.worker_id);
  }

  const double now_;
  const ClusterState& state_;
  const DecideOptions& options_;
  std::set<std::string> taken_;  // students that hold a rank, or are kept for somebody
  std::string line_head_;        // the queued job that the others wait behind; "" while none
};

}  // namespace

bool IsAlive(double now, const Worker& worker, const DecideOptions& options) {
  return now - worker.last_seen <= options.lease;
}

std::vector<JobDecision> Decide(double now, const ClusterState& state, const DecideOptions& options) {
  return Decider(now, state, options).Run();
}

}  // namespace distill
