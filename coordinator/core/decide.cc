#include "coordinator/core/decide.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common/str_cat.h"
#include "common/zoo/archive_ref.h"
#include "coordinator/core/rank_picker.h"
#include "coordinator/core/teachers.h"

namespace distill {
namespace {

constexpr size_t kMostNamed = 4;  // students named in a reason

std::string Seconds(double seconds) { return StrCat(std::round(seconds * 10) / 10, " s"); }
std::string Count(size_t n, std::string_view noun) { return StrCat(n, " ", noun, n == 1 ? "" : "s"); }

void Append(std::string* list, std::string_view one, std::string_view separator) {
  StrAppend(list, list->empty() ? "" : separator, one);
}

bool HasGpu(const Worker& worker) { return worker.device.starts_with("cuda"); }

const SetAside* FindSetAside(const JobStatus& status, const Worker& worker) {
  for (const SetAside& one : status.set_aside) {
    if (one.worker_id == worker.id && one.incarnation == worker.incarnation) return &one;
  }
  return nullptr;
}

// Why a member does not hold its rank any more.
struct Loss {
  std::string why;       // "" while it does
  bool orderly = false;  // it said that it would leave
};

class Decider {
 public:
  Decider(double now, const ClusterState& state, const DecideOptions& options)
      : now_(now), state_(state), options_(options) {}

  std::vector<JobDecision> Run() {
    std::vector<JobDecision> decisions;
    for (const ActiveJob& job : state_.jobs) {
      JobDecision decision{job.id, job.status, job.lost_at, job.short_since, job.no_teacher_at};
      if (job.status.state == JobState::kRunning) DecideRunning(job, &decision);
      NoteMismatches(job, &decision);
      decisions.push_back(std::move(decision));
    }
    for (const JobDecision& decision : decisions) {
      if (decision.status.state != JobState::kRunning) continue;
      for (const RankMember& member : decision.status.ranks) taken_.insert(member.worker_id);
    }
    for (const auto& [id, worker] : state_.workers) {
      if (worker.kind == WorkerKind::kStudent && !worker.draining && Alive(worker)) spare_.push_back(&worker);
    }
    for (size_t i = 0; i < decisions.size(); ++i) {
      JobDecision& decision = decisions[i];
      if (decision.status.state == JobState::kQueued) DecideQueued(i, &decision);
      if (decision.status.state != JobState::kQueued) decision.short_since.reset();
    }
    return decisions;
  }

 private:
  bool Grace() const { return now_ <= state_.grace_until; }
  bool Alive(const Worker& worker) const { return IsAlive(now_, options_.lease, worker); }
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

  Loss Lost(const RankMember& member, const ActiveJob& job) const {
    const std::string& id = member.worker_id;
    const Worker* worker = Find(id);
    if (worker == nullptr) {
      if (Grace()) return {};
      return {StrCat(id, " did not return within ", Seconds(options_.restart_grace), " of the coordinator's restart")};
    }
    if (worker->incarnation != member.incarnation) {
      return {StrCat(id, " was restarted"), worker->drained_incarnation == member.incarnation};
    }
    if (!Alive(*worker)) {
      return {StrCat(id, " has been silent for ", Seconds(now_ - worker->last_seen), " (lease ",
                     Seconds(options_.lease), ")")};
    }
    if (worker->draining) return {StrCat(id, " is shutting down"), true};
    const double since = now_ - std::max(worker->job_since, job.assigned_at);
    if (worker->job_id != job.id && since > options_.idle_limit) {
      return {StrCat(id, " has been ", worker->job_id.empty() ? "idle" : StrCat("busy with job ", worker->job_id),
                     " for ", Seconds(since), " instead of taking its rank")};
    }
    if (worker->job_id == job.id && worker->generation != job.status.generation && since > options_.stuck_limit) {
      return {StrCat(id, " has been stuck in generation ", worker->generation, " for ", Seconds(since))};
    }
    return {};
  }

