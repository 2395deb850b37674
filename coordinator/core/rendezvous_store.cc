#include "coordinator/core/rendezvous_store.h"

#include <pthread.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "common/steady_wait.h"
#include "common/str_cat.h"

namespace distill {
namespace {

Status CheckKey(const std::string& key) {
  if (key.empty()) return absl::InvalidArgumentError("rendezvous: the key is empty");
  if (key.size() <= RendezvousStore::kMaxKeyBytes) return OkStatus();
  return absl::InvalidArgumentError(
      StrCat("rendezvous: a key of ", key.size(), " bytes; at most ", RendezvousStore::kMaxKeyBytes, " are allowed"));
}

Status CheckKeys(const std::vector<std::string>& keys) {
  if (keys.empty()) return absl::InvalidArgumentError("rendezvous: no key was given");
  if (keys.size() > RendezvousStore::kMaxKeysPerCall) {
    return absl::InvalidArgumentError(StrCat("rendezvous: ", keys.size(), " keys in one call; at most ",
                                             RendezvousStore::kMaxKeysPerCall, " are allowed"));
  }
  for (const std::string& key : keys) DISTILL_RETURN_IF_ERROR(CheckKey(key));
  return OkStatus();
}

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

RendezvousStore::Deferred RendezvousStore::Open(const std::string& job_id, uint64_t generation) {
  absl::MutexLock lock(&mutex_);
  Space& space = spaces_[job_id];
  if (space.closed || space.generation >= generation) return {};
  space = Space{.generation = generation};
  return TakeIf([&](const Wait& wait) { return wait.scope.job_id == job_id && wait.scope.generation != generation; },
                [&](const Wait&) {
                  return absl::AbortedError(
                      StrCat("job ", job_id, " is at generation ", generation, " now; wait for a new assignment"));
                });
}

RendezvousStore::Deferred RendezvousStore::Close(const std::string& job_id) {
  absl::MutexLock lock(&mutex_);
  spaces_[job_id] = Space{.closed = true};
  return TakeIf([&](const Wait& wait) { return wait.scope.job_id == job_id; },
                [&](const Wait&) { return absl::AbortedError(StrCat("job ", job_id, " has ended")); });
}

StatusOr<RendezvousStore::Space*> RendezvousStore::Find(const Scope& scope) {
  const auto found = spaces_.find(scope.job_id);
  if (found == spaces_.end()) {
    return absl::AbortedError(StrCat("job '", scope.job_id, "' is not running here; wait for a new assignment"));
  }
  if (found->second.closed) return absl::AbortedError(StrCat("job ", scope.job_id, " has ended"));
  if (found->second.generation == scope.generation) return &found->second;
  return absl::AbortedError(StrCat("job ", scope.job_id, " is at generation ", found->second.generation, ", not ",
                                   scope.generation, "; wait for a new assignment"));
}

Status RendezvousStore::Put(Space* space, const std::string& key, std::string value) {
  if (value.size() > kMaxValueBytes) {
    return absl::InvalidArgumentError(
        StrCat("rendezvous: a value of ", value.size(), " bytes; at most ", kMaxValueBytes, " are allowed"));
  }
  const auto found = space->values.find(key);
  const size_t before = found == space->values.end() ? 0 : key.size() + found->second.size();
  const size_t bytes = space->bytes - before + key.size() + value.size();
  if (bytes > kMaxScopeBytes) {
    return absl::ResourceExhaustedError(StrCat("rendezvous: the job's keys exceed ", kMaxScopeBytes, " bytes"));
  }
  space->bytes = bytes;
  space->values[key] = std::move(value);
  return OkStatus();
}

void RendezvousStore::TakeCompleted(const Scope& scope, const Space& space, const std::string& key,
                                    Deferred* deferred) {
  for (auto it = waits_.begin(); it != waits_.end();) {
    const Wait& wait = it->second;
    const bool about =
        wait.scope.job_id == scope.job_id && std::find(wait.keys.begin(), wait.keys.end(), key) != wait.keys.end();
    if (!about || !HasAll(space.values, wait.keys)) {
      ++it;
      continue;
    }
    deferred->push_back([done = wait.done, value = space.values.at(wait.keys.front())] { done(value); });
    it = waits_.erase(it);
  }
}

RendezvousStore::Deferred RendezvousStore::TakeIf(const std::function<bool(const Wait&)>& chosen,
                                                  const std::function<Status(const Wait&)>& why) {
  Deferred deferred;
  for (auto it = waits_.begin(); it != waits_.end();) {
    if (!chosen(it->second)) {
      ++it;
      continue;
    }
    deferred.push_back([done = it->second.done, status = why(it->second)] { done(status); });
    it = waits_.erase(it);
  }
  return deferred;
}

Status RendezvousStore::Set(const Scope& scope, const std::string& key, const std::string& value) {
  DISTILL_RETURN_IF_ERROR(CheckKey(key));
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
    DISTILL_RETURN_IF_ERROR(Put(space, key, value));
    TakeCompleted(scope, *space, key, &deferred);
  }
  Run(deferred);
  return OkStatus();
}

StatusOr<std::string> RendezvousStore::Get(const Scope& scope, const std::string& key) {
  DISTILL_RETURN_IF_ERROR(CheckKey(key));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(const Space* space, Find(scope));
  const auto found = space->values.find(key);
  if (found == space->values.end()) return absl::NotFoundError(StrCat("rendezvous: no key '", key, "'"));
  return found->second;
}

StatusOr<int64_t> RendezvousStore::Add(const Scope& scope, const std::string& key, int64_t amount) {
  DISTILL_RETURN_IF_ERROR(CheckKey(key));
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
    DISTILL_RETURN_IF_ERROR(Put(space, key, StrCat(sum)));
    TakeCompleted(scope, *space, key, &deferred);
  }
  Run(deferred);
  return sum;
}

StatusOr<std::string> RendezvousStore::CompareSet(const Scope& scope, const std::string& key,
                                                  const std::string& expected, const std::string& desired) {
  DISTILL_RETURN_IF_ERROR(CheckKey(key));
  Deferred deferred;
  {
    absl::MutexLock lock(&mutex_);
    DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
    const auto found = space->values.find(key);
    const bool absent = found == space->values.end();
    if (absent ? !expected.empty() : found->second != expected) return absent ? std::string() : found->second;
    DISTILL_RETURN_IF_ERROR(Put(space, key, desired));
    TakeCompleted(scope, *space, key, &deferred);
  }
  Run(deferred);
  return desired;
}

StatusOr<bool> RendezvousStore::Check(const Scope& scope, const std::vector<std::string>& keys) {
  DISTILL_RETURN_IF_ERROR(CheckKeys(keys));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(const Space* space, Find(scope));
  return HasAll(space->values, keys);
}

StatusOr<bool> RendezvousStore::Delete(const Scope& scope, const std::string& key) {
  DISTILL_RETURN_IF_ERROR(CheckKey(key));
  absl::MutexLock lock(&mutex_);
  DISTILL_ASSIGN_OR_RETURN(Space * space, Find(scope));
  const auto found = space->values.find(key);
  if (found == space->values.end()) return false;
  space->bytes -= key.size() + found->second.size();
  space->values.erase(found);
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
  if (const Status valid = CheckKeys(keys); !valid.ok()) {
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
      waits_[ticket] = {scope, keys, SteadyNow() + std::clamp(timeout, absl::ZeroDuration(), kMaxWait),
                        std::move(done)};
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
    done = std::move(found->second.done);
    waits_.erase(found);
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
