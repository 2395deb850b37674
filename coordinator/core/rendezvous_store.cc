#include "coordinator/core/rendezvous_store.h"

#include <pthread.h>

#include <algorithm>
#include <iterator>

#include "absl/strings/numbers.h"
#include "common/rendezvous/kv_limits.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

bool HasAll(const std::map<std::string, std::string>& values, const std::vector<std::string>& keys) {
  return std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return values.contains(key); });
}

}  // namespace

RendezvousStore::RendezvousStore() : expire_([this] { ExpireLoop(); }) {
  pthread_setname_np(expire_.native_handle(), "kv-expire");
}

RendezvousStore::~RendezvousStore() {
  Deferred left;
  {
    absl::MutexLock lock(&mutex_);
    stop_ = true;
    left = TakeIf([](const Wait&) { return true; },
                  [](const Wait&) { return absl::UnavailableError("the coordinator is stopping"); });
  }
  Run(left);
  expire_.join();
}

void RendezvousStore::Run(const Deferred& deferred) {
  for (const auto& call : deferred) call();
}

RendezvousStore::Deferred RendezvousStore::Open(const std::string& job_id, uint64_t generation,
                                                const std::vector<RankMember>& members) {
  absl::MutexLock lock(&mutex_);
  Deferred deferred;
  const auto found = spaces_.find(job_id);
  if (found == spaces_.end() || found->second.generation < generation) {
    deferred = TakeIf([&](const Wait& wait) { return wait.scope.job_id == job_id; },
                      [&](const Wait&) {
                        return absl::AbortedError(StrCat("job ", job_id, " is at generation ", generation,
                                                         " now; wait for a new assignment"));
                      });
    spaces_[job_id] = Space{.generation = generation};
  }
  Space& space = spaces_[job_id];
  space.members.clear();
  for (const RankMember& member : members) space.members.emplace(member.worker_id, member.incarnation);
  return deferred;
}

RendezvousStore::Deferred RendezvousStore::Close(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  Deferred deferred = TakeIf(
      [&](const Wait& wait) { return wait.scope.job_id == job_id; },
      [&](const Wait&) {
        return absl::AbortedError(StrCat("nobody has a rank of job ", job_id, " any more; wait for a new assignment"));
      });
  spaces_.erase(job_id);
  return deferred;
}

StatusOr<RendezvousStore::Space*> RendezvousStore::Find(const Scope& scope) {
  const auto found = spaces_.find(scope.job_id);
  if (found == spaces_.end()) {
    return absl::AbortedError(StrCat("job '", scope.job_id, "' is not running here; wait for a new assignment"));
  }
  Space& space = found->second;
  if (space.generation != scope.generation) {
    return absl::AbortedError(StrCat("job ", scope.job_id, " is at generation ", space.generation, ", not ",
                                     scope.generation, "; wait for a new assignment"));
  }
  if (!space.members.empty() && !space.members.contains({scope.caller.worker_id, scope.caller.incarnation})) {
    return absl::AbortedError(StrCat("this process of worker '", scope.caller.worker_id, "' holds no rank of job ",
                                     scope.job_id, "; wait for a new assignment"));
  }
  return &space;
}

Status RendezvousStore::Put(Space* space, const std::string& key, std::string value, Deferred* deferred) {
  DISTILL_RETURN_IF_ERROR(CheckKvValue(key, value));
  const auto found = space->values.find(key);
  const size_t before = found == space->values.end() ? 0 : key.size() + found->second.size();
  const size_t bytes = space->bytes - before + key.size() + value.size();
  if (bytes > kKvMaxScopeBytes) {
    return absl::ResourceExhaustedError(StrCat("rendezvous: the job's keys exceed ", kKvMaxScopeBytes, " bytes"));
  }
  space->bytes = bytes;
  const bool is_new = found == space->values.end();
  space->values[key] = std::move(value);
  if (is_new) TakeCompleted(space, key, deferred);
  return OkStatus();
}

RendezvousStore::Wait RendezvousStore::Remove(std::map<uint64_t, Wait>::iterator wait) {
  if (const auto space = spaces_.find(wait->second.scope.job_id); space != spaces_.end()) {
    for (const std::string& key : wait->second.keys) {
      const auto tickets = space->second.waiting.find(key);
      if (tickets == space->second.waiting.end()) continue;
      tickets->second.erase(wait->first);
      if (tickets->second.empty()) space->second.waiting.erase(tickets);
    }
  }
  Wait removed = std::move(wait->second);
  waits_.erase(wait);
  return removed;
}

void RendezvousStore::TakeCompleted(Space* space, const std::string& key, Deferred* deferred) {
  const auto tickets = space->waiting.find(key);
  if (tickets == space->waiting.end()) return;
  std::vector<uint64_t> complete;
  for (const uint64_t ticket : tickets->second) {
    if (--waits_.at(ticket).missing == 0) complete.push_back(ticket);
  }
  for (const uint64_t ticket : complete) {
    Wait wait = Remove(waits_.find(ticket));
    deferred->push_back([done = std::move(wait.done), value = space->values.at(wait.keys.front())] { done(value); });
  }
}

RendezvousStore::Deferred RendezvousStore::TakeIf(const std::function<bool(const Wait&)>& chosen,
                                                  const std::function<Status(const Wait&)>& why) {
  Deferred deferred;
  for (auto it = waits_.begin(); it != waits_.end();) {
    const auto next = std::next(it);
    if (chosen(it->second)) {
      Wait wait = Remove(it);
      deferred.push_back([done = std::move(wait.done), status = why(wait)] { done(status); });
    }
    it = next;
  }
  return deferred;
}