  void DecideRunning(const ActiveJob& job, JobDecision* decision) const {
    if (job.status.cancel_requested) return DecideCancelling(job, decision);
    for (const FailureReport& failure : job.failures) {
      if (failure.kind != FailureKind::kJob) continue;
      return End(JobState::kFailed, StrCat(failure.worker_id, ": ", failure.message), EventLevel::kError, decision);
    }
    std::string lost;
    bool counts = false;
    for (const RankMember& member : job.status.ranks) {
      const Loss loss = Lost(member, job);
      if (loss.why.empty()) continue;
      Append(&lost, loss.why, "; ");
      counts = counts || !loss.orderly;
    }
    for (const FailureReport& failure : job.failures) {
      Append(&lost, StrCat(failure.worker_id, ": ", failure.message), "; ");
      if (failure.kind == FailureKind::kWorker) {
        PutAside(failure, decision);
      } else {
        counts = true;
      }
    }
    if (!lost.empty()) return LoseGroup(job, lost, counts, decision);
    if (LacksTeacher(job, decision)) return;
    const double quiet = now_ - std::max({job.progress_at, job.assigned_at, job.no_teacher_at});
    if (options_.hang_limit > 0 && quiet > options_.hang_limit) {
      return LoseGroup(
          job, StrCat("nothing new from its ranks for ", Seconds(quiet), ", more than --hang-limit: one of them hangs"),
          /*counts=*/true, decision);
    }
    DescribeRunning(job, quiet, decision);
  }

  static void PutAside(const FailureReport& failure, JobDecision* decision) {
    JobStatus& status = decision->status;
    for (const RankMember& member : status.ranks) {
      if (member.worker_id != failure.worker_id) continue;
      std::erase_if(status.set_aside, [&](const SetAside& one) { return one.worker_id == member.worker_id; });
      status.set_aside.push_back({member.worker_id, member.incarnation, failure.message});
    }
    decision->events.push_back(
        {EventLevel::kError, EventType::kWorkerSetAside,
         StrCat(failure.worker_id,
                " is at fault and gets this job no more (until it is restarted): ", failure.message)});
  }

  void DecideCancelling(const ActiveJob& job, JobDecision* decision) const {
    std::string working;
    for (const RankMember& member : job.status.ranks) {
      const Worker* worker = Find(member.worker_id);
      const bool may_return = worker == nullptr && Grace();
      const bool works =
          worker != nullptr && worker->incarnation == member.incarnation && Alive(*worker) && worker->job_id == job.id;
      if (may_return || works) Append(&working, member.worker_id, ", ");
    }
    if (working.empty()) return End(JobState::kCancelled, CancelReason(job), EventLevel::kInfo, decision);
    if (job.cancel_at && now_ - *job.cancel_at > options_.cancel_grace) {
      return End(JobState::kCancelled,
                 StrCat(CancelReason(job), "; ", working, " did not stop within ", Seconds(options_.cancel_grace),
                        " and may have written no checkpoint"),
                 EventLevel::kWarning, decision);
    }
    decision->status.reason = StrCat("cancelling: ", working, " still to write a checkpoint and stop");
  }

  static std::string CancelReason(const ActiveJob& job) {
    return job.status.cancel_reason.empty() ? "cancelled by a user"
                                            : StrCat("cancelled by a user: ", job.status.cancel_reason);
  }

