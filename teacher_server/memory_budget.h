// One budget of memory over all streams of a teacher: pixels that wait for their answer, and features being computed or
// computed and unsent. Limits of a single stream would add up to any amount.
//
// Rules: one half is for pixels, one for features. An answer is computed when it fits; one that its client has not
// granted the credit for may use the first half of that half only, so that clients that fetch nothing cannot keep the
// others from theirs. When there is nothing else of its kind, any batch and any answer fits (one must be able to go
// on). Those that had to wait get their turn in the order in which they asked; covered answers do not wait behind
// uncovered ones. Rings of shared memory (stream_ring.h) may take a quarter of the half for features, of which there is
// so much less as long as they are there.
//
// Thread-safe. Calls nobody.
#ifndef DISTILL_TEACHER_SERVER_MEMORY_BUDGET_H_
#define DISTILL_TEACHER_SERVER_MEMORY_BUDGET_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace distill {

class MemoryBudget {
 public:
  using Time = std::chrono::steady_clock::time_point;

  explicit MemoryBudget(uint64_t bytes) : bytes_(bytes) {}

  // False: no room at `now`, nothing is taken.
  bool TakePixels(uint64_t bytes, Time now);
  void GivePixels(uint64_t bytes);
  // `covered`: the client has granted credit for this answer and all that it has under way. False: the stream waits for
  // its turn from now on (`now`), and should ask again when NextWaiting() names it.
  bool TakeFeatures(uint64_t stream, uint64_t bytes, bool covered, Time now);
  // Negative: given back.
  void AddFeatures(int64_t bytes);
  // A ring's memory, for as long as it is there. False: no room, nothing is taken.
  bool TakeRing(uint64_t bytes);
  void GiveRing(uint64_t bytes);
  // The stream waits no more.
  void Forget(uint64_t stream);

  // The streams whose turn is next, one of each kind. Empty: nobody waits.
  std::vector<uint64_t> NextWaiting() const;
  // Since when the longest waiting one waits, or batches are refused and no pixels were given back.
  std::optional<Time> waiting_since() const;
  uint64_t used() const;
  uint64_t bytes() const { return bytes_; }

 private:
  struct Waiting {
    uint64_t stream;
    Time since;
  };
  void ForgetLocked(uint64_t stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const uint64_t bytes_;
  mutable absl::Mutex mutex_;
  uint64_t pixels_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t features_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t rings_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Time> refused_since_ ABSL_GUARDED_BY(mutex_);
  std::deque<Waiting> covered_ ABSL_GUARDED_BY(mutex_), uncovered_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace distill

#endif  // DISTILL_TEACHER_SERVER_MEMORY_BUDGET_H_
