// The key-value store through which the ranks of a job's generation find each other. In memory; nothing survives the
// process.
//
// A scope is a job and its present generation. Opening a newer generation, or closing the job's scope, drops its keys
// and ends its waits with kAborted; calls for any other generation get kAborted, and so do calls of processes that hold
// no rank in it.
//
// Thread-safe. Waits cost no thread: the answer comes through a callback, exactly once, never under a lock. One thread,
// "kv-expire", ends waits whose time is up.
#ifndef DISTILL_COORDINATOR_CORE_RENDEZVOUS_STORE_H_
#define DISTILL_COORDINATOR_CORE_RENDEZVOUS_STORE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rendezvous/kv_client.h"
#include "common/status.h"
#include "coordinator/store/job_record.h"

namespace distill {

class RendezvousStore {
 public:
  static constexpr size_t kMaxKeyBytes = kKvMaxKeyBytes;
  static constexpr size_t kMaxValueBytes = kKvMaxValueBytes;
  static constexpr size_t kMaxScopeBytes = kKvMaxScopeBytes;
  static constexpr size_t kMaxKeysPerCall = 1024;
  static constexpr size_t kMaxWaits = 4096;  // over all scopes
  static constexpr absl::Duration kMaxWait = absl::Minutes(10);

  struct Scope {
    std::string job_id;
    uint64_t generation = 0;
    RankMember caller;  // who calls
  };
  // What is left to call once no lock is held.
  using Deferred = std::vector<std::function<void()>>;

  RendezvousStore();
  ~RendezvousStore();  // ends all waits with kUnavailable, joins the thread

  // The job's scope is now that of `generation`, for its `members`; an empty list lets everybody in. Keys of the same
  // generation stay. Run the result when no lock is held.
  [[nodiscard]] Deferred Open(const std::string& job_id, uint64_t generation, const std::vector<RankMember>& members);
  // Nobody has a rank of the job now.
  [[nodiscard]] Deferred Close(const std::string& job_id);
  static void Run(const Deferred& deferred);

  // kInvalidArgument: empty or too long key, too long value, too many keys. kResourceExhausted: the scope or the store
  // is full. kAborted: not the job's present generation.
  Status Set(const Scope& scope, const std::string& key, const std::string& value);
  // kNotFound when absent.
  StatusOr<std::string> Get(const Scope& scope, const std::string& key);
  // kInvalidArgument when the present value is no number, or the sum overflows.
  StatusOr<int64_t> Add(const Scope& scope, const std::string& key, int64_t amount);
  // The value afterwards; "" when the key is absent and `expected` is not empty.
  StatusOr<std::string> CompareSet(const Scope& scope, const std::string& key, const std::string& expected,
                                   const std::string& desired);
  StatusOr<bool> Check(const Scope& scope, const std::vector<std::string>& keys);
  StatusOr<bool> Delete(const Scope& scope, const std::string& key);
  StatusOr<uint64_t> Count(const Scope& scope);

  // `done` gets the first key's value once all keys exist, perhaps before this returns. kDeadlineExceeded after
  // `timeout` (capped at kMaxWait); the errors above. Returns a ticket for CancelWait, 0 when `done` was called
  // already.
  using WaitDone = std::function<void(StatusOr<std::string>)>;
  uint64_t WaitFor(const Scope& scope, const std::vector<std::string>& keys, absl::Duration timeout, WaitDone done);
  // Ends the wait with kCancelled if it still waits.
  void CancelWait(uint64_t ticket);

 private:
  struct Wait {
    Scope scope;
    std::vector<std::string> keys;  // distinct
    size_t missing = 0;             // how many of them do not exist
    absl::Duration deadline;        // on the steady clock
    WaitDone done;
  };
  struct Space {
    uint64_t generation = 0;
    std::set<std::pair<std::string, std::string>> members;  // worker and incarnation
    std::map<std::string, std::string> values;
    size_t bytes = 0;
    std::map<std::string, std::set<uint64_t>> waiting;  // tickets by key that they name
  };

  StatusOr<Space*> Find(const Scope& scope) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Also takes the waits that a new key completes.
  Status Put(Space* space, const std::string& key, std::string value, Deferred* deferred)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The key has come into being: takes the waits that it completes.
  void TakeCompleted(Space* space, const std::string& key, Deferred* deferred) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the wait out of waits_ and of its scope's index.
  Wait Remove(std::map<uint64_t, Wait>::iterator wait) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the chosen waits; each will be told why.
  Deferred TakeIf(const std::function<bool(const Wait&)>& chosen, const std::function<Status(const Wait&)>& why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Names the first key that is missing.
  Status Late(const Wait& wait) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ExpireLoop();

  absl::Mutex mutex_;
  std::map<std::string, Space> spaces_ ABSL_GUARDED_BY(mutex_);  // by job that has ranks
  std::map<uint64_t, Wait> waits_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool waits_changed_ ABSL_GUARDED_BY(mutex_) = false;  // since "kv-expire" looked
  std::thread expire_;
};

}  // namespace distill

#endif  // DISTILL_COORDINATOR_CORE_RENDEZVOUS_STORE_H_