  void LoseGroup(const ActiveJob& job, const std::string& why, bool counts, JobDecision* decision) const {
    JobStatus& status = decision->status;
    const uint64_t steps = job.progress ? job.progress->total_step : 0;
    const bool progressed = steps > status.best_step || job.current_stage() > status.best_stage;
    status.best_step = std::max(status.best_step, steps);
    status.best_stage = std::max(status.best_stage, job.current_stage());
    if (progressed) status.fruitless = 0;
    const bool in_vain = counts && !progressed;
    if (in_vain) ++status.fruitless;
    ++status.restarts;
    if (status.fruitless > options_.max_restarts) {
      return End(JobState::kFailed,
                 StrCat("gave up after re-forming the group ", options_.max_restarts,
                        " times in a row without any progress; last: ", why),
                 EventLevel::kError, decision);
    }
    const uint64_t lost = status.generation++;
    status.state = JobState::kQueued;
    status.reason = why;
    status.wait = JobWait::kStudents;
    decision->lost_at = now_;
    std::string text = StrCat("group lost: ", why, "; re-forming as generation ", status.generation);
    if (in_vain) {
      StrAppend(&text, " (attempt ", status.fruitless, " without progress, of at most ", options_.max_restarts, ")");
    }
    decision->events.push_back({EventLevel::kWarning, EventType::kGroupLost, std::move(text), lost});
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

  // Whether the running job waits for a teacher; says so, and when one is there.
  bool LacksTeacher(const ActiveJob& job, JobDecision* decision) const {
    if (!NeedOf(job).now) return false;
    const TeacherMatch match = MatchTeachers(now_, options_.lease, state_, job);
    if (match.usable.empty()) {
      decision->no_teacher_at = now_;
      // Right after a restart teachers have not called yet: what was true before stays.
      if (!Grace()) WaitForTeacher(job, match, decision);
      return true;
    }
    if (decision->status.wait == JobWait::kTeacher) {
      decision->events.push_back({EventLevel::kInfo, EventType::kTeacherFound,
                                  StrCat("teacher ", match.usable.front()->id, " is there; the job goes on")});
    }
    return false;
  }

  // `quiet`: seconds without any news, while it could have gone on.
  void DescribeRunning(const ActiveJob& job, double quiet, JobDecision* decision) const {
    JobStatus& status = decision->status;
    status.reason = Position(job);
    const bool stalls = quiet > options_.stall_limit;
    if (stalls) {
      StrAppend(&status.reason, "; nothing new from its ranks for more than ", Seconds(options_.stall_limit));
      if (status.wait != JobWait::kProgress) {
        decision->events.push_back({EventLevel::kWarning, EventType::kStalled, status.reason});
      }
    }
    status.wait = stalls ? JobWait::kProgress : JobWait::kNothing;
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

  // Whether the student holds the network that the job trains; those of the zoo are everywhere.
  static bool HasArchive(const Worker& worker, const ActiveJob& job) {
    const std::optional<ArchiveRef> archive = ParseArchiveRef(job.plan->student.arch);
    return !archive || std::any_of(worker.models.begin(), worker.models.end(), [&](const ServedModelInfo& model) {
      return ArchiveRef{model.name, model.digest} == *archive;
    });
  }

  // Why a live student cannot do the job, whatever it does now; "" when it could.
  std::string Unfit(const Worker& worker, const ActiveJob& job, const JobStatus& status) const {
    if (const SetAside* aside = FindSetAside(status, worker)) return StrCat("is set aside: ", aside->reason);
    if (worker.cordoned()) return StrCat("is cordoned: ", worker.faults.rbegin()->second);
    if (IsStuck(now_, worker, options_)) return StrCat("is stuck in job ", worker.job_id);
    if (job.plan->device == "cuda" && !HasGpu(worker)) return "has no GPU, the job asks for device cuda";
    if (!HasArchive(worker, job)) return StrCat("has not the archive ", ShortArch(job.plan->student.arch));
    return "";
  }

  // Students the job could have.
  struct Supply {
    std::vector<const Worker*> free;      // now, all of one kind of device
    size_t live = 0;                      // with the others of that kind
    size_t other_kind = 0;                // live ones with the other kind of device, when both kinds would do
    std::vector<const Worker*> could_do;  // live ones of each kind of which there are enough
    size_t set_aside = 0;                 // live ones that would do, had they not failed it
    std::string unfit;                    // who is alive and cannot do it, and why
  };
  Supply SupplyFor(const ActiveJob& job, const JobDecision& decision) const {
    struct Kind {
      std::vector<const Worker*> free, live;
    } kinds[2];  // without a GPU, with one
    Supply supply;
    size_t unfit = 0;
    for (const auto& [id, worker] : state_.workers) {
      if (worker.kind != WorkerKind::kStudent || worker.draining || !Alive(worker)) continue;
      if (const std::string why = Unfit(worker, job, decision.status); !why.empty()) {
        if (++unfit <= kMostNamed) Append(&supply.unfit, StrCat(id, " ", why), "; ");
        if (FindSetAside(decision.status, worker) != nullptr) ++supply.set_aside;
        continue;
      }
      Kind& kind = kinds[HasGpu(worker)];
      kind.live.push_back(&worker);
      if (taken_.contains(id) || reserved_.contains(id)) continue;
      // Who has not called since the group broke may be the very one that died: its lease says nothing yet.
      if (decision.lost_at && worker.last_seen <= *decision.lost_at) continue;
      // A student that still unwinds another job is not there yet; one that unwinds this very job takes the new
      // generation as it comes.
      if (worker.job_id.empty() || worker.job_id == job.id) kind.free.push_back(&worker);
    }
    if (unfit > kMostNamed) StrAppend(&supply.unfit, "; and ", unfit - kMostNamed, " more");
    const size_t needed = job.plan->students;
    const bool gpu_first = job.plan->device != "cpu";
    size_t chosen = gpu_first;
    const auto better = [&](size_t a, size_t b) {  // enough free, then enough alive, then more of them
      const auto rank = [&](size_t k) {
        return std::make_tuple(kinds[k].free.size() >= needed, kinds[k].live.size() >= needed, kinds[k].live.size());
      };
      return rank(a) > rank(b);
    };
    if (better(1 - chosen, chosen)) chosen = 1 - chosen;
    supply.free = std::move(kinds[chosen].free);
    supply.live = kinds[chosen].live.size();
    supply.other_kind = kinds[1 - chosen].live.size();
    for (const Kind& kind : kinds) {
      if (kind.live.size() < needed) continue;
      supply.could_do.insert(supply.could_do.end(), kind.live.begin(), kind.live.end());
    }
    return supply;
  }

  // Every student that was here lately has failed the job by a fault of its own: then the job is what they share.
  bool TriedEverywhere(const ActiveJob& job, const JobStatus& status) const {
    if (status.set_aside.empty() || Grace()) return false;
    size_t tried = 0;
    for (const auto& [id, worker] : state_.workers) {
      if (worker.kind != WorkerKind::kStudent || now_ - worker.last_seen > options_.hold) continue;
      if (FindSetAside(status, worker) != nullptr) {
        ++tried;
      } else if ((job.plan->device != "cuda" || HasGpu(worker)) && HasArchive(worker, job)) {
        return false;
      }
    }
    return tried > 0;
  }

  // Whether a student is neither taken nor reserved. Each is looked at once over all jobs, so that a long queue behind
  // a fleet at work costs nothing.
  bool AnySpare() {
    while (!spare_.empty() && (taken_.contains(spare_.back()->id) || reserved_.contains(spare_.back()->id))) {
      spare_.pop_back();
    }
    return !spare_.empty();
  }

  // The job that this one waits behind: the earliest of those that students it could have are reserved for.
  std::optional<size_t> AheadOf(const Supply& supply) const {
    std::optional<size_t> first;
    for (const Worker* worker : supply.could_do) {
      const auto found = reserved_.find(worker->id);
      if (found != reserved_.end() && (!first || found->second < *first)) first = found->second;
    }
    return first;
  }

  void WaitBehind(size_t ahead, JobStatus* status) const {
    status->reason = StrCat("waiting behind job ", state_.jobs[ahead].id, ", which was submitted earlier");
    status->wait = JobWait::kLine;
  }

  // The job lacks students, and would not if it had not set some aside. True: for too long, and it has ended.
  bool LacksThoseSetAside(const Supply& supply, size_t needed, JobDecision* decision) const {
    JobStatus& status = decision->status;
    if (supply.live >= needed || supply.live + supply.set_aside < needed || Grace()) {
      decision->short_since.reset();
      return false;
    }
    if (!decision->short_since) decision->short_since = now_;
    if (now_ - *decision->short_since <= options_.set_aside_limit) {
      StrAppend(&status.reason, ", or restart those set aside; the job fails when that has lasted ",
                Seconds(options_.set_aside_limit));
      return false;
    }
    std::string said;
    for (const SetAside& one : status.set_aside) Append(&said, StrCat(one.worker_id, ": ", one.reason), "; ");
    End(JobState::kFailed,
        StrCat("needs ", Count(needed, "student"), ", and for ", Seconds(options_.set_aside_limit),
               " there were not enough but for those that failed it (", said,
               "); mend and restart them or start others, then: distillctl resume ", decision->job_id),
        EventLevel::kError, decision);
    return true;
  }

  void DecideQueued(size_t index, JobDecision* decision) {
    const ActiveJob& job = state_.jobs[index];
    JobStatus& status = decision->status;
    if (status.cancel_requested) return End(JobState::kCancelled, CancelReason(job), EventLevel::kInfo, decision);
    // Of ranks that failed by a fault of their own in the group that another one's report had ended already.
    for (const FailureReport& failure : job.failures) {
      const auto known = [&](const SetAside& one) { return one.worker_id == failure.worker_id; };
      if (failure.kind != FailureKind::kWorker ||
          std::any_of(status.set_aside.begin(), status.set_aside.end(), known)) {
        continue;
      }
      PutAside(failure, decision);
    }
    if (TriedEverywhere(job, status)) {
      std::string said;
      for (const SetAside& one : status.set_aside) Append(&said, StrCat(one.worker_id, ": ", one.reason), "; ");
      return End(JobState::kFailed, StrCat("every live student failed it: ", said), EventLevel::kError, decision);
    }
    if (line_head_ && status.set_aside.empty() && !AnySpare()) return WaitBehind(*line_head_, &status);
    if (NeedOf(job).now) {
      const TeacherMatch match = MatchTeachers(now_, options_.lease, state_, job);
      if (match.usable.empty()) {
        WaitForTeacher(job, match, decision);
        KeepStudents(*decision);
        return;
      }
    }
    const size_t needed = job.plan->students;
    const Supply supply = SupplyFor(job, *decision);
    if (supply.free.size() < needed) {
      status.wait = JobWait::kStudents;
      status.reason =
          StrCat("waiting for ", Count(needed, "student"), ": ", supply.free.size(), " free, ", supply.live, " alive");
      if (supply.other_kind > 0) {
        StrAppend(&status.reason, " (", supply.other_kind, " more with another kind of device: a group has one kind)");
      }
      if (!supply.unfit.empty()) StrAppend(&status.reason, "; ", supply.unfit);
      if (supply.live < needed) {
        StrAppend(&status.reason, "; start ", needed - supply.live, " more: distill-student --coordinator ADDRESS");
      }
      if (LacksThoseSetAside(supply, needed, decision)) return;
      if (supply.live >= needed) {
        if (const auto ahead = AheadOf(supply)) WaitBehind(*ahead, &status);
        if (!line_head_) line_head_ = index;
        for (const Worker* worker : supply.could_do) reserved_.emplace(worker->id, index);
      }
      KeepStudents(*decision);
      return;
    }
    status.ranks = PickRanks(status.ranks, supply.free, needed);
    status.state = JobState::kRunning;
    std::string names;
    for (const RankMember& member : status.ranks) {
      taken_.insert(member.worker_id);
      Append(&names, member.worker_id, ", ");
    }
    status.reason = Position(job);
    status.wait = JobWait::kNothing;
    decision->assigned = true;
    decision->events.push_back({EventLevel::kInfo, EventType::kGroupFormed,
                                StrCat("generation ", status.generation, ": ", names), status.generation});
  }

  // A job that lost its group a moment ago keeps its old students for itself: a process that restarts is back in
  // seconds, while a later job could hold them for hours. Jobs behind it may use others, and those set aside for it.
  void KeepStudents(const JobDecision& decision) {
    if (!decision.lost_at || now_ >= *decision.lost_at + options_.hold) return;
    for (const RankMember& member : decision.status.ranks) {
      const Worker* worker = Find(member.worker_id);
      if (worker == nullptr || FindSetAside(decision.status, *worker) == nullptr) taken_.insert(member.worker_id);
    }
  }

  const double now_;
  const ClusterState& state_;
  const DecideOptions& options_;
  std::set<std::string> taken_;             // students that hold a rank, or are kept for somebody
  std::map<std::string, size_t> reserved_;  // students that a queued job waits for: the first such job's index
  std::optional<size_t> line_head_;         // the first queued job that waits for students, of which there are enough
  std::vector<const Worker*> spare_;        // live students; AnySpare() drops those that are taken or reserved
};

}  // namespace

std::vector<JobDecision> Decide(double now, const ClusterState& state, const DecideOptions& options) {
  return Decider(now, state, options).Run();
}

void NoteAstray(double now, ClusterState* state) {
  std::map<std::string, const ActiveJob*> holds;  // running job by member
  for (const ActiveJob& job : state->jobs) {
    if (job.status.state != JobState::kRunning) continue;
    for (const RankMember& member : job.status.ranks) holds[member.worker_id] = &job;
  }
  for (auto& [id, worker] : state->workers) {
    const auto held = holds.find(id);
    const bool right = worker.job_id.empty() || (held != holds.end() && held->second->id == worker.job_id &&
                                                 held->second->status.generation == worker.generation);
    if (right) {
      worker.astray_since.reset();
    } else if (!worker.astray_since) {
      worker.astray_since = now;
    }
  }
}

bool IsStuck(double now, const Worker& worker, const DecideOptions& options) {
  return worker.astray_since && now - *worker.astray_since > options.stuck_limit;
}

void ExcuseSilence(double now, double lease, ClusterState* state) {
  for (auto& [id, worker] : state->workers) {
    if (IsAlive(now, lease, worker) && worker.last_seen >= worker.excused) worker.excused = now;
  }
  // Who has not returned yet could not: nobody listened.
  if (now <= state->grace_until) state->grace_until = std::max(state->grace_until, now + lease);
}

}  // namespace distill
