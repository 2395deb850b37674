// What becomes of a job whose pictures cannot all be decoded (DataPlan.on_bad_image), and which those are.
#ifndef DISTILL_STUDENT_WORKER_DATA_BAD_IMAGES_H_
#define DISTILL_STUDENT_WORKER_DATA_BAD_IMAGES_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/plan/plan.h"
#include "common/status.h"

namespace distill {

// Thread-safe. A picture counts once, however often it is met.
class BadImages {
 public:
  explicit BadImages(const DataPlan& plan) : skips_(plan.on_bad_image == "skip"), limit_(plan.bad_image_limit) {}

  // Whether the job goes on without them.
  bool skips() const { return skips_; }
  // Of all splits together, of which DataPlan.bad_image_limit is a share; before it is set nothing is over the limit.
  void SetTotal(uint64_t images);
  // The picture `file` is bad, as `why` says. Not OK: the job has to end, because it does not skip them or because they
  // are too many now.
  Status Note(const std::string& file, const Status& why);
  // Not OK: they are too many.
  Status Judge() const;
  uint64_t count() const;
  // One sentence about those noted since the last call; none when there are none.
  std::vector<std::string> TakeNews();

 private:
  Status JudgeLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const bool skips_;
  const double limit_;
  mutable absl::Mutex mutex_;
  uint64_t total_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> files_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> news_ ABSL_GUARDED_BY(mutex_);  // the first of them in words
  uint64_t untold_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace distill

#endif  // DISTILL_STUDENT_WORKER_DATA_BAD_IMAGES_H_