Status RendezvousStore::Set(const Scope& scope, const std::string& key, const std::string& value) {
  DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
    DISTILL_RETURN_IF_ERROR(Put(space, key, value, &deferred));
  }
  Run(deferred);
  return OkStatus();
}

StatusOr<std::string> RendezvousStore::Get(const Scope& scope, const std::string& key) {
  DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(const Space* space, Find(scope));
  const auto found = space->values.find(key);
  if (found == space->values.end()) return absl::NotFoundError(StrCat("rendezvous: no key '", key, "'"));
  return found->second;
}

StatusOr<int64_t> RendezvousStore::Add(const Scope& scope, const std::string& key, int64_t amount) {
  DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  Deferred deferred;
  int64_t sum = 0;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
    int64_t present = 0;
    const auto found = space->values.find(key);
    if (found != space->values.end() && !absl::SimpleAtoi(found->second, &present)) {
      return absl::InvalidArgumentError(StrCat("rendezvous: the value of '", key, "' is no number"));
    }
    if (__builtin_add_overflow(present, amount, &sum)) {
      return absl::InvalidArgumentError(StrCat("rendezvous: '", key, "' overflows"));
    }
    DISTILL_RETURN_IF_ERROR(Put(space, key, StrCat(sum), &deferred));
  }
  Run(deferred);
  return sum;
}

StatusOr<std::string> RendezvousStore::CompareSet(const Scope& scope, const std::string& key,
                                                  const std::string& expected, const std::string& desired) {
  DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
    const auto found = space->values.find(key);
    const bool absent = found == space->values.end();
    if (absent ? !expected.empty() : found->second != expected) return absent ? std::string() : found->second;
    DISTILL_RETURN_IF_ERROR(Put(space, key, desired, &deferred));
  }
  Run(deferred);
  return desired;
}

StatusOr<bool> RendezvousStore::Check(const Scope& scope, const std::vector<std::string>& keys) {
  DISTILL_RETURN_IF_ERROR(CheckKvKeys(keys));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(const Space* space, Find(scope));
  return HasAll(space->values, keys);
}

StatusOr<bool> RendezvousStore::Delete(const Scope& scope, const std::string& key) {
  DISTILL_RETURN_IF_ERROR(CheckKvKey(key));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
  const auto found = space->values.find(key);
  if (found == space->values.end()) return false;
  space->bytes -= key.size() + found->second.size();
  space->values.erase(found);
  if (const auto tickets = space->waiting.find(key); tickets != space->waiting.end()) {
    for (const uint64_t ticket : tickets->second) ++waits_.at(ticket).missing;
  }
  return true;
}

StatusOr<uint64_t> RendezvousStore::Count(const Scope& scope) {
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(const Space* space, Find(scope));
  return static_cast<uint64_t>(space->values.size());
}

uint64_t RendezvousStore::WaitFor(const Scope& scope, const std::vector<std::string>& keys, absl::Duration timeout,
                                  WaitDone done) {
  StatusOr<std::string> answer = std::string();
  if (const Status valid = CheckKvKeys(keys); !valid.ok()) {
    answer = valid;
  } else {
    absl::MutexLock lock(&mutex_);
    const StatusOr<Space*> space = Find(scope);
    if (!space.ok()) {
      answer = space.status();
    } else if (HasAll((*space)->values, keys)) {
      answer = (*space)->values.at(keys.front());
    } else if (waits_.size() >= kMaxWaits) {
      answer = absl::ResourceExhaustedError(StrCat("rendezvous: more than ", kMaxWaits, " calls wait"));
    } else if (stop_) {
      answer = absl::UnavailableError("the coordinator is stopping");
    } else {
      const uint64_t ticket = next_ticket_++;
      Wait& wait = waits_[ticket];
      wait.scope = scope;
      for (const std::string& key : keys) {
        if (!(*space)->waiting[key].insert(ticket).second) continue;  // named twice
        wait.keys.push_back(key);
        wait.missing += !(*space)->values.contains(key);
      }
      wait.deadline = SteadyNow() + std::clamp(timeout, absl::ZeroDuration(), kMaxWait);
      wait.done = std::move(done);
      waits_changed_ = true;
      return ticket;
    }
  }
  done(std::move(answer));
  return 0;
}

void RendezvousStore::CancelWait(uint64_t ticket) {
  WaitDone done;
  {
    absl::MutexLock lock(&mutex_);
    const auto found = waits_.find(ticket);
    if (found == waits_.end()) return;
    done = Remove(found).done;
  }
  done(absl::CancelledError("the caller stopped waiting"));
}

Status RendezvousStore::Late(const Wait& wait) const {
  const auto space = spaces_.find(wait.scope.job_id);
  for (const std::string& key : wait.keys) {
    if (space != spaces_.end() && space->second.values.contains(key)) continue;
    return absl::DeadlineExceededError(
        StrCat("rendezvous: key '", key, "' did not appear in time; is a rank missing?"));
  }
  return absl::DeadlineExceededError("rendezvous: the keys did not appear in time");
}

void RendezvousStore::ExpireLoop() {
  while (true) {
    Deferred expired;
    {
      absl::MutexLock lock(&mutex_);
      absl::Duration earliest = absl::InfiniteDuration();
      for (const auto& [ticket, wait] : waits_) earliest = std::min(earliest, wait.deadline);
      waits_changed_ = false;
      const auto woken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || waits_changed_; };
      AwaitFor(&mutex_, absl::Condition(&woken), earliest - SteadyNow());
      if (stop_) return;
      const absl::Duration now = SteadyNow();
      expired =
          TakeIf([&](const Wait& wait) { return wait.deadline <= now; }, [&](const Wait& wait) { return Late(wait); });
    }
    Run(expired);
  }
}

}  // namespace distill
